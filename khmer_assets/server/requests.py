"""What users may ask of an engine: the request bodies, checked before an engine sees them, and refusals.

A field of a request that is not here is refused by name rather than dropped, unless it is empty: several of vLLM's own
can stop an engine. Of a message, only what the model reads is read: clients send whole answers of any server again.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from khmer_assets.server.refusals import Refused

CHARACTERS_A_TOKEN = 32  # no prompt is shorter in tokens than this, on average: one that must be is not even tokenized
MAX_TOKENS = 1_000_000


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


WHOLE = BeforeValidator(_whole)  # JSON has one kind of number: 8.0 is 8
Text = Annotated[str, Field(max_length=16_777_216)]
Count = Annotated[int, Field(ge=1, le=MAX_TOKENS), WHOLE]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Stop = Annotated[str, Field(min_length=1, max_length=256)]
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

    def streams(self) -> bool:
        """Whether the answer comes piece by piece."""
        return False


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
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    ignore_eos: bool | None = None
    metadata: Unused = None
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


class Part(BaseModel):
    """A piece of a message's text."""

    model_config = ConfigDict(extra="ignore", strict=True)

    type: Literal["text"]
    text: Text


Content = Text | Annotated[list[Part], Field(min_length=1, max_length=256)]


class Turn(BaseModel):
    """What all messages have in common."""

    model_config = ConfigDict(extra="ignore", strict=True)

    content: Content
    name: Annotated[str, Field(max_length=64)] | None = None

    def text(self) -> str:
        """All of it."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class Message(Turn):
    """A turn that says something."""

    role: Literal["system", "developer", "user"]


_TEXT_OR_NOTHING = BeforeValidator(
    lambda content: "" if content is None else content, json_schema_input_type=Content | None
)


class AssistantMessage(Turn):
    """A turn of the model: an answer as it came, which has no text where tools were called."""

    role: Literal["assistant"]
    content: Annotated[Content, _TEXT_OR_NOTHING] = ""


class ResponseFormat(BaseModel):
    """Plain text; a grammar would be compiled by the engine, and may take it any time."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["text"]


class Chat(Generation):
    """POST /v1/chat/completions"""

    messages: Annotated[
        list[Annotated[Message | AssistantMessage, Field(discriminator="role")]], Field(min_length=1, max_length=1024)
    ]
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

    def texts(self) -> list[str]:
        """The turns."""
        return [message.text() for message in self.messages]


class Completion(Generation):
    """POST /v1/completions"""

    prompt: (
        Annotated[str, Field(min_length=1)]
        | Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=64)]
    )
    logprobs: Annotated[int, Field(ge=0, le=20), WHOLE] | None = None
    echo: bool | None = None

    def texts(self) -> list[str]:
        """The longest prompt: each is read for itself."""
        return [self.prompt if isinstance(self.prompt, str) else max(self.prompt, key=len)]


class Embeddings(Body):
    """POST /v1/embeddings"""

    input: Text | Annotated[list[Text], Field(min_length=1, max_length=256)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Count | None = None

    def texts(self) -> list[str]:
        """The longest input: each is read for itself."""
        return [self.input if isinstance(self.input, str) else max(self.input, key=len)]


class Tokenization(Body):
    """POST /tokenize: the token ids of a text, as the engine reads it, also of one that no answer could have."""

    prompt: Annotated[str, Field(max_length=65_536)]
    add_special_tokens: bool | None = None

    def texts(self) -> list[str]:
        """None: the model itself reads nothing."""
        return []


BODIES: dict[str, type[Body]] = {
    "/v1/chat/completions": Chat,
    "/v1/completions": Completion,
    "/v1/embeddings": Embeddings,
    "/tokenize": Tokenization,
}


def parse(kind: type[Body], body: bytes, max_model_length: int) -> Body:
    """The checked body. Raises `Refused` (400) with the first mistakes, a clause each.

    `max_model_length` is in tokens; prompts that cannot fit are refused by their characters, the others are left to
    the engine, which counts their tokens.
    """
    try:
        request = kind.model_validate_json(body)
    except ValidationError as error:
        mistakes = [mistake for mistake in error.errors(include_url=False, include_context=False)][:3]
        places = [".".join(map(str, mistake["loc"])) for mistake in mistakes]
        clauses = [
            f"{place}: {mistake['msg']}" if place else mistake["msg"]
            for place, mistake in zip(places, mistakes, strict=True)
        ]
        raise Refused(400, "; ".join(clauses), parameter=places[0] or None, code="invalid_value") from None
    characters = sum(map(len, request.texts()))
    if characters > max_model_length * CHARACTERS_A_TOKEN:
        raise Refused(
            400,
            f"the prompt has {characters:,} characters; the model reads {max_model_length:,} tokens, "
            "prompt and answer together",
            code="context_length_exceeded",
        )
    return request
