"""Chats that users bring: the files of the kind `chat_files`, in the layouts that trainers and collections use.

| layout | told by | as |
|---|---|---|
| messages | `messages` | [{"role": "system", "user" or "assistant", "content": text}, ...] |
| ShareGPT | `conversations` | [{"from": "human" or "gpt", "value": text}, ...], and `system` beside it |
| instruction | `instruction` | {"instruction": text, "input": text or none, "output": text}, `system` beside it |

`category`, `label`, `toxicity`, `tags` and `quality` (1 to 10) are taken over where they are of the schema's types;
other fields are ignored. Files are .jsonl, .json (an array, or values one after another) and .parquet, each also with
.gz or .zst after it. Every row is read by itself: what is no chat is told with the reason, and the next is read.
"""

import codecs
import io
import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Annotated, Any, Literal, cast

import polars as pl
from pydantic import BaseModel, BeforeValidator, Field, TypeAdapter, ValidationError, ValidationInfo
from upath import UPath

from khmer_assets.foundation.settings import Settings, folder_of_file
from khmer_assets.instructions.chat_dataset import UNREADABLE
from khmer_assets.instructions.chats import NEW_CHAT, Message, new_chat
from khmer_assets.khmer.normalization import Normalization, normalize
from khmer_assets.khmer.script import dominant_script
from khmer_assets.sources.entries import find_files
from khmer_assets.sources.kinds.files import (
    BEGIN_OF_JSON,
    COMPRESSIONS,
    MAX_UNPACKED_BYTES,
    PEEKED,
    WHOLE_JSON,
    NoText,
    require_text,
)
from khmer_assets.sources.parquet_columns import read_columns

MAX_LINE_BYTES = 1_000_000  # of a chat
READ_AT_ONCE = 1 << 16  # characters of a .json file
QUALITY = (1.0, 10.0)
_BETWEEN = re.compile(r"[\s,]*")  # the values of a .json file
LAYOUTS = ("messages", "conversations", "instruction")
SPEAKERS = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant", "developer": "system"}


def _beside(pattern: Any, about: ValidationInfo) -> Any:
    """A path or glob made absolute; an address stays."""
    if isinstance(pattern, list):
        return [_beside(one, about) for one in pattern]
    if not isinstance(pattern, str) or "://" in pattern:
        return pattern
    return str(folder_of_file(pattern, about).absolute() / pattern)


class ChatFiles(Settings):
    """`path`: a file or glob, or a list of them, relative to the recipe, or any address of universal_pathlib."""

    path: Annotated[str | Annotated[list[str], Field(min_length=1)], BeforeValidator(_beside)]

    @property
    def files(self) -> list[UPath]:
        """The files, each once. Raises `SourceError` where a pattern names none."""
        patterns = [self.path] if isinstance(self.path, str) else self.path
        found = [file for pattern in patterns for file in find_files(pattern, Path())]
        return list({str(file): file for file in found}.values())


class _Part(BaseModel):
    type: Literal["text"]
    text: str


class _Turn(BaseModel):
    role: Literal["system", "user", "assistant"]
    content: str | list[_Part]


class _Chat(BaseModel):
    messages: list[_Turn]


class _Instruction(BaseModel):
    instruction: str
    input: str | None = None
    output: str


_JUDGMENTS: dict[str, TypeAdapter[Any]] = {
    "category": TypeAdapter(Annotated[str, Field(min_length=1)]),
    "label": TypeAdapter(str),
    "toxicity": TypeAdapter(str),
    "tags": TypeAdapter(list[str]),
    "quality": TypeAdapter(Annotated[float, Field(ge=QUALITY[0], le=QUALITY[1])]),
}


