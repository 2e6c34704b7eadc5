"""Whether a model reads tools, and how it writes calls: both stand in its chat template.

What belongs here: finding the template of a served model, and what it tells. What does not: what each engine makes of
that (`vllm.py`, `llama_cpp.py`).
"""

import json
import re
import struct
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

# Of vLLM's parsers, the one for the mark that a template tells the model to write calls with; the first that fits
MARKS = (
    ("qwen3_coder", "<function="),
    ("hermes", "<tool_call>"),  # Qwen 2.5 and 3, Hermes
    ("mistral", "[TOOL_CALLS]"),
    ("llama3_json", '"parameters": dictionary of argument name'),  # Llama 3.1 and later
)
TEMPLATE_KEY = b"tokenizer.chat_template"
TEMPLATE_FILES = ("chat_template.jinja", "tokenizer_config.json")
# of a GGUF file: the bytes of each kind of value, and the kinds that have a length of their own
FIXED = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
STRING, ARRAY = 8, 9
MAX_TEMPLATE = 1_048_576


def reads_tools(template: str) -> bool:
    """Whether a chat template shows tools to the model.

    >>> reads_tools("{% for tool in tools %}...{% endfor %}"), reads_tools("{{ messages[0].content }}")
    (True, False)
    """
    code = " ".join(re.findall(r"\{[{%].*?[%}]\}", template, re.DOTALL))
    return re.search(r"\btools\b", code) is not None


def vllm_parser(template: str) -> str | None:
    """The name of vLLM's parser for the calls of a model with this template; None where none is known to fit."""
    if not reads_tools(template):
        return None
    return next((name for name, mark in MARKS if mark in template), None)


def template_of(model: Path) -> str:
    """The chat template of the model in a folder, transformers' or with a GGUF file; "" where there is none."""
    if file := next(model.glob("*.gguf"), None):
        return gguf_template(file)
    jinja, config = (model / name for name in TEMPLATE_FILES)
    if jinja.is_file():
        return jinja.read_text(errors="replace")
    try:
        found: Any = json.loads(config.read_bytes()).get("chat_template")
    except (OSError, ValueError, AttributeError):
        return ""
    return found if isinstance(found, str) else ""


@lru_cache(maxsize=8)  # up to 150,000 tokens may stand before it
def gguf_template(file: Path) -> str:
    """The chat template in the head of a GGUF file; "" where there is none, or the file is none.

    The head is a magic, a version, two counts, and so many keys with values; little-endian
    (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
    """
    try:
        with file.open("rb") as opened:
            magic, _, _, count = struct.unpack("<4sIQQ", opened.read(24))
            for _ in range(count if magic == b"GGUF" else 0):
                key = opened.read(min(_number(opened, "Q"), MAX_TEMPLATE))
                kind = _number(opened, "I")
                if key == TEMPLATE_KEY and kind == STRING:
                    return opened.read(min(_number(opened, "Q"), MAX_TEMPLATE)).decode(errors="replace")
                _skip(opened, kind)
    except (OSError, struct.error, KeyError):  # llama.cpp will say what is wrong with it
        pass
    return ""


def _number(opened: BinaryIO, kind: str) -> int:
    return int(struct.unpack(f"<{kind}", opened.read(struct.calcsize(f"<{kind}")))[0])


def _skip(opened: BinaryIO, kind: int, count: int = 1) -> None:
    if kind == ARRAY:
        inner, length = _number(opened, "I"), _number(opened, "Q")
        _skip(opened, inner, length)
    elif kind == STRING:
        for _ in range(count):
            opened.seek(_number(opened, "Q"), 1)
    else:
        opened.seek(FIXED[kind] * count, 1)
