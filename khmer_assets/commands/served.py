"""The model server of a recipe, which several commands talk to."""

from khmer_assets.foundation.home import home
from khmer_assets.recipe import Recipe
from khmer_assets.release.deployment import model_server
from khmer_assets.server.client import ask
from resources.model_server import ModelServer


def server_of(recipe: Recipe) -> ModelServer:
    """The model server that the recipe describes."""
    return model_server(recipe.serving, recipe.adapter_ranks, home())


def answer(recipe: Recipe, question: str) -> str:
    """What the served model says. Raises `ModelServerError`."""
    server = server_of(recipe)
    return ask(question, server.base_url, server.api_key(), max_tokens=recipe.evaluation.max_new_tokens)
