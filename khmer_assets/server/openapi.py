"""The gateway's description of itself, made from the models that check the requests."""

from typing import Any

from pydantic.json_schema import models_json_schema

from khmer_assets.server.requests import BODIES

ERRORS = {
    "400": "what was asked is not possible; the message says why",
    "401": "no key, or one that is unknown or revoked",
    "403": "this key may not use this model",
    "404": "no such model",
    "408": "the request came too slowly",
    "413": "the request is too long",
    "429": "this key has used what it may; Retry-After tells how long to wait",
    "503": "no engine runs; Retry-After tells how long to wait",
}


def description(models: list[str]) -> dict[str, Any]:
    """OpenAPI 3.1, of a gateway that serves the models of these names."""
    _, schemas = models_json_schema(
        [(body, "validation") for body in BODIES.values()], ref_template="#/components/schemas/{model}"
    )
    for body in BODIES.values():
        if models:
            schemas["$defs"][body.__name__]["properties"]["model"]["enum"] = models
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    errors = {status: {"description": text, "content": error} for status, text in ERRORS.items()}
    answer = {"200": {"description": "as OpenAI answers", "content": {"application/json": {}, "text/event-stream": {}}}}
    paths: dict[str, Any] = {
        path: {
            "post": {
                "summary": body.__doc__,
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{body.__name__}"}}},
                },
                "responses": answer | errors,
            }
        }
        for path, body in BODIES.items()
    }
    listed = {"200": {"description": "the served models", "content": {"application/json": {}}}, "401": errors["401"]}
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    paths["/v1/models"] = {"get": {"responses": listed}}
    paths["/v1/models/{name}"] = {"get": {"parameters": [name], "responses": listed | {"404": errors["404"]}}}
    text = {"type": ["string", "null"]}
    fields = {"message": {"type": "string"}, "type": {"type": "string"}, "param": text, "code": text}
    inner = {"type": "object", "properties": fields, "required": list(fields)}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Khmer LLM factory", "version": "1"},
        "paths": paths,
        "components": {
            "schemas": schemas["$defs"]
            | {"Error": {"type": "object", "properties": {"error": inner}, "required": ["error"]}},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}],
    }
