"""The model server of the current recipe, which several commands talk to."""

from khmer_assets.foundation.home import home
from khmer_assets.recipe import Recipe
from khmer_assets.release.deployment import model_server
from khmer_assets.server.client import ask
from resources.model_server import ModelServer


def current_server() -> ModelServer:
    """The model server that the current recipe describes."""
    recipe = Recipe.current()
    return model_server(recipe.serving, recipe.adapter_ranks, home())


def answer(question: str) -> str:
    """What the served model says. Raises `ModelServerError`."""
    server = current_server()
    return ask(question, server.base_url, server.api_key(), max_tokens=Recipe.current().evaluation.max_new_tokens)
