"""Chats that users bring: JSONL files as OpenAI's and Hugging Face's trainers read them."""

import codecs
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import polars as pl
from pydantic import BaseModel, ValidationError

from khmer_assets.instructions.chats import NEW_CHAT, new_chat
from khmer_assets.khmer.normalization import Normalization, normalize
from khmer_assets.khmer.script import dominant_script
from khmer_assets.sources.kinds.files import BEGIN_OF_JSON, PEEKED, WHOLE_JSON, NoText, require_text

MAX_LINE_BYTES = 1_000_000
UNREADABLE = "unreadable"


class _Message(BaseModel):
    role: Literal["system", "user", "assistant"]
    content: str


class _Line(BaseModel):
    messages: list[_Message]


def read_chats(file: Path, source: str, normalization: Normalization) -> pl.LazyFrame:
    """The chats of a file as `NEW_CHAT`, texts normalized; of a line that is no chat, `unreadable` tells the reason.

    A line is {"messages": [{"role": "system" | "user" | "assistant", "content": text}, ...]}; other keys are ignored.
    Raises `OSError` when the file cannot be read, or is as a whole not what its name says.
    """
    if file.exists() and not file.is_file():  # a pipe would be waited for
        raise OSError(f"{file} is a folder, a pipe or a device, expected a file")
    return pl.LazyFrame(list(_rows(file, source, normalization)), schema={**NEW_CHAT, UNREADABLE: pl.String()})


def _require_lines(begins: bytes) -> None:
    require_text(begins)
    first = begins.lstrip().partition(b"\n")[0].strip()
    if first.startswith(b"[") or first in [begin.encode() for begin in BEGIN_OF_JSON]:
        raise NoText(WHOLE_JSON)


def _rows(file: Path, source: str, normalization: Normalization) -> Iterator[dict[str, Any]]:
    with file.open("rb") as opened:
        try:
            _require_lines(opened.peek(PEEKED)[:PEEKED])
        except NoText as error:
            raise OSError(f"{file.name}: {error}") from None
        number = 0
        while line := opened.readline(MAX_LINE_BYTES + 1):
            number += 1
            line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            whole = line.endswith(b"\n") or len(line) <= MAX_LINE_BYTES
            while not line.endswith(b"\n") and (rest := opened.readline(MAX_LINE_BYTES)):
                line = line[:1] + rest[-1:]  # read on to the next line, and keep nothing of this one
            if not line.strip():
                continue
            row = {**new_chat(f"{source}-{number}", source, "", source, []), UNREADABLE: None}
            try:
                if not whole:
                    raise ValueError(f"the line has more than {MAX_LINE_BYTES:,} bytes")
                messages = [
                    {"role": message.role, "content": normalize(message.content, normalization)[0]}
                    for message in _Line.model_validate_json(line).messages
                ]
                said = "\n".join(message["content"] for message in messages)
                row |= {"messages": messages, "language": "khm" if dominant_script(said) == "Khmr" else "eng"}
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(map(str, first["loc"]))
                row[UNREADABLE] = f"line {number}: {where} {first['msg']}".replace(":  ", ": ")
            except ValueError as error:
                row[UNREADABLE] = f"line {number}: {error}"
            yield row
