"""The serving stage: what is released, what is served, and how to ask it."""
