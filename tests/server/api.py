"""What docs/serving.md says of each field, asked of a real engine; `ROWS` has a function for each row of its table,
and one for the frameworks that it names."""

import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from pydantic import BaseModel

from khmer_assets.foundation.home import PROJECT
from tests.server.routers import CAPITAL, NUMBER
from tests.tiny_model import RAIN, TOOL_MODEL_LENGTH, WEATHER

CLOCK: Any = {"type": "function", "function": {"name": "clock"}}
ARGUMENTS = {"city": "ភ្នំពេញ"}
TAKEO = {"type": "object", "properties": {"city": {"const": "តាកែវ"}}, "required": ["city"]}
PLACE: Any = {"type": "function", "function": {"name": "place", "parameters": TAKEO | {"additionalProperties": False}}}
NAMED: Any = {"type": "function", "function": {"name": "weather"}}


@dataclass
class Api:
    """A gateway at `address` before the model of `save_tool_model`. `engine`: vllm or llama.cpp."""

    address: str
    key: str
    engine: str

    def __post_init__(self) -> None:
        http = openai.DefaultHttpxClient(trust_env=False)
        self.client: Any = openai.OpenAI(
            base_url=f"{self.address}/v1", api_key=self.key, max_retries=0, http_client=http
        )

    def chat(self, **fields: Any) -> Any:
        common = {"model": "khmer", "messages": RAIN, "temperature": 0, "max_tokens": 100}
        return self.client.chat.completions.create(**{**common, **fields})

    def said(self, **fields: Any) -> str:
        return str(self.chat(**fields).choices[0].message.content or "")

    def respond(self, **fields: Any) -> Any:
        common = {"model": "khmer", "input": RAIN, "temperature": 0, "max_output_tokens": 100}
        return self.client.responses.create(**{**common, **fields})

    def post(self, path: str, **fields: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.key}"}
        return httpx.post(self.address + path, json=fields, headers=headers, timeout=60, trust_env=False)

    def refused(self, match: str, **fields: Any) -> None:
        with pytest.raises(openai.BadRequestError, match=match):
            self.chat(**fields)


def only_call(message: Any) -> tuple[str, dict[str, str]]:
    (call,) = message.tool_calls
    return call.function.name, json.loads(call.function.arguments)


def streamed(pieces: Any) -> tuple[str, dict[int, list[str]], str | None]:
    """The text, the names and arguments of the calls, and why it ended."""
    text, reason = "", None
    calls: dict[int, list[str]] = {}
    for piece in pieces:
        for choice in piece.choices:
            text += choice.delta.content or ""
            for call in choice.delta.tool_calls or []:
                known = calls.setdefault(call.index, ["", ""])
                known[0] += call.function.name or ""
                known[1] += call.function.arguments or ""
            reason = choice.finish_reason or reason
    return text, calls, reason


def messages(api: Api) -> None:
    first = api.chat(tools=[WEATHER]).choices[0].message
    result = {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": "ភ្លៀងខ្លាំង"}
    turns = [{"role": "developer", "content": [{"type": "text", "text": "ខ្លី"}]}, *RAIN, first, result]
    second = api.chat(messages=turns, tools=[WEATHER], max_tokens=4)
    assert second.usage.prompt_tokens > api.chat(messages=turns[:-2], tools=[WEATHER], max_tokens=4).usage.prompt_tokens
    cut = first.model_copy(deep=True)
    cut.tool_calls[0].function.arguments = '{"city'
    api.refused("expected a JSON object", messages=[*RAIN, cut, result])
    api.refused("content", messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}])


def model(api: Api) -> None:
    assert api.chat(max_tokens=1).model == "khmer-aaaaaaaaaaaa"
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt'"):
        api.chat(model="gpt")


def max_tokens(api: Api) -> None:
    limits: list[dict[str, Any]] = [{"max_tokens": 3}, {"max_completion_tokens": 3, "max_tokens": None}]
    for limit in limits:
        answer = api.chat(**limit)
        assert (answer.usage.completion_tokens, answer.choices[0].finish_reason) == (3, "length")
    endless = api.chat(max_tokens=100_000, extra_body={"ignore_eos": True})
    assert endless.usage.total_tokens == TOOL_MODEL_LENGTH, "what the model reads"


