"""A model behind a server that speaks OpenAI's protocol (vLLM, this project's gateway, a hosted one): asked in words,
each text in a request of its own, so that nothing in a batch is of our making.

Chats go to /chat/completions, greedy with every setting spelled out. Choices are scored where /completions repeats a
prompt with its log-probabilities (`echo`) and /tokenize tells where a context ends; vLLM and our gateway before it do.
Other servers cannot score, and answer chats alone.
"""

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx

from khmer_assets.evaluation.examination import Answer, Examiner, Messages
from khmer_assets.evaluation.items import Item
from khmer_assets.teachers.settings import Teacher
from resources.payload import Refusal

KEY_VARIABLE = "OPENAI_API_KEY"  # as OpenAI's own clients have it
AT_A_TIME = 16
SECONDS = 600.0
TRIES = 5  # where a server is busy
MOST_BYTES = 1 << 26  # of an answer
GREEDY = {"temperature": 0, "top_p": 1, "frequency_penalty": 0, "presence_penalty": 0}
# what a server may not know: vLLM would else take a penalty from the model's generation_config; log-probabilities
EXTRAS: tuple[dict[str, Any], ...] = (
    {"repetition_penalty": 1.0, "logprobs": True},
    {"logprobs": True},
    {"repetition_penalty": 1.0},
    {},
)
TOO_LONG = ("context_length_exceeded", "maximum context length", "max_model_len", "longer than the maximum")

T = TypeVar("T")
R = TypeVar("R")


def is_address(model: str) -> bool:
    """Whether a model is named by where it is served: http://127.0.0.1:8000/v1#NAME."""
    return model.startswith(("http://", "https://"))


