"""The kinds of engines: vLLM, and llama.cpp for a GGUF file. What differs between them is behind one interface.

What belongs here: what is asked of a kind, and which kind runs a model. What does not: what the answer is, which stands
in the kind's own module, `vllm.py` or `llama_cpp.py`.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from khmer_assets.server.llama_cpp import LlamaCpp, gguf_file
from khmer_assets.server.refusals import Refused
from khmer_assets.server.requests import Body
from khmer_assets.server.state import AdapterVersion, ModelVersion
from khmer_assets.server.tool_formats import reads_tools, template_of, vllm_parser
from khmer_assets.server.vllm import Vllm


class AskedKind(Protocol):
    """In which words something is asked, and refuses."""

    def check(self, body: Body) -> None:
        """Raise `Refused` for what the engine cannot do."""

    def content(self, body: Body) -> bytes:
        """The body in the engine's words, to which a stream tells in each event how many tokens were used until then.

        Raises `Refused` as `check` does.
        """

    def refusal(self, status: int, answer: bytes, path: str) -> Refused | None:
        """An error that the engine has answered, as OpenAI would tell it; None where the answer itself does."""


class EngineKind(AskedKind, Protocol):
    """All that differs between engines: how one is started, and in which words it is asked and refuses."""

    def require(self, model: Path) -> None:
        """Raise `ModelServerError` unless the folder holds a model and the engine for it is installed."""

    def command(
        self, folder: Path, port: int, release: ModelVersion, adapters: tuple[AdapterVersion, ...]
    ) -> tuple[list[str], dict[str, str], Path]:
        """What starts an engine on 127.0.0.1:`port`: the words, what they add to the environment, and where.

        `folder` holds the server's state. Raises `ModelServerError` when the engine is not installed.
        """


def kind_of(model: Path, settings: Mapping[str, Any] = MappingProxyType({})) -> EngineKind:
    """The kind that runs the model in a folder: llama.cpp a GGUF file, vLLM a transformers folder.

    `settings` are the engine's own.
    """
    template = template_of(model)
    if gguf_file(model):
        return LlamaCpp(reads_tools(template))
    return Vllm(reads_tools(template), settings.get("tool_call_parser") or vllm_parser(template))
