"""What users may ask of an engine: the request bodies, checked before an engine sees them.

A field of a request that is not here is refused by name rather than dropped, unless it is empty: several of vLLM's own
can stop an engine.
"""

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from khmer_assets.server.events import Events
from khmer_assets.server.messages import AnyMessage, Text, ToolMessage
from khmer_assets.server.refusals import Refused
from khmer_assets.server.structure import JsonOfSchema, Plain, ResponseFormat, Tool, ToolChoice

MAX_TOKENS = 1_000_000


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


WHOLE = BeforeValidator(_whole)  # JSON has one kind of number: 8.0 is 8
Count = Annotated[int, Field(ge=1, le=MAX_TOKENS), WHOLE]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Stop = Annotated[str, Field(min_length=1, max_length=256)]
TokenId = Annotated[str, Field(pattern=r"^[0-9]{1,7}$")]
LogitBias = Annotated[
    dict[TokenId, Annotated[float, Field(ge=-100, le=100)]],
    Field(max_length=1024, json_schema_extra={"additionalProperties": False}),
]
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
]
OR_NOTHING = AfterValidator(lambda value: value or None)  # engines refuse what is empty
EMPTY: list[Any] = [None, [], {}]
Unused = Annotated[Any, Field(exclude=True)]  # what clients send for OpenAI's own bookkeeping


