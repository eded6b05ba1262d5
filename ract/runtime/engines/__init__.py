"""What executes a model: one small interface (:mod:`.base`), one module for each engine."""
