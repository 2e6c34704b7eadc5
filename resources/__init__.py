"""What an asset needs from outside: storage, compute, experiment tracking, the vector index, the model server."""
