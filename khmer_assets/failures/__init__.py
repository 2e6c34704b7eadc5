"""What the model gets wrong, and the adapter that learns from it: found, clustered, taught, measured, served."""
