"""Audit records: a JSON file a request, there as soon as its answer is, also when the gateway is killed meanwhile.

A streamed answer is first appended to a journal, each piece before the user gets it. When it ends, the record is
written aside, renamed to its place, and the journal deleted. A journal that is found at start belongs to a gateway
that was killed, or whose disk was full; it is settled then. What has been written outlives the process, though not a
loss of power. All of it is its owner's alone to read.
"""

import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator
from pydantic_core import from_json, to_json

from khmer_assets.foundation.settings import PositiveInt, Settings
from khmer_assets.server.events import has_ended
from khmer_assets.server.messages import AnyMessage, AssistantMessage, ToolMessage
from khmer_assets.server.requests import Body, Chat, Generation, Tokenization

JOURNALS = ".open"
REDACTED = "[redacted]"
# fields without a user's words
PLAIN = (
    *("id", "time", "key_id", "endpoint", "model", "release", "adapter", "outcome", "finish_reason"),
    *("route", "route_reason", "dissatisfied_with"),
)
# Of answers of khmer-auto; null in all other records. `route`: the name of who answered. `route_reason`: why (`Reason`
# in `routing.py`). `confidence`: the chance that the model's own answer is right. `dissatisfied`: whether the last
# turn says that the answer before it was not good; `dissatisfied_with`: the id of that answer's record, if it is known.
ROUTING = ("route", "route_reason", "confidence", "dissatisfied", "dissatisfied_with")


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"no regular expression: {error}") from None
    return pattern


class AuditSettings(Settings):
    """`redact`: regular expressions; what they match is replaced in audit records.

    `retention_days`: of audit records.
    """

    redact: list[Annotated[str, AfterValidator(_compiles)]] = []
    retention_days: PositiveInt = 90


