"""llama.cpp as a library: it quantizes, and scores GGUF files. Its server is another package's."""

from typing import Any

from khmer_assets.foundation import environments
from resources.payload import Refusal


def llama_cpp() -> Any:
    """The module of llama-cpp-python, which `make run` compiles while the graph runs. Raises `Refusal` without it."""
    environments.wait_until_built(environments.MAIN)
    try:
        import llama_cpp
    except ModuleNotFoundError:
        raise Refusal(
            "GGUF files need llama-cpp-python, which is not installed: `make install` says what keeps it from being "
            "compiled; without it, leave gguf out of the recipe's compression.variants"
        ) from None
    return llama_cpp