def temperature(api: Api) -> None:
    plain = api.said(max_tokens=16)
    assert plain == api.said(max_tokens=16)
    for other in ({"presence_penalty": 2}, {"frequency_penalty": 2}, {"extra_body": {"repetition_penalty": 2.0}}):
        assert api.said(max_tokens=16, **other) != plain
    for sure in ({"top_p": 0.0001}, {"extra_body": {"top_k": 1}}, {"extra_body": {"min_p": 1.0}}):
        assert api.said(max_tokens=16, **{"temperature": 1, **sure}) == plain
    assert api.chat(max_tokens=150, extra_body={"ignore_eos": True}).usage.completion_tokens == 150


def n(api: Api) -> None:
    if api.engine == "vllm":
        answer = api.chat(n=3, temperature=1, max_tokens=4)
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        assert answer.usage.completion_tokens <= 12
    else:
        api.refused("n: this model gives one choice", n=2, temperature=1)


def seed(api: Api) -> None:
    first, second, other = (api.said(seed=seed, temperature=1, max_tokens=16) for seed in (2**62, 2**62, 5))
    assert first == second != other


def stop(api: Api) -> None:
    whole = api.said(max_tokens=16)
    mark = whole[3:5]
    answer = api.chat(max_tokens=16, stop=[mark]).choices[0]
    assert (answer.message.content, answer.finish_reason) == (whole[: whole.index(mark)], "stop")


def logit_bias(api: Api) -> None:
    token = api.post("/tokenize", model="khmer", prompt="w").json()["tokens"][0]
    assert api.said(logit_bias={str(token): 100}, max_tokens=4) == "wwww"
    api.refused("logit_bias", logit_bias={"w": 1})
    if api.engine == "vllm":
        api.refused("out-of-vocab", logit_bias={"999999": 1})


