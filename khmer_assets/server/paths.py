"""Which path takes which body, and what is told of one that cannot be taken."""

from pydantic import ValidationError

from khmer_assets.server.refusals import Refused
from khmer_assets.server.requests import Body, Chat, Completion, Embeddings, Tokenization
from khmer_assets.server.responses import Responses

CHARACTERS_A_TOKEN = 32  # no prompt is shorter in tokens than this, on average: one that must be is not even tokenized
BODIES: dict[str, type[Body]] = {
    "/v1/chat/completions": Chat,
    "/v1/completions": Completion,
    "/v1/embeddings": Embeddings,
    "/v1/responses": Responses,
    "/tokenize": Tokenization,
}


# of the answer; what is above the model's length is lowered to it
LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
ENGINE_PATHS = {"/v1/responses": "/v1/chat/completions"}  # where an engine is asked something else than the gateway


def parse(kind: type[Body], body: bytes, max_model_length: int) -> Body:
    """The checked body. Raises `Refused` (400) with the first mistakes, a clause each.

    `max_model_length` is in tokens; prompts that cannot fit are refused by their characters, the others are left to
    the engine, which counts their tokens. A limit of the answer above it is lowered to it: clients ask for as many
    tokens of any model (Open WebUI's titles: 1,000), which vLLM refuses and llama.cpp does not.
    """
    try:
        request = kind.model_validate_json(body)
    except ValidationError as error:
        mistakes = [mistake for mistake in error.errors(include_url=False, include_context=False)][:3]
        places = [".".join(map(str, mistake["loc"])) for mistake in mistakes]
        clauses = [
            (f"{place}: " if place else "") + mistake["msg"].removeprefix("Value error, ")
            for place, mistake in zip(places, mistakes, strict=True)
        ]
        raise Refused(400, "; ".join(clauses), parameter=places[0] or None, code="invalid_value") from None
    characters = request.longest()
    if characters > max_model_length * CHARACTERS_A_TOKEN:
        raise Refused(
            400,
            f"the prompt has {characters:,} characters; the model reads {max_model_length:,} tokens, "
            "prompt and answer together",
            code="context_length_exceeded",
        )
    above = [name for name in LIMITS if (getattr(request, name, None) or 0) > max_model_length]
    return request.model_copy(update=dict.fromkeys(above, max_model_length))
