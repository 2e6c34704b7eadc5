"""Whether a model reads tools is found in its chat template, wherever that stands."""

import json
import struct

import pytest

from khmer_assets.server.tool_formats import gguf_template, reads_tools, template_of, vllm_parser
from khmer_assets.tokenizer.chat_template import CHAT_TEMPLATE
from tests.tiny_model import TOOL_TEMPLATE


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def gguf(*pairs: bytes) -> bytes:
    return struct.pack("<4sIQQ", b"GGUF", 3, 0, len(pairs)) + b"".join(pairs)


BEFORE = (
    text("general.name") + struct.pack("<I", 8) + text("ខ្មែរ"),
    text("a.count") + struct.pack("<II", 4, 7),
    text("a.flag") + struct.pack("<IB", 7, 1),
    text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 2) + text("ក") + text("ខ"),
    text("tokenizer.ggml.scores") + struct.pack("<IIQ", 9, 6, 2) + struct.pack("<2f", 1, 2),
)
TEMPLATE = text("tokenizer.chat_template") + struct.pack("<I", 8) + text(TOOL_TEMPLATE)


def test_a_template_is_found_in_each_kind_of_folder(tmp_path):
    folders = [tmp_path / name for name in ("jinja", "config", "gguf", "empty")]
    for folder in folders:
        folder.mkdir()
    (folders[0] / "chat_template.jinja").write_text(TOOL_TEMPLATE)
    (folders[1] / "tokenizer_config.json").write_text(json.dumps({"chat_template": TOOL_TEMPLATE}))
    (folders[2] / "Q8_0.gguf").write_bytes(gguf(*BEFORE, TEMPLATE))
    assert [template_of(folder) for folder in folders] == [TOOL_TEMPLATE] * 3 + [""]


@pytest.mark.parametrize("content", [b"", b"GGUF", b"no GGUF file" * 9, gguf(*BEFORE), gguf(*BEFORE, TEMPLATE)[:-2000]])
def test_a_file_without_a_template_has_none(tmp_path, content):
    (tmp_path / "a.gguf").write_bytes(content)
    assert gguf_template(tmp_path / "a.gguf") == ""


@pytest.mark.parametrize("count", [2**63, 2**40])
def test_a_head_that_lies_ends_at_the_end_of_the_file(tmp_path, count):
    lying = text("a") + struct.pack("<IIQ", 9, 8, count) + text("b")
    (tmp_path / "a.gguf").write_bytes(gguf(lying))
    assert gguf_template(tmp_path / "a.gguf") == ""


@pytest.mark.parametrize(
    ("template", "reads", "parser"),
    [
        (CHAT_TEMPLATE, False, None),
        ("Write no tools. {{ messages[0].content }}", False, None),
        (TOOL_TEMPLATE, True, "hermes"),
        ("{% if tools %}<tool_call><function=name>{% endif %}", True, "qwen3_coder"),
        ("{% if tools %}[TOOL_CALLS]{% endif %}", True, "mistral"),
        (
            '{% if tools is not none %}{"name": function name, "parameters": dictionary of argument name}{% endif %}',
            True,
            "llama3_json",
        ),
        ("{% for tool in tools %}{{ tool }}{% endfor %}", True, None),
    ],
)
def test_what_a_template_tells(template, reads, parser):
    assert (reads_tools(template), vllm_parser(template)) == (reads, parser)