class RemoteExamination(Examiner):
    """Asks a server. Raises `Refusal` for one that cannot be asked at all. `context_length` in tokens is the server's
    where it tells it."""

    def __init__(self, model: str, max_new_tokens: int, context_length: int):
        address, _, self.name = model.partition("#")
        try:
            self.address = Teacher(name="served", address=address, model=self.name).address
        except ValueError:
            raise Refusal(
                f"{model}: expected the address of a server and its model's name, as http://127.0.0.1:8000/v1#khmer"
            ) from None
        self.max_new_tokens = max_new_tokens
        on_this_machine = (urlsplit(self.address).hostname or "") in ("127.0.0.1", "localhost", "::1")
        key = os.environ.get(KEY_VARIABLE, "").strip()
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=SECONDS,
            limits=httpx.Limits(max_connections=AT_A_TIME),
            trust_env=not on_this_machine,  # without the environment's proxy
        )
        self.context_length = min(context_length, self._told_length() or context_length)
        self._extras = self._understood()
        self.can_score = self._scores()

    def answers(self, chats: Sequence[Messages]) -> list[Answer]:
        return self._many(self._answer, chats)

    def picks(self, items: Sequence[Item]) -> tuple[list[list[float]], int]:
        found = self._many(self._likelihoods, items)
        return [likelihoods for likelihoods, _ in found], sum(cut for _, cut in found)

    def _answer(self, messages: Messages) -> Answer:
        asked = {"messages": list(messages), "max_tokens": self.max_new_tokens, **GREEDY, **self._extras}
        status, told = self._post("/chat/completions", asked)
        if status == 400:  # one that is too long, or that its guard keeps back, is not answered
            return Answer("", 0, 0.0, too_long=any(words in str(told) for words in TOO_LONG))
        choice = self._whole(status, told)["choices"][0]
        listed = (choice.get("logprobs") or {}).get("content") or []
        likelihoods = [float(one["logprob"]) for one in listed]
        mean = sum(likelihoods) / len(likelihoods) if likelihoods else 0.0
        return Answer(str(choice["message"]["content"] or "").strip(), len(likelihoods), mean, too_long=False)

    def _likelihoods(self, item: Item) -> tuple[list[float], bool]:
        """The log-likelihood of each choice after the prompt, and whether that lost its beginning."""
        context, choices = item.prompt, [f" {choice}" for choice in item.choices]
        longest = max(choices, key=len)
        cut = False
        # the server wants room for a token of its own
        while (over := self._count(context + longest) + 1 - self.context_length) > 0 and context:
            share = over / max(1, self._count(context))
            context, cut = context[max(1, math.ceil(len(context) * share)) :], True
        before = self._count(context)
        return [self._echoed(context + choice, before) for choice in choices], cut

    def _echoed(self, text: str, before: int) -> float:
        """The log-likelihood of the text's tokens after the first `before` ones, of the last one at least."""
        asked = {"prompt": text, "max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": True}
        told = self._whole(*self._post("/completions", asked))
        listed, length = told["choices"][0]["logprobs"]["token_logprobs"], int(told["usage"]["prompt_tokens"])
        if not 0 < length <= len(listed):
            raise Refusal(f"{self.address} tells {len(listed)} log-probabilities of a prompt of {length} tokens")
        return sum(-math.inf if one is None else float(one) for one in listed[min(before, length - 1) : length])

    def _count(self, text: str) -> int:
        """How many tokens the model reads the text as."""
        told = self._whole(*self._post("/tokenize", {"prompt": text}, self.address.removesuffix("/v1")))
        return len(told["tokens"])

    def _scores(self) -> bool:
        try:
            return self._count("1 2 3") > 1 and math.isfinite(self._echoed("1 2 3", 1))
        except (Refusal, LookupError, TypeError, ValueError):
            return False

    def _told_length(self) -> int | None:
        """Tokens that the model reads, where the server tells that."""
        status, told = self._request("GET", f"{self.address}/models", None)
        listed = self._whole(status, told).get("data")
        models = {str(one.get("id")): one for one in listed or [] if isinstance(one, dict)}
        if models and self.name not in models:
            raise Refusal(f"{self.address} serves {', '.join(models)[:300]}, expected {self.name or 'a name after #'}")
        length = models.get(self.name, {}).get("max_model_len")
        return length if isinstance(length, int) and length > 1 else None

    def _understood(self) -> dict[str, Any]:
        """The most of `EXTRAS` that the server takes."""
        hello = {"messages": [{"role": "user", "content": "1"}], "max_tokens": 1, **GREEDY}
        status, told, extras = 0, dict[str, Any](), EXTRAS[0]
        for extras in EXTRAS:
            status, told = self._post("/chat/completions", {**hello, **extras})
            if status not in (400, 422):
                break
        self._whole(status, told)
        return extras

    def _many(self, function: Callable[[T], R], things: Iterable[T]) -> list[R]:
        try:
            with ThreadPoolExecutor(AT_A_TIME) as pool:
                return list(pool.map(function, things))
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise Refusal(f"{self.address} answers with what is none of OpenAI's: {error!r:.200}") from None

    def _post(self, path: str, fields: Mapping[str, Any], address: str | None = None) -> tuple[int, dict[str, Any]]:
        return self._request("POST", f"{address or self.address}{path}", {"model": self.name, **fields})

    def _request(self, method: str, url: str, body: Mapping[str, Any] | None) -> tuple[int, dict[str, Any]]:
        """Status and answer; asked again while the server is busy. Raises `Refusal` where none comes."""
        status, content = 0, b""
        for again in range(TRIES):
            if again:
                time.sleep(2.0**again)
            try:
                with self._client.stream(method, url, json=body) as response:
                    status, content = response.status_code, b""
                    for part in response.iter_bytes():
                        content += part
                        if len(content) > MOST_BYTES:
                            raise Refusal(f"{self.address} sends an answer of more than {MOST_BYTES:,} bytes")
            except httpx.HTTPError as error:
                if again == TRIES - 1 or isinstance(error, httpx.ConnectError):
                    told = f"{type(error).__name__}: {error}"[:200]
                    raise Refusal(f"{self.address} gives no answer ({told}); start the server, or try later") from None
                continue
            if status not in (429, 500, 502, 503, 504):
                break
        try:
            told = json.loads(content)
        except (ValueError, RecursionError):
            told = content[:200].decode(errors="replace")
        return status, told if isinstance(told, dict) else {"error": str(told)[:200]}

    def _whole(self, status: int, told: dict[str, Any]) -> dict[str, Any]:
        """The answer. Raises `Refusal` for an error."""
        if status in (401, 403):
            raise Refusal(f"{self.address} refuses the key; put the server's own into {KEY_VARIABLE}")
        if status != 200:
            error = told.get("error", told)
            reason = error.get("message", error) if isinstance(error, dict) else error
            raise Refusal(f"{self.address} refuses with status {status}: {str(reason)[:300]}")
        return told
