"""Smaller models from one model: structured pruning, healing, distillation, quantization, and a search among them."""
