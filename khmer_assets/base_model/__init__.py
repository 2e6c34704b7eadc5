"""An open model that the recipe starts from, brought in from a hub or a folder."""
