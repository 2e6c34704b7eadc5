"""The serving stage: what is released, what vLLM serves, and how to ask it."""