def read_chats(file: Path, source: str, normalization: Normalization, prefix: str | None = None) -> pl.LazyFrame:
    """The chats of a file as `NEW_CHAT`, texts normalized; of a row that is no chat, `unreadable` tells the reason.

    Ids are `prefix`, which is the source's name if none is given, and the row's number. Raises `OSError` when the file
    cannot be read, or is as a whole not what its name says.
    """
    where = UPath(file)
    if where.protocol in ("", "file") and where.exists() and not where.is_file():  # a pipe would be waited for
        raise OSError(f"{file} is a folder, a pipe or a device, expected a file")
    rows = []
    for number, place, values in _values(where):
        row = {**new_chat(f"{prefix or source}-{number}", source, "", source, []), UNREADABLE: None}
        try:
            if isinstance(values, _Broken):
                raise ValueError(str(values))
            row |= _chat(values, normalization)
        except ValidationError as error:
            one = error.errors()[0]
            loc = ".".join(str(part) for part in one["loc"] if part != "str" and "list[" not in str(part))
            row[UNREADABLE] = f"{place}: {loc} {one['msg']}"
        except (ValueError, RecursionError) as error:
            row[UNREADABLE] = f"{place}: {error}"
        rows.append(row)
    return pl.LazyFrame(rows, schema={**NEW_CHAT, UNREADABLE: pl.String()})


def read_all(settings: ChatFiles, source: str, normalization: Normalization) -> pl.LazyFrame:
    """The chats of all files of a source, as `read_chats`. Raises `OSError` and `SourceError`."""
    files = settings.files
    prefixes = [f"{source}-{number}" if len(files) > 1 else source for number in range(1, len(files) + 1)]
    return pl.concat(
        read_chats(cast(Path, file), source, normalization, prefix)
        for file, prefix in zip(files, prefixes, strict=True)
    )


class _Broken(str):
    """Why there are no values."""


def _chat(values: Any, normalization: Normalization) -> dict[str, Any]:
    """The columns that a row decides. Raises `ValueError`, or the `ValidationError` that is one."""
    if not isinstance(values, dict):
        raise ValueError(f"expected a JSON object, found {type(values).__name__}")
    layout = next((layout for layout in LAYOUTS if values.get(layout) is not None), None)
    if layout == "instruction":
        task = _Instruction.model_validate(values)
        given = f"{task.instruction}\n\n{task.input}" if (task.input or "").strip() else task.instruction
        turns = [("user", given), ("assistant", task.output)]
    else:
        if layout == "conversations":
            values = {**values, "messages": _of_share_gpt(values["conversations"])}
        chat = _Chat.model_validate(values)
        turns = [(turn.role, _text(turn.content)) for turn in chat.messages]
    system = values.get("system")
    if layout != "messages" and isinstance(system, str) and system.strip() and turns[:1] != [("system", system)]:
        turns.insert(0, ("system", system))
    messages = [Message(role=role, content=normalize(content, normalization)[0]) for role, content in turns]
    said = "\n".join(message["content"] for message in messages)
    judged = {key: _taken_over(values.get(key), kind, normalization) for key, kind in _JUDGMENTS.items()}
    about = {key: value for key, value in judged.items() if value is not None}
    return {"messages": messages, "language": "khm" if dominant_script(said) == "Khmr" else "eng", **about}


def _text(content: str | list[_Part]) -> str:
    return content if isinstance(content, str) else "\n".join(part.text for part in content)


def _of_share_gpt(turns: Any) -> Any:
    """Turns with role and content, where they have from and value."""
    if not isinstance(turns, list):
        return turns
    return [
        {"role": SPEAKERS.get(str(turn["from"]), turn["from"]), "content": turn.get("value")}
        if isinstance(turn, dict) and "from" in turn
        else turn
        for turn in turns
    ]


def _taken_over(value: Any, kind: TypeAdapter[Any], normalization: Normalization) -> Any:
    """The value where it is of its kind, with texts normalized, else None."""
    try:
        known = kind.validate_python(value, strict=True)
    except ValidationError:
        return None
    if isinstance(known, list):
        return [normalize(one, normalization)[0] for one in known]
    return normalize(known, normalization)[0] if isinstance(known, str) else float(known)


