"""What all training shares: the loop and its optimizers, loading of models, the measure of held-out text."""
