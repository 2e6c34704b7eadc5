"""A chat's answer, told as /v1/responses tells it: whole, or as the events of a stream.

What belongs here: the shape of a response. What does not: the request (`responses.py`).
"""

import time
from typing import Any

from pydantic_core import from_json, to_json

from khmer_assets.server.events import BETWEEN, END_MARK, Events
from khmer_assets.server.refusals import Refused

Fields = dict[str, Any]


def response(settings: Fields, identity: str) -> Fields:
    """A response that has only begun; `settings` is what it repeats of its request."""
    return {
        "id": f"resp_{identity}",
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "output": [],
        "previous_response_id": None,
        "store": False,
        "truncation": "disabled",
        "usage": None,
        **settings,
    }


def whole_response(begun: Fields, answer: bytes) -> bytes:
    """The response to which an engine's whole answer to a chat belongs."""
    told = from_json(answer)
    (choice,) = told["choices"]
    message = choice["message"]
    identity, calls = begun["id"].removeprefix("resp_"), message.get("tool_calls") or []
    output = []
    if message.get("content") or not calls:
        output.append(_message(identity, 0, message.get("content") or ""))
    for call in calls:
        function = call["function"]
        output.append(_call(identity, len(output), call["id"], function["name"], function["arguments"]))
    return to_json(_ended(begun | {"model": told["model"]}, output, choice["finish_reason"], told.get("usage")))


def _message(identity: str, place: int, text: str, status: str = "completed") -> Fields:
    content = [_part(text)] if status == "completed" else []
    item: Fields = {"id": f"msg_{identity}_{place}", "type": "message", "status": status}
    return item | {"role": "assistant", "content": content}


def _part(text: str) -> Fields:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _call(identity: str, place: int, call: str, name: str, arguments: str, status: str = "completed") -> Fields:
    item: Fields = {"id": f"fc_{identity}_{place}", "type": "function_call", "status": status}
    return item | {"call_id": call, "name": name, "arguments": arguments}


def _ended(begun: Fields, output: list[Fields], reason: str | None, usage: Fields | None) -> Fields:
    cut = reason == "length"
    if cut and output:
        output[-1]["status"] = "incomplete"
    told = usage or {}
    used = {
        "input_tokens": told.get("prompt_tokens", 0),
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": told.get("completion_tokens", 0),
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": told.get("total_tokens", 0),
    }
    return begun | {
        "status": "incomplete" if cut else "completed",
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "output": output,
        "usage": used if usage else None,
    }


class ResponseEvents(Events):
    """The events of a response, made from those of a chat. `begun`: the response until now."""

    def __init__(self, begun: Fields):
        super().__init__(with_usage=True)
        self.begun = begun
        self.identity = begun["id"].removeprefix("resp_")
        self.sequence = 0
        self.output: list[Fields] = []
        self.open: int | None = None  # of a chat's calls, the one that is being written; -1: the text
        self.reason: str | None = None
        self.usage: Fields | None = None

    def asked_for(self, events: bytes) -> bytes:
        """What the user gets of whole events of the chat."""
        told: list[bytes] = []
        for event in events.split(BETWEEN)[:-1]:
            if event == END_MARK:
                self._end(told)
            else:
                self._read(from_json(event.removeprefix(b"data:")), told)
        return b"".join(told)

    def broken(self, refused: Refused) -> bytes:
        """An event that says why nothing more comes; OpenAI's client raises it."""
        error = refused.body()["error"]
        told: list[bytes] = []
        self._tell(told, "error", error=error, **{name: error[name] for name in ("code", "message", "param")})
        return told[0]

    def _read(self, chunk: Fields, told: list[bytes]) -> None:
        if not self.sequence:
            self.begun["model"] = chunk["model"]
            for kind in ("response.created", "response.in_progress"):
                self._tell(told, kind, response=self.begun)
        self.usage = chunk.get("usage") or self.usage
        for choice in chunk.get("choices") or []:
            delta = choice.get("delta") or {}
            if text := delta.get("content"):
                self._write(told, -1, text, {})
            for place, call in enumerate(delta.get("tool_calls") or []):
                function = call.get("function") or {}
                self._write(told, call.get("index", place), function.get("arguments") or "", {**function, **call})
            self.reason = choice.get("finish_reason") or self.reason

    def _write(self, told: list[bytes], part: int, text: str, about: Fields) -> None:
        """A piece of the text (-1) or of a call."""
        if self.open != part:
            self._close(told)
            self._begin(told, part, about)
        item, place = self.output[-1], len(self.output) - 1
        if part < 0:
            item["content"][0]["text"] += text
            self._tell(told, "response.output_text.delta", **_where(item, place), delta=text, logprobs=[])
        elif text:
            item["arguments"] += text
            self._tell(
                told, "response.function_call_arguments.delta", item_id=item["id"], output_index=place, delta=text
            )

    def _begin(self, told: list[bytes], part: int, about: Fields) -> None:
        self.open, place = part, len(self.output)
        if part < 0:
            item = _message(self.identity, place, "", "in_progress")
        else:
            item = _call(self.identity, place, about.get("id", ""), about.get("name", ""), "", "in_progress")
        self.output.append(item)
        self._tell(told, "response.output_item.added", output_index=place, item=item)
        if part < 0:
            item["content"] = [_part("")]
            self._tell(told, "response.content_part.added", **_where(item, place), part=_part(""))

    def _close(self, told: list[bytes]) -> None:
        if self.open is None:
            return
        item, place = self.output[-1], len(self.output) - 1
        if self.open < 0:
            (part,) = item["content"]
            self._tell(told, "response.output_text.done", **_where(item, place), text=part["text"], logprobs=[])
            self._tell(told, "response.content_part.done", **_where(item, place), part=part)
        else:
            done = {"item_id": item["id"], "output_index": place, "name": item["name"], "arguments": item["arguments"]}
            self._tell(told, "response.function_call_arguments.done", **done)
        item["status"] = "completed"
        self._tell(told, "response.output_item.done", output_index=place, item=item)
        self.open = None

    def _end(self, told: list[bytes]) -> None:
        if not self.output:
            self._begin(told, -1, {})
        self._close(told)
        ended = _ended(self.begun, self.output, self.reason, self.usage)
        self._tell(told, f"response.{ended['status']}", response=ended)

    def _tell(self, told: list[bytes], kind: str, **fields: Any) -> None:
        data = to_json({"type": kind, "sequence_number": self.sequence, **fields})
        told.append(b"event: " + kind.encode() + b"\ndata: " + data + BETWEEN)
        self.sequence += 1


def _where(item: Fields, place: int) -> Fields:
    return {"item_id": item["id"], "output_index": place, "content_index": 0}