def logprobs(api: Api) -> None:
    told = api.chat(max_tokens=2, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    assert [len(token.top_logprobs) for token in told] == [2, 2]
    assert all(token.logprob <= 0 and token.logprob == token.top_logprobs[0].logprob for token in told)
    api.refused("top_logprobs is for requests with logprobs: true", top_logprobs=2)
    completion = api.post("/v1/completions", model="khmer", prompt="ភាសា", logprobs=1, echo=True, max_tokens=1)
    assert completion.status_code == (200 if api.engine == "vllm" else 400)


def stream(api: Api) -> None:
    whole = api.said(max_tokens=16)
    *pieces, last = api.chat(max_tokens=16, stream=True, stream_options={"include_usage": True})
    assert streamed(pieces)[0] == whole.removesuffix("�")
    assert last.usage.total_tokens == api.chat(max_tokens=16).usage.total_tokens and not last.choices
    assert all(piece.usage is None for piece in api.chat(max_tokens=4, stream=True))
    api.refused("nonsense", stream=True, response_format=schema_format({"type": "nonsense"}))


def tools(api: Api) -> None:
    choice = api.chat(tools=[WEATHER]).choices[0]
    assert (only_call(choice.message), choice.finish_reason) == (("weather", ARGUMENTS), "tool_calls")
    text, calls, reason = streamed(api.chat(tools=[WEATHER], stream=True))
    assert (text, reason, len(calls)) == ("", "tool_calls", 1)
    assert (calls[0][0], json.loads(calls[0][1])) == ("weather", ARGUMENTS)
    assert api.chat(tools=[WEATHER]).usage.prompt_tokens > api.chat().usage.prompt_tokens
    assert only_call(api.chat(tools=[WEATHER], parallel_tool_calls=False).choices[0].message) == ("weather", ARGUMENTS)


def tool_choice(api: Api) -> None:
    assert (
        api.chat(tools=[WEATHER], tool_choice="none", max_tokens=8).usage.prompt_tokens
        == api.chat().usage.prompt_tokens
    )
    if api.engine == "vllm":  # a call from the first token on
        cases = [([WEATHER, PLACE], {"type": "function", "function": {"name": "place"}}), ([PLACE], "required")]
        expected = ("place", {"city": "តាកែវ"})
    else:  # llama.cpp lets a model write before it calls; this one calls when it is shown the weather alone
        cases = [([WEATHER, CLOCK], {"type": "function", "function": {"name": "weather"}}), ([WEATHER], "required")]
        expected = ("weather", ARGUMENTS)
    for offered, choice in cases:
        if api.engine != "vllm" or choice != "required":  # a random model goes on calling, which only a stream shows
            assert only_call(api.chat(tools=offered, tool_choice=choice).choices[0].message) == expected
        _, calls, _ = streamed(api.chat(tools=offered, tool_choice=choice, stream=True))
        assert (calls[0][0], json.loads(calls[0][1])) == expected
    api.refused("none of the tools", tools=[CLOCK], tool_choice=NAMED)
    api.refused("there are no tools", tool_choice="required")


SCHEMA = {
    "type": "object",
    "properties": {"good": {"type": "boolean"}, "crop": {"enum": ["ស្រូវ", None]}, "kind": {"const": "a"}},
    "required": ["good", "crop", "kind"],
    "additionalProperties": False,
}


def schema_format(schema: dict[str, Any]) -> Any:
    return {"type": "json_schema", "json_schema": {"name": "harvest", "strict": True, "schema": schema}}


def response_format(api: Api) -> None:
    found = json.loads(api.said(response_format=schema_format(SCHEMA)))
    assert found.keys() == {"good", "crop", "kind"} and found["crop"] in ("ស្រូវ", None) and found["kind"] == "a"
    text, _, _ = streamed(api.chat(response_format=schema_format(SCHEMA), stream=True))
    assert json.loads(text).keys() == found.keys()
    assert api.said(response_format={"type": "json_object"}, max_tokens=8).lstrip().startswith("{")
    assert api.said(response_format={"type": "text"}) == api.said()
    wrong: dict[str, Any]
    for wrong in ({"type": "nonsense"}, {"not": {}}, {"$ref": "http://localhost/x"}):
        api.refused("Error code: 400", response_format=schema_format(wrong))
    pattern = SCHEMA | {"properties": {"a": {"type": "string", "pattern": "^[a-z]{3}$"}}, "required": ["a"]}
    if api.engine == "vllm":
        assert len(json.loads(api.said(response_format=schema_format(pattern)))["a"]) == 3
    else:
        api.refused("pattern: ", response_format=schema_format(pattern))
    twice = {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(30)}
    many = {"type": "array", "minItems": 10**6, "items": {"type": "string", "minLength": 10**6}}
    for hostile in ({"$defs": {**twice, "d30": {"type": "integer"}}, "$ref": "#/$defs/d0"}, many):
        body = {"model": "khmer", "messages": RAIN, "max_tokens": 4, "response_format": schema_format(hostile)}
        assert api.post("/v1/chat/completions", **body).status_code in (200, 400)
    api.refused("expected one of them", tools=[WEATHER], response_format={"type": "json_object"})


def user(api: Api) -> None:
    assert api.said(user="សុខា", metadata={"class": "៧ក"}, max_tokens=4) == api.said(max_tokens=4)
    api.refused("metadata", metadata={"class": 7})


def store(api: Api) -> None:
    unused: dict[str, Any] = {"store": True, "service_tier": "auto", "safety_identifier": "1", "prompt_cache_key": "1"}
    assert api.said(**unused, max_tokens=4) == api.said(max_tokens=4)


def prompt(api: Api) -> None:
    answer = api.client.completions.create(model="khmer", prompt="ភាសាខ្មែរ", max_tokens=4, temperature=0)
    assert answer.usage is not None and answer.usage.completion_tokens <= 4
    both = api.post("/v1/completions", model="khmer", prompt=["ក", "ខ"], max_tokens=2)
    assert both.status_code == (200 if api.engine == "vllm" else 400)


def other(api: Api) -> None:
    for field in ("guided_json", "chat_template", "best_of", "grammar", "audio"):
        api.refused(f"{field}: Extra inputs", extra_body={field: "x"})
    assert api.said(max_tokens=4, extra_body={"functions": [], "audio": None}) == api.said(max_tokens=4)


def responses(api: Api) -> None:
    answer = api.respond(max_output_tokens=5, instructions="ខ្លី", metadata={"class": "៧ក"})
    assert (answer.status, answer.incomplete_details.reason, answer.usage.output_tokens) == (
        "incomplete",
        "max_output_tokens",
        5,
    )
    tool: Any = {"type": "function", **WEATHER["function"]}
    (call,) = api.respond(tools=[tool]).output
    assert (call.type, call.name, json.loads(call.arguments)) == ("function_call", "weather", ARGUMENTS)
    returned = {"type": "function_call_output", "call_id": call.call_id, "output": "ភ្លៀងខ្លាំង"}
    assert api.respond(input=[*RAIN, call, returned], tools=[tool], max_output_tokens=5).output_text
    with api.client.responses.stream(model="khmer", input=RAIN, tools=[tool], temperature=0) as events:
        kinds = [event.type for event in events]
        last: Any = events.get_final_response().output[0]
    assert kinds[:3] == ["response.created", "response.in_progress", "response.output_item.added"]
    assert kinds[-1] == "response.completed" and json.loads(last.arguments) == ARGUMENTS
    parsed = api.client.responses.parse(model="khmer", input="ស្រូវ", text_format=Flag, temperature=0).output_parsed
    assert isinstance(parsed, Flag)


class Flag(BaseModel):
    """A schema that any engine fills."""

    good: bool


def previous_response_id(api: Api) -> None:
    for kept in ({"previous_response_id": "resp_1"}, {"store": True}, {"background": True}, {"conversation": "conv_1"}):
        with pytest.raises(openai.BadRequestError, match="nothing is kept here"):
            api.respond(**kept)
    with pytest.raises(openai.BadRequestError, match="tools"):
        api.respond(tools=[{"type": "web_search"}])


def embeddings(api: Api) -> None:
    if api.engine == "vllm":
        with pytest.raises(openai.NotFoundError, match=r"serving\.embedder"):
            api.client.embeddings.create(model="khmer", input="ស្រូវ")
        return
    texts = ["ស្រូវ", "ទន្លេមេគង្គ", "ស្រូវ"]
    as_base64 = api.client.embeddings.create(model="khmer-embedding", input=texts)  # which this client asks for
    as_float = api.client.embeddings.create(model="khmer-embedding", input=texts, encoding_format="float")
    vectors = [one.embedding for one in as_base64.data]
    assert vectors == [pytest.approx(one.embedding) for one in as_float.data]
    assert vectors[0] == pytest.approx(vectors[2]) != vectors[1]
    assert [sum(x * x for x in vector) for vector in vectors] == pytest.approx([1, 1, 1], abs=1e-5)
    assert as_base64.usage.prompt_tokens == as_base64.usage.total_tokens > 3
    wrong: list[tuple[str, Any]] = [
        ("cannot be cut", {"dimensions": 3}),
        ("check_embedding", {"input": [1]}),
    ]
    wrong += [("at least 1 character", {"input": ""}), ("at most 256", {"input": ["ក"] * 257})]
    for match, fields in wrong:
        with pytest.raises(openai.BadRequestError, match=match):
            api.client.embeddings.create(**{"model": "khmer-embedding", "input": "ស្រូវ", **fields})
    with pytest.raises(openai.NotFoundError, match="khmer-embedding makes embeddings alone"):
        api.chat(model="khmer-embedding")
    with pytest.raises(openai.NotFoundError, match="khmer-embedding"):
        api.client.embeddings.create(model="khmer", input="ស្រូវ")


def frameworks(api: Api) -> None:
    """See `frameworks.py`."""
    script = Path(__file__).with_name("frameworks.py")
    given = {"address": api.address, "key": api.key, "engine": api.engine}
    given |= {"question": RAIN[0]["content"], "tool": WEATHER}
    python = PROJECT / ".venv-frameworks" / "bin" / "python"  # `make test` builds it
    done = subprocess.run([python, script], input=json.dumps(given), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]


def routed(api: Api) -> None:
    """Of `khmer-auto`, with the router of `routers.py` and the adapter `numbers`: whoever answers says what it says
    when it is asked itself."""
    fields: dict[str, Any] = {"max_tokens": 16, "temperature": 0}
    for question, by_question in ((NUMBER, "khmer-numbers"), (CAPITAL, "khmer")):
        turns = [{"role": "user", "content": question}]
        for stream in (True, False):
            body = {"model": "khmer-auto", "messages": turns, "stream": stream, **fields}
            response = api.post("/v1/chat/completions", **body)
            chosen = response.headers["x-khmer-route"]
            assert response.status_code == 200 and (chosen == by_question or not stream)
            assert ("x-khmer-confidence" in response.headers) is not stream and '"logprob"' not in response.text
            itself = api.post("/v1/chat/completions", **{**body, "model": chosen})
            assert said_in(response) == said_in(itself) != ""
    complaint = [*turns, {"role": "assistant", "content": "ទេ"}, {"role": "user", "content": "ខុសហើយ"}]
    answered = api.post("/v1/chat/completions", model="khmer-auto", messages=complaint, **fields)
    assert answered.status_code == 200


def said_in(response: httpx.Response) -> str:
    """The text of a whole answer, or of a streamed one."""
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith(("data: {", "{"))]
    choices = [choice for line in lines for choice in json.loads(line)["choices"]]
    return "".join((choice.get("delta") or choice.get("message"))["content"] or "" for choice in choices)


ROWS: dict[str, Callable[[Api], None]] = {
    row.__name__: row
    for row in (
        *(messages, model, max_tokens, temperature, n, seed, stop, logit_bias, logprobs, stream, tools, tool_choice),
        *(response_format, user, store, prompt, responses, previous_response_id, embeddings, other, frameworks),
    )
}
