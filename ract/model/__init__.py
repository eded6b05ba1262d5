"""Architectures: what ReAct trains, what it reads from others, and the ensemble."""
