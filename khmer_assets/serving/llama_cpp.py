"""What llama.cpp's server wants in other words than vLLM: requests are translated, or refused where it has none.

Its server drops a field that it does not know; so whatever `requests.py` lets through must be looked at here.
"""

import json
from typing import Any

from khmer_assets.serving.requests import Body, Chat, Completion, Embeddings, Generation, Refused, Tokenization


def translated(body: Body) -> dict[str, Any]:
    """The fields to send. Raises `Refused` for what llama.cpp cannot do, or answers in another shape than OpenAI."""
    if isinstance(body, Embeddings):
        raise Refused(404, "the served model does not answer /v1/embeddings")
    fields = body.model_dump(exclude_none=True)
    if isinstance(body, Tokenization):
        return {"content": body.prompt, "add_special": body.add_special_tokens is not False}
    if isinstance(body, Completion):
        if isinstance(body.prompt, list) and len(body.prompt) > 1:
            raise _unable("prompt", "expected one prompt; send a request for each")
        if body.logprobs is not None:
            raise _unable("logprobs", "this model tells probabilities in chats only")
        if body.echo:
            raise _unable("echo", "this model does not repeat prompts")
    if isinstance(body, Generation):
        if (body.n or 1) > 1:  # llama.cpp would count the tokens of the first choice alone
            raise _unable("n", "this model gives one choice an answer; send a request for each")
        if body.repetition_penalty is not None:
            fields["repeat_penalty"] = fields.pop("repetition_penalty")
        if body.seed is not None:
            fields["seed"] = body.seed % (2**32 - 1)  # of its 32 bits, all ones mean any seed
    if isinstance(body, Chat) and body.logprobs:
        fields["top_logprobs"] = body.top_logprobs or 1  # none would be 20 of them, and 0 no log probabilities at all
    return fields


def refusal(status: int, answer: bytes) -> Refused:
    """The error that llama.cpp has answered, as OpenAI would tell it."""
    try:
        error = json.loads(answer)["error"]
    except (ValueError, KeyError, TypeError):
        return Refused(status, "the served model does not answer this request")
    if error.get("type") == "exceed_context_size_error":
        message = f"the prompt has {error['n_prompt_tokens']:,} tokens; the model reads {error['n_ctx']:,} tokens, "
        return Refused(status, message + "prompt and answer together", code="context_length_exceeded")
    return Refused(status, str(error.get("message")))


def _unable(parameter: str, message: str) -> Refused:
    return Refused(400, f"{parameter}: {message}", parameter=parameter, code="unsupported_parameter")
