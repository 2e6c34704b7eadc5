"""The turns of a chat, as users send them. What does not belong here: the rest of a request (`requests.py`).

Of a turn, only what the model reads is read: clients send whole answers of any server again.
"""

import json
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from khmer_assets.server.structure import FunctionName, depth_of

MAX_DEPTH = 64  # of arguments: templates write them by functions that call themselves
Text = Annotated[str, Field(max_length=16_777_216)]


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
        """What it says."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)

    def read(self) -> str:
        """All of it that the model reads."""
        return self.text()


class Message(Turn):
    """A turn that says something."""

    role: Literal["system", "developer", "user"]


_TEXT_OR_NOTHING = BeforeValidator(
    lambda content: "" if content is None else content, json_schema_input_type=Content | None
)


def _an_object(arguments: str) -> str:
    try:
        if not arguments.strip():
            return "{}"  # of a function that takes none
        if isinstance(found := json.loads(arguments), dict) and depth_of(found) <= MAX_DEPTH:
            return arguments
    except (ValueError, RecursionError):
        pass
    raise ValueError(f"expected a JSON object, at most {MAX_DEPTH} deep; a call that was cut cannot be sent again")


class Called(BaseModel):
    """The function that the model has called. Templates write the arguments as an object."""

    model_config = ConfigDict(extra="ignore", strict=True)

    name: FunctionName
    arguments: Annotated[Text, AfterValidator(_an_object)]


class ToolCall(BaseModel):
    """A call, as the answer had it."""

    model_config = ConfigDict(extra="ignore", strict=True)

    id: Annotated[str, Field(min_length=1, max_length=256)]
    type: Literal["function"] = "function"
    function: Called


class AssistantMessage(Turn):
    """A turn of the model: an answer as it came, which has no text where tools were called."""

    role: Literal["assistant"]
    content: Annotated[Content, _TEXT_OR_NOTHING] = ""
    tool_calls: Annotated[list[ToolCall], Field(max_length=128)] | None = None

    def read(self) -> str:
        """The text and the calls."""
        return self.text() + "".join(call.function.name + call.function.arguments for call in self.tool_calls or [])


class ToolMessage(Turn):
    """What a function has returned."""

    role: Literal["tool"]
    tool_call_id: Annotated[str, Field(min_length=1, max_length=256)]


AnyMessage = Annotated[Message | AssistantMessage | ToolMessage, Field(discriminator="role")]