def _values(file: UPath) -> Iterator[tuple[int, str, Any]]:
    """Each row's number, place and values; `_Broken` where there are none. A file that breaks off says so at its end.

    Raises `OSError` for a file that cannot be read from its beginning.
    """
    suffixes = [suffix.lower() for suffix in file.suffixes]
    packed = COMPRESSIONS.get(suffixes[-1]) if suffixes else None
    ending = suffixes[-2] if packed and len(suffixes) > 1 else suffixes[-1] if suffixes else ""
    number, kind = 0, "row"
    try:
        opened = file.open("rb")
    except Exception as error:  # each protocol's library raises its own
        raise error if isinstance(error, OSError) else OSError(f"{file} cannot be read: {error!s:.300}") from None
    with opened as raw:
        try:
            stream = _Unpacked(raw, packed) if packed else raw
            if ending == ".parquet":
                rows = _parquet(stream)
            else:
                kind = "value" if ending == ".json" else "line"
                buffered = stream if isinstance(stream, io.BufferedReader) else io.BufferedReader(cast(Any, stream))
                begins = buffered.peek(PEEKED)[:PEEKED]
                require_text(begins)
                rows = _json(buffered) if ending == ".json" else _lines(buffered, begins)
            for number, values in rows:
                yield number, f"{kind} {number}", values
        except NoText as error:
            raise OSError(f"{file.name}: {error}") from None
        except Exception as error:  # whatever the libraries of the formats raise: what was read stays
            if not number:
                raise OSError(f"{file.name} cannot be read: {error}") from None
            yield number + 1, f"after {kind} {number}", _Broken(f"the file cannot be read on: {error}")


class _Unpacked(io.RawIOBase):
    """What a compressed file holds, at most `MAX_UNPACKED_BYTES` of it."""

    def __init__(self, raw: Any, compression: str):
        import pyarrow as pa  # notices a stream that is cut off, for zstd too, and reads several members as one

        self._stream = pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), compression)
        self._bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block = self._stream.read(len(buffer))
        self._bytes += len(block)
        if self._bytes > MAX_UNPACKED_BYTES:
            raise ValueError(f"has over {MAX_UNPACKED_BYTES:,} bytes when unpacked; unpack it yourself, or split it")
        buffer[: len(block)] = block
        return len(block)


def _parquet(stream: Any) -> Iterator[tuple[int, Any]]:
    with tempfile.TemporaryFile() as seekable:
        if isinstance(stream, _Unpacked):
            while block := stream.read(1 << 20):
                seekable.write(block)
            stream = seekable
        yield from enumerate(read_columns(stream, None, []), 1)


def _lines(stream: IO[bytes], begins: bytes) -> Iterator[tuple[int, Any]]:
    start = begins.lstrip().partition(b"\n")[0].strip()
    if start.startswith(b"[") or start in [begin.encode() for begin in BEGIN_OF_JSON]:
        raise NoText(f"{WHOLE_JSON}; or let its name end in .json")
    number = 0
    while line := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        whole = line.endswith(b"\n") or len(line) <= MAX_LINE_BYTES
        while not line.endswith(b"\n") and (rest := stream.readline(MAX_LINE_BYTES)):
            line = line[:1] + rest[-1:]  # read on to the next line, and keep nothing of this one
        if not line.strip():
            continue
        try:
            if not whole:
                raise ValueError(f"the line has more than {MAX_LINE_BYTES:,} bytes")
            yield number, _loaded(line)
        except (ValueError, RecursionError) as error:
            yield number, _Broken(str(error))


def _loaded(line: bytes) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"Invalid JSON: {error}") from None


def _json(stream: IO[bytes]) -> Iterator[tuple[int, Any]]:
    """The values of an array, or those that follow one another. What is no JSON ends the reading."""
    text = io.TextIOWrapper(cast(Any, stream), "utf-8-sig", errors="surrogateescape")
    buffer, number, ended = text.read(READ_AT_ONCE).lstrip(), 0, False
    array = buffer.startswith("[")
    decoder, place = json.JSONDecoder(), int(array)
    while True:
        place = cast(re.Match[str], _BETWEEN.match(buffer, place)).end()
        if (array and buffer.startswith("]", place)) or (not array and ended and place == len(buffer)):
            return
        try:
            values, end = decoder.raw_decode(buffer, place)
            if end == len(buffer) and not ended:
                raise ValueError("a number may go on")
        except (ValueError, RecursionError) as error:
            if ended or len(buffer) - place > MAX_LINE_BYTES:
                yield number + 1, _Broken(f"Invalid JSON: {error}")
                return
            more = text.read(max(READ_AT_ONCE, len(buffer) - place))
            ended, buffer, place = not more, buffer[place:] + more, 0
            continue
        number += 1
        yield number, values
        place = end
