"""Training: one loop for leaves, branches, healing and baselines."""
