"""The gateway's description of itself: every path, and every status that it can answer with.

The bodies are described by the models that check them. What belongs to no path stands in the description's own words.
"""

from typing import Any

from pydantic.json_schema import models_json_schema

from khmer_assets.server.paths import BODIES
from khmer_assets.server.requests import Body, Chat, Completion, Embeddings, Generation, Tokenization
from khmer_assets.server.responses import Responses
from khmer_assets.server.state import EMBEDDER_NAME

ABOUT = """An OpenAI-compatible gateway. Paths that are not here are answered with 404, other methods with 405 and
`Allow`, and what is no HTTP with 400, before it is known which path was meant."""
ERRORS = {
    "400": "what was asked is not possible; the message says why",
    "401": "no key, or one that is unknown or revoked",
    "403": "this key may not use this model, or its tier is gone",
    "404": "no such model, or not one that can do this",
    "408": "the request came too slowly",
    "413": "the request is too long",
    "429": "this key has used what it may; Retry-After tells how long to wait",
    "431": "the address and the headers are too long",
    "500": "the gateway failed; its log tells why",
    "502": "the engines broke off",
    "503": "no engine runs, or all have too much to do; Retry-After tells how long to wait",
    "504": "no whole answer in time",
}
TEXT_OR_NOTHING = {"type": ["string", "null"]}
COUNT = {"type": "integer", "minimum": 0}
TEXT = {"schema": {"type": "string"}}
ID = {"x-request-id": {"required": True, **TEXT}}
LIMITS = {
    f"x-ratelimit-{figure}-{of}": TEXT for of in ("requests", "tokens") for figure in ("limit", "remaining", "reset")
}
RETRY = {"retry-after": {"required": True, "schema": {"type": "string", "pattern": "^[0-9]+$"}}}


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


MODEL = _object(
    id={"type": "string"},
    object={"const": "model"},
    created=COUNT,
    owned_by={"type": "string"},
    root={"type": "string"},
    parent=TEXT_OR_NOTHING,
    max_model_len={"type": ["integer", "null"], "minimum": 0},
)
ERROR = _object(
    error=_object(message={"type": "string"}, type={"type": "string"}, param=TEXT_OR_NOTHING, code=TEXT_OR_NOTHING)
)
HEALTH = _object(
    status={"enum": ["ok", "unavailable"]},
    release=TEXT_OR_NOTHING,
    engines={"type": "object", "additionalProperties": {"type": "boolean"}},
    running={"type": "object", "additionalProperties": COUNT},
)
GENERATED = _object(
    id={"type": "string"}, model={"type": "string"}, choices={"type": "array"}, usage={"type": "object"}
)
ANSWERS: dict[type[Body], dict[str, Any]] = {
    Chat: GENERATED,
    Completion: GENERATED,
    Embeddings: _object(data={"type": "array"}, model={"type": "string"}, usage={"type": "object"}),
    Responses: _object(
        id={"type": "string"}, model={"type": "string"}, output={"type": "array"}, status={"type": "string"}
    ),
    Tokenization: _object(tokens={"type": "array", "items": COUNT}),
}

EVENTS = {"text/event-stream": {"schema": _object(data={"type": "string"})}}  # of each event
# what `requests.py` checks among fields: each is a choice of two
STREAMED = {"required": ["stream"], "properties": {"stream": {"const": True}}}
SAMPLED = {"properties": {"temperature": {"anyOf": [{"type": "null"}, {"type": "number", "exclusiveMinimum": 0}]}}}
GENERATING = [
    {"anyOf": [STREAMED, {"properties": {"stream_options": {"type": "null"}}}]},
    {"anyOf": [SAMPLED, {"properties": {"n": {"enum": [1, None]}}}]},
]
TOLD = {"required": ["logprobs"], "properties": {"logprobs": {"const": True}}}
RULES: dict[type[Body], list[dict[str, Any]]] = {
    Chat: [*GENERATING, {"anyOf": [TOLD, {"properties": {"top_logprobs": {"enum": [0, None]}}}]}],
    Completion: GENERATING,
}


def description(models: list[str]) -> dict[str, Any]:
    """OpenAPI 3.1, of a gateway that serves the models of these names."""
    _, schemas = models_json_schema(
        [(body, "validation") for body in BODIES.values()], ref_template="#/components/schemas/{model}"
    )
    for body in BODIES.values():
        schema = schemas["$defs"][body.__name__]
        if models:
            schema["properties"]["model"]["enum"] = [EMBEDDER_NAME] if body is Embeddings else models
        if body in RULES:
            schema["allOf"] = RULES[body]
    chosen: dict[str, Any] = {"type": "string", "minLength": 1} | ({"enum": models} if models else {})
    name = {"name": "name", "in": "path", "required": True, "schema": chosen}
    listed = _object(object={"const": "list"}, data={"type": "array", "items": MODEL})
    with_a_key, unwell = ("401", "403", "431", "500"), {"503": _response("no engine answers", _json(HEALTH), {})}
    paths: dict[str, Any] = {path: {"post": _asking(body)} for path, body in BODIES.items()} | {
        "/v1/models": _reading("the models that the key may use", _json(listed), *with_a_key),
        "/v1/models/{name}": {"parameters": [name]} | _reading("one of them", _json(MODEL), *with_a_key, "404"),
        "/health": _reading("whether engines answer, and what they have to do", _json(HEALTH)),
        "/metrics": _reading("figures for Prometheus", {"text/plain": TEXT}),
        "/openapi.json": _reading("this description", _json({"type": "object"})),
        "/": _reading("the chat page", {"text/html": TEXT}),
    }
    paths["/health"]["get"]["responses"] |= unwell
    return {
        "openapi": "3.1.0",
        "info": {"title": "Khmer LLM factory", "version": "1", "description": ABOUT},
        "paths": paths,
        "components": {
            "schemas": schemas["$defs"] | {"Error": ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}],
    }


def _asking(body: type[Body]) -> dict[str, Any]:
    """What an engine answers: OpenAI's events where they were asked for."""
    content = _json(ANSWERS[body]) | (EVENTS if issubclass(body, Generation | Responses) else {})
    sent = _json({"$ref": f"#/components/schemas/{body.__name__}"})
    answer = {"200": _response("as OpenAI answers", content, LIMITS)}
    return {
        "summary": body.__doc__,
        "requestBody": {"required": True, "content": sent},
        "responses": answer | _errors(*ERRORS),
    }


def _reading(told: str, content: dict[str, Any], *errors: str) -> dict[str, Any]:
    """A path that is read with GET; no key is wanted where 401 is not among its errors."""
    responses = {"200": _response(told, content, LIMITS)} | _errors(*(errors or ("431", "500")))
    return {"get": {"summary": told, "responses": responses} | ({} if "401" in errors else {"security": []})}


def _errors(*statuses: str) -> dict[str, Any]:
    error = _json({"$ref": "#/components/schemas/Error"})
    return {
        status: _response(ERRORS[status], error, RETRY if status in ("429", "503") else LIMITS) for status in statuses
    }


def _response(told: str, content: dict[str, Any], headers: dict[str, Any]) -> dict[str, Any]:
    return {"description": told, "headers": ID | headers, "content": content}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}