class Record:
    """One request. `fields` is what the file will hold."""

    def __init__(self, log: "AuditLog", path: str, body: Body, key: str, request_id: str | None = None):
        now = datetime.now(UTC)
        self.log = log
        self.id = secrets.token_hex(8)
        self.started = time.monotonic()
        self.first_byte: float | None = None
        kind = path.removeprefix("/v1/").strip("/").replace("/", "_")
        self.name = f"{kind}_{self.id}_{now:%Y%m%dT%H%M%S.%fZ}.json"
        self.body = body
        self.fields: dict[str, Any] = {
            "id": self.id,
            "request_id": request_id or self.id,
            "time": now.isoformat(),
            "key_id": key,
            "user": body.user,
            "metadata": body.metadata if isinstance(body, Generation) else None,
            "endpoint": path,
            "model": body.model,
            "release": None,
            "adapter": None,
            **dict.fromkeys(ROUTING),
        }
        self._journal: int | None = None
        self._answer: list[bytes] = []

    def append(self, piece: bytes) -> None:
        """Keep a piece of a streamed answer. Call it before the piece is sent. Raises `OSError` when it is not kept."""
        if self._journal is None:
            self._journal = os.open(self.log.journals + self.name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            self.describe()
            _write(self._journal, to_json(self.fields) + b"\n")
        _write(self._journal, piece)
        self._answer.append(piece)

    def whole(self, answer: bytes) -> None:
        """Keep an answer that comes in one piece; it is on the disk after `close`."""
        self._answer = [answer]

    def describe(self) -> None:
        """Put what was asked into the fields."""
        asked = self.body.model_dump(exclude_none=True, exclude={"model", "messages", "prompt", "input"})
        self.fields["parameters"] = asked
        if isinstance(self.body, Chat):
            turns = self.body.messages
            system = [turn.text() for turn in turns if turn.role in ("system", "developer")]
            self.fields["system_prompt"] = "\n".join(system) or None
            others = [_told(turn) for turn in turns]
            self.fields["user_input"] = next((t["content"] for t in reversed(others) if t["role"] == "user"), None)
            self.fields["messages"] = others
        else:
            self.fields["system_prompt"] = None
            texts = [self.body.prompt] if isinstance(self.body, Tokenization) else self.body.texts()
            self.fields["user_input"] = texts[0] if len(texts) == 1 else texts

    def close(self, outcome: str, error: str | None = None) -> None:
        """Write the record: `outcome` is completed, cancelled, failed or interrupted.

        Raises `OSError` when it cannot be written; the journal of a streamed answer then stays for the next start.
        """
        if "parameters" not in self.fields:
            self.describe()
        ended = time.monotonic()
        seconds = {
            "seconds_to_first_token": None if self.first_byte is None else round(self.first_byte - self.started, 6),
            "seconds": round(ended - self.started, 6),
        }
        self.fields |= seconds | read_answer(b"".join(self._answer)) | {"outcome": outcome, "error": error}
        journal, self._journal = self._journal, None
        try:
            self.log.write(self.name, self.fields)
            if journal is not None:
                os.unlink(self.log.journals + self.name)
        finally:
            if journal is not None:
                os.close(journal)

    @property
    def tokens(self) -> int:
        """Prompt and answer together, as far as the engine has told."""
        return int((self.fields.get("usage") or {}).get("total_tokens") or 0)


class AuditLog:
    """The folder of records: `YYYY-MM-DD/<endpoint>_<id>_<time>.json`. `redact`: what no record may hold."""

    def __init__(self, folder: Path, redact: list[str], retention_days: int):
        self.folder = folder
        self.patterns = [re.compile(pattern) for pattern in redact]
        self.retention_days = retention_days
        (folder / JOURNALS).mkdir(parents=True, exist_ok=True)
        with suppress(PermissionError):  # a folder that somebody else has made for this user
            folder.chmod(0o700)
        self.journals = f"{folder / JOURNALS}/"  # a string: paths take longer than what is done with them

    def write(self, name: str, fields: dict[str, Any]) -> None:
        """Put a record in its place in one step. Raises `OSError`."""
        day = f"{self.folder}/{fields['time'][:10]}"
        if self.patterns:
            fields = {key: value if key in PLAIN else self._redacted(value) for key, value in fields.items()}
        aside = f"{self.journals}{name}.aside"
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            _write(descriptor, to_json(fields, indent=1))
            try:
                os.replace(aside, f"{day}/{name}")
            except FileNotFoundError:
                os.makedirs(day, mode=0o700, exist_ok=True)
                os.replace(aside, f"{day}/{name}")
        except OSError:
            os.unlink(aside)
            raise
        finally:
            os.close(descriptor)

    def settle(self, charge: Callable[[str, int, int], None] = lambda *_: None) -> int:
        """Turn the journals of a killed gateway into records; return how many. Call it before the first request.

        `charge` is told the key of each, and how many tokens were read and written. A journal that cannot be settled,
        because the disk is full, stays where it is.
        """
        settled = 0
        for journal in sorted((self.folder / JOURNALS).iterdir()):
            with suppress(OSError):
                settled += self._settle(journal, charge)
                journal.unlink()
        return settled

    def _settle(self, journal: Path, charge: Callable[[str, int, int], None]) -> bool:
        head, _, answer = journal.read_bytes().partition(b"\n")
        try:
            fields = json.loads(head)
        except ValueError:  # killed while it was being written: nothing had been sent
            return False
        if journal.suffix != ".json" or (self.folder / fields["time"][:10] / journal.name).exists():
            return False
        whole = has_ended(answer)
        outcome = "completed" if whole else "interrupted"
        error = None if whole else "the gateway was killed"
        times = {"seconds_to_first_token": None, "seconds": None}
        told = read_answer(answer)
        self.write(journal.name, fields | times | told | {"outcome": outcome, "error": error})
        used = told["usage"] or {}
        charge(fields["key_id"], used.get("prompt_tokens") or 0, used.get("completion_tokens") or 0)
        return True

    def forget_old(self) -> dict[str, str]:
        """Delete the days that are older than the retention; return those that cannot be deleted, and why.

        It may take long: a day can have a million files.
        """
        oldest = datetime.now(UTC).date() - timedelta(days=self.retention_days)
        kept = {}
        for day in self.folder.glob("????-??-??"):
            try:
                if date.fromisoformat(day.name) < oldest:
                    shutil.rmtree(day)
            except ValueError:
                continue
            except OSError as error:
                kept[day.name] = str(error)
        return kept

    def _redacted(self, value: Any) -> Any:
        if isinstance(value, str):
            for pattern in self.patterns:
                value = pattern.sub(REDACTED, value)
        elif isinstance(value, list):
            return [self._redacted(item) for item in value]
        elif isinstance(value, dict):
            return {self._redacted(key): self._redacted(item) for key, item in value.items()}
        return value


def find_record(folder: Path, identity: str) -> Path | None:
    """The record of this id in the folder of all of them, the newest days first; None where there is none."""
    for day in sorted(folder.glob("????-??-??"), reverse=True):
        with os.scandir(day) as entries:  # a day may have a million
            for entry in entries:
                if entry.name.rpartition("_")[0].endswith(f"_{identity}"):
                    return Path(entry.path)
    return None


def _write(descriptor: int, content: bytes) -> None:
    """Write all of it, or raise `OSError`: a disk that is nearly full takes a part and says nothing."""
    while (written := os.write(descriptor, content)) < len(content):
        content = content[written:]


def read_answer(answer: bytes) -> dict[str, Any]:
    """What an engine has sent, whole or in part: `output` (a text a choice, or None), `tool_calls` (of the choices
    that have any, or None), `usage` and `finish_reason`.
    """
    texts: dict[int, list[str]] = {}
    reasons: dict[int, str] = {}
    calls: dict[int, dict[int, dict[str, str]]] = {}  # by choice and place: name and arguments
    usage = None
    until_now: dict[int, dict[str, int]] = {}  # by choice: what a stream has told while it was running
    for message in _messages(answer):
        choices = message.get("choices") or []
        if told := message.get("usage") or _usage_of(message.get("timings")):
            if len(choices) == 1:
                until_now[choices[0].get("index", 0)] = told
            else:
                usage = told
        for choice in choices:
            index = choice.get("index", 0)
            said = choice.get("delta") or choice.get("message") or choice
            if called := said.get("tool_calls"):
                _add_calls(calls.setdefault(index, {}), called)
            texts.setdefault(index, []).append(said.get("content") or said.get("text") or "")
            if choice.get("finish_reason"):
                reasons[index] = choice["finish_reason"]
    outputs = ["".join(texts[index]) for index in sorted(texts)]
    called = [list(calls[index].values()) for index in sorted(calls)]
    return {
        "output": outputs[0] if len(outputs) == 1 else outputs or None,
        "tool_calls": called[0] if len(called) == 1 else called or None,
        "usage": usage or _together(list(until_now.values())),
        "finish_reason": ",".join(reasons[index] for index in sorted(reasons)) or None,
    }


def _told(turn: AnyMessage) -> dict[str, Any]:
    """A turn of a chat, as its record has it."""
    told: dict[str, Any] = {"role": turn.role, "content": turn.text()}
    if isinstance(turn, AssistantMessage) and turn.tool_calls:
        told["tool_calls"] = [{"id": call.id, **call.function.model_dump()} for call in turn.tool_calls]
    if isinstance(turn, ToolMessage):
        told["tool_call_id"] = turn.tool_call_id
    return told


def _add_calls(calls: dict[int, dict[str, str]], told: list[dict[str, Any]]) -> None:
    """Put pieces of calls, or whole ones, to those of a choice."""
    for place, piece in enumerate(told):
        call = calls.setdefault(piece.get("index", place), {"id": "", "name": "", "arguments": ""})
        function = piece.get("function") or {}
        call["id"] = piece.get("id") or call["id"]
        call["name"] += function.get("name") or ""
        call["arguments"] += function.get("arguments") or ""


def _usage_of(timings: dict[str, Any] | None) -> dict[str, int] | None:
    """What llama.cpp tells while a stream is running, as a usage."""
    if not timings:
        return None
    read, written = timings["cache_n"] + timings["prompt_n"], timings["predicted_n"]
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def _together(usages: list[dict[str, int]]) -> dict[str, int] | None:
    """The usage of all choices of one prompt."""
    if len(usages) < 2:
        return usages[0] if usages else None
    read, written = usages[0]["prompt_tokens"], sum(usage.get("completion_tokens") or 0 for usage in usages)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def _messages(answer: bytes) -> Iterator[dict[str, Any]]:
    for line in answer.split(b"\n") if answer.startswith(b"data:") else [answer]:
        if b"{" not in line:  # the end mark, or nothing: an exception would cost more than all the parsing
            continue
        try:
            message = from_json(line.removeprefix(b"data:"))
        except ValueError:  # a piece that was cut
            continue
        if isinstance(message, dict):
            yield message
