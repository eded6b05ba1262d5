"""What executes a model: one small interface, one module for each engine."""
