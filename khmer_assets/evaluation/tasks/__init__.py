"""What a model is measured on: a module a task, and nothing else."""
