"""The model that is to be served: its bundle, the gates before it, and its deployment."""