class Body(BaseModel):
    """Strict: a number in quotes is no number. NaN and infinity are none either."""

    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, json_schema_extra={"additionalProperties": {"enum": EMPTY}}
    )

    model: Annotated[str, Field(min_length=1, max_length=256)]
    user: Annotated[str | None, Field(max_length=512, exclude=True)] = None  # the audit record's, not the engine's

    @model_validator(mode="before")
    @classmethod
    def _without_empty_fields(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        return {name: value for name, value in fields.items() if name in cls.model_fields or value not in EMPTY}

    def texts(self) -> list[str]:
        """All that the model will read."""
        raise NotImplementedError

    def longest(self) -> int:
        """Characters of the longest prompt: each is read for itself."""
        return sum(map(len, self.texts()))

    def schemas(self) -> list[dict[str, Any]]:
        """Those of its tools and of the answer."""
        return []

    def schema_characters(self) -> int:
        """How long a schema is that the answer must fit: no model reads it, but the engine must."""
        return 0

    def streams(self) -> bool:
        """Whether the answer comes piece by piece."""
        return False

    def for_engine(self) -> "Body":
        """What an engine is asked."""
        return self

    def events(self, identity: str) -> Events:
        """What of a stream its user gets; `identity` is the record's."""
        return Events(with_usage=False)

    def told(self, answer: bytes, identity: str) -> bytes:
        """What its user gets of a whole answer."""
        return answer


class StreamOptions(BaseModel):
    """OpenAI's."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool | None = None
    include_obfuscation: Unused = None


class Generation(Body):
    """What chats and completions have in common."""

    max_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=MAX_TOKENS), WHOLE] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=2)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    n: Annotated[int, Field(ge=1, le=8), WHOLE] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1), WHOLE] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    logit_bias: Annotated[LogitBias, OR_NOTHING] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    ignore_eos: bool | None = None
    metadata: Annotated[Metadata | None, Field(exclude=True)] = None  # the audit record's too
    store: Unused = None
    service_tier: Unused = None

    @model_validator(mode="after")
    def _temperature_and_choices(self) -> "Generation":
        if self.temperature == 0 and (self.n or 1) > 1:
            raise ValueError("n must be 1 when temperature is 0: all choices would be the same")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is for requests with stream: true")
        return self

    def streams(self) -> bool:
        """Whether the answer comes piece by piece."""
        return bool(self.stream)

    def events(self, identity: str) -> Events:
        """What of a stream its user gets."""
        return Events(with_usage=bool(self.stream_options and self.stream_options.include_usage))


class Chat(Generation):
    """POST /v1/chat/completions"""

    messages: Annotated[list[AnyMessage], Field(min_length=1, max_length=1024)]
    tools: Annotated[list[Tool], Field(max_length=128), OR_NOTHING] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20), WHOLE] | None = None
    response_format: ResponseFormat | None = None
    safety_identifier: Unused = None
    prompt_cache_key: Unused = None

    @model_validator(mode="after")
    def _logprobs(self) -> "Chat":
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs is for requests with logprobs: true")
        return self

    @model_validator(mode="after")
    def _tools_and_choice(self) -> "Chat":
        names = [tool.function.name for tool in self.tools or []]
        if len(set(names)) < len(names):
            raise ValueError("two tools have the same name")
        if isinstance(self.tool_choice, ToolChoice) and self.tool_choice.function.name not in names:
            raise ValueError(f"tool_choice names {self.tool_choice.function.name!r}, which is none of the tools")
        if self.tool_choice == "required" and not names:
            raise ValueError("tool_choice is required, but there are no tools")
        if self.may_call() and not isinstance(self.response_format, Plain | None):
            raise ValueError("response_format and tools: expected one of them, or tool_choice: none")
        return self

    def may_call(self) -> bool:
        """Whether the answer may be a call of a tool."""
        return bool(self.tools) and self.tool_choice != "none"

    def fields_for(self, reads_tools: bool) -> dict[str, Any]:
        """The fields for an engine; `reads_tools`: whether its model does. Raises `Refused` for what needs that."""
        if not reads_tools and self.may_call():
            told = "the served model's chat template has no place for tools, so the model would not see them"
            raise Refused(400, f"tools: {told}", parameter="tools", code="unsupported_parameter")
        if not reads_tools and any(isinstance(message, ToolMessage) for message in self.messages):
            told = "the served model's chat template has no place for what a tool has returned"
            raise Refused(400, f"messages: {told}", parameter="messages", code="unsupported_parameter")
        fields = self.model_dump(exclude_none=True)
        if not self.may_call():
            for name in ("tools", "tool_choice", "parallel_tool_calls"):
                fields.pop(name, None)
        for tool in fields.get("tools", []):
            tool["function"].setdefault(
                "parameters", {"type": "object", "properties": {}, "additionalProperties": False}
            )
        for message in fields["messages"]:
            if not reads_tools:
                message.pop("tool_calls", None)
        return fields

    def texts(self) -> list[str]:
        """The turns, and the tools."""
        tools = [tool.model_dump_json(exclude_none=True) for tool in self.tools or []] if self.may_call() else []
        return [*tools, *(message.read() for message in self.messages)]

    def schema_characters(self) -> int:
        """Those of the answer's."""
        if not isinstance(self.response_format, JsonOfSchema):
            return 0
        return len(json.dumps(self.response_format.json_schema["schema"], ensure_ascii=False))

    def schemas(self) -> list[dict[str, Any]]:
        """Those of the tools and of the answer."""
        found = [tool.function.parameters for tool in self.tools or [] if tool.function.parameters]
        if isinstance(self.response_format, JsonOfSchema):
            found.append(self.response_format.json_schema["schema"])
        return found


class Completion(Generation):
    """POST /v1/completions"""

    prompt: (
        Annotated[str, Field(min_length=1)]
        | Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=64)]
    )
    logprobs: Annotated[int, Field(ge=0, le=20), WHOLE] | None = None
    echo: bool | None = None

    def texts(self) -> list[str]:
        """The prompts."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt

    def longest(self) -> int:
        """Characters of the longest prompt."""
        return max(map(len, self.texts()))


def _no_tokens(value: Any) -> Any:
    if isinstance(value, list) and value and isinstance(value[0], int | list):
        raise ValueError(
            "expected texts, not token ids of another model's; LangChain: check_embedding_ctx_length=False"
        )
    return value


NO_TOKENS = BeforeValidator(_no_tokens)
NotEmpty = Annotated[Text, Field(min_length=1)]


class Embeddings(Body):
    """POST /v1/embeddings"""

    input: Annotated[NotEmpty | Annotated[list[NotEmpty], Field(min_length=1, max_length=256)], NO_TOKENS]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Count | None = None

    def texts(self) -> list[str]:
        """The inputs."""
        return [self.input] if isinstance(self.input, str) else self.input

    def longest(self) -> int:
        """None: the embedder counts for itself."""
        return 0


class Tokenization(Body):
    """POST /tokenize: the token ids of a text, as the engine reads it, also of one that no answer could have."""

    prompt: Annotated[str, Field(max_length=65_536)]
    add_special_tokens: bool | None = None

    def texts(self) -> list[str]:
        """None: the model itself reads nothing."""
        return []
