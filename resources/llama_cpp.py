"""llama.cpp as a library: it quantizes, and scores GGUF files. Its server is another package's."""

import sys
from pathlib import Path
from typing import Any

from khmer_assets.foundation.environments import wait_until_built
from resources.payload import Refusal


def llama_cpp() -> Any:
    """The module of llama-cpp-python, which `make run` compiles while the graph runs. Raises `Refusal` without it."""
    wait_until_built(Path(sys.prefix))
    try:
        import llama_cpp
    except ModuleNotFoundError:
        raise Refusal(
            "GGUF files need llama-cpp-python, which is not installed: `make install` says what keeps it from being "
            "compiled; without it, leave gguf out of the recipe's compression.variants"
        ) from None
    return llama_cpp
