"""Running a model on a machine without a GPU."""
