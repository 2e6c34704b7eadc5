"""Merged model -> pruned, AWQ and GGUF variants."""
