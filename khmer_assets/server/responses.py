"""POST /v1/responses, the part of it for which nothing must be kept: read as a chat, and told as OpenAI tells it.

What belongs here: the request, and the chat that it stands for. What does not: the answer (`response_answers.py`).
"""

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PrivateAttr,
    Tag,
    ValidationError,
    model_validator,
)

from khmer_assets.server.events import Events
from khmer_assets.server.messages import Called, Text
from khmer_assets.server.requests import OR_NOTHING, Body, Chat, Count, Metadata, Unused
from khmer_assets.server.response_answers import ResponseEvents, response, whole_response
from khmer_assets.server.structure import STRICT, Described, FunctionName, JsonObject, Plain, Schema

READ = ConfigDict(extra="ignore", strict=True)  # items come back as the answer had them


class TextPart(BaseModel):
    """A piece of a text, a user's or the model's."""

    model_config = READ

    type: Literal["input_text", "output_text"]
    text: Text


Texts = Text | Annotated[list[TextPart], Field(min_length=1, max_length=256)]


class MessageItem(BaseModel):
    """A turn that says something."""

    model_config = READ

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Texts


class CallItem(Called):
    """A call of a function, as the answer had it."""

    type: Literal["function_call"]
    call_id: Annotated[str, Field(min_length=1, max_length=256)]


class CallOutputItem(BaseModel):
    """What the function has returned."""

    model_config = READ

    type: Literal["function_call_output"]
    call_id: Annotated[str, Field(min_length=1, max_length=256)]
    output: Texts


def _kind(item: Any) -> Any:
    return item.get("type", "message") if isinstance(item, dict) else getattr(item, "type", None)


Item = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[CallItem, Tag("function_call")]
    | Annotated[CallOutputItem, Tag("function_call_output")],
    Discriminator(_kind),
]


class ResponseTool(BaseModel):
    """A function that the model may call; OpenAI's own tools are not here."""

    model_config = STRICT

    type: Literal["function"]
    name: FunctionName
    description: Described | None = None
    parameters: Schema | None = None
    strict: bool | None = None


class NamedTool(BaseModel):
    """The function that must be called."""

    model_config = STRICT

    type: Literal["function"]
    name: FunctionName


class SchemaFormat(BaseModel):
    """JSON that a schema describes."""

    model_config = STRICT

    type: Literal["json_schema"]
    name: FunctionName
    definition: Annotated[Schema, Field(alias="schema")]
    description: Described | None = None
    strict: bool | None = None


class TextSettings(BaseModel):
    """What the text has to look like."""

    model_config = STRICT

    format: Annotated[Plain | JsonObject | SchemaFormat, Field(discriminator="type")] | None = None


class ResponseStreamOptions(BaseModel):
    """OpenAI's; there is no padding here that could be left out."""

    model_config = STRICT

    include_obfuscation: Unused = None


def _kept(value: Any) -> Any:
    if value is not None and value is not False:  # 0 is neither
        raise ValueError("nothing is kept here from one request to the next; send the turns again in input")
    return value


Nothing = Annotated[Literal[False] | None, BeforeValidator(_kept)]


class Responses(Body):
    """POST /v1/responses"""

    input: Text | Annotated[list[Item], Field(min_length=1, max_length=1024)]
    instructions: Text | None = None
    max_output_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    tools: Annotated[list[ResponseTool], Field(max_length=128), OR_NOTHING] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    text: TextSettings | None = None
    truncation: Literal["disabled"] | None = None
    metadata: Metadata | None = None
    store: Nothing = None
    background: Nothing = None
    previous_response_id: Nothing = None
    conversation: Nothing = None
    safety_identifier: Unused = None
    prompt_cache_key: Unused = None
    service_tier: Unused = None
    _chat: Chat = PrivateAttr()

    @model_validator(mode="after")
    def _is_a_chat(self) -> "Responses":
        fields = {
            "model": self.model,
            "messages": self._messages(),
            "user": self.user,
            "metadata": self.metadata,
            "max_completion_tokens": self.max_output_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "stream": self.stream,
            "tools": [{"type": "function", "function": _without_type(tool)} for tool in self.tools or []],
            "tool_choice": self.tool_choice,
            "parallel_tool_calls": self.parallel_tool_calls,
            "response_format": self._format(),
        }
        if isinstance(self.tool_choice, NamedTool):
            fields["tool_choice"] = {"type": "function", "function": {"name": self.tool_choice.name}}
        try:
            self._chat = Chat.model_validate({name: value for name, value in fields.items() if value is not None})
        except ValidationError as error:
            raise ValueError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None
        return self

    def _format(self) -> dict[str, Any] | None:
        wanted = self.text.format if self.text else None
        if isinstance(wanted, SchemaFormat):
            schema = wanted.model_dump(by_alias=True, exclude_none=True, exclude={"type"})
            return {"type": "json_schema", "json_schema": schema}
        return wanted.model_dump() if wanted else None

    def _messages(self) -> list[dict[str, Any]]:
        """The turns; calls belong to the model's turn before them."""
        turns: list[dict[str, Any]] = []
        if self.instructions:
            turns.append({"role": "system", "content": self.instructions})
        if isinstance(self.input, str):
            return [*turns, {"role": "user", "content": self.input}]
        for item in self.input:
            if isinstance(item, MessageItem):
                turns.append({"role": item.role, "content": _text(item.content)})
            elif isinstance(item, CallOutputItem):
                turns.append({"role": "tool", "tool_call_id": item.call_id, "content": _text(item.output)})
            else:
                if not turns or turns[-1]["role"] != "assistant":
                    turns.append({"role": "assistant", "content": ""})
                function = {"name": item.name, "arguments": item.arguments}
                call = {"id": item.call_id, "type": "function", "function": function}
                turns[-1].setdefault("tool_calls", []).append(call)
        return turns

    def for_engine(self) -> Chat:
        """The chat that it stands for."""
        return self._chat

    def texts(self) -> list[str]:
        """Those of the chat."""
        return self._chat.texts()

    def schemas(self) -> list[dict[str, Any]]:
        """Those of the chat."""
        return self._chat.schemas()

    def events(self, identity: str) -> Events:
        """A stream of OpenAI's events of a response."""
        return ResponseEvents(response(self._settings(), identity))

    def told(self, answer: bytes, identity: str) -> bytes:
        """A chat's whole answer as a response."""
        return whole_response(response(self._settings(), identity), answer)

    def _settings(self) -> dict[str, Any]:
        """What a response repeats of its request."""
        chosen = self.tool_choice
        return {
            "model": self.model,
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "metadata": self.metadata or {},
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "temperature": self.temperature,
            "text": self.text.model_dump(by_alias=True) if self.text else {"format": {"type": "text"}},
            "tool_choice": chosen.model_dump() if isinstance(chosen, NamedTool) else chosen or "auto",
            "tools": [tool.model_dump() for tool in self.tools or []],
            "top_p": self.top_p,
            "user": self.user,
        }


def _without_type(tool: ResponseTool) -> dict[str, Any]:
    return tool.model_dump(exclude={"type"}, exclude_none=True)


def _text(texts: Texts) -> str:
    return texts if isinstance(texts, str) else "".join(part.text for part in texts)
