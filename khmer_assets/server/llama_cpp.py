"""llama.cpp, which runs GGUF files: its process, and what it wants in other words than vLLM.

    python -m khmer_assets.server.llama_cpp FILE PORT NAME CONTEXT SETTINGS

One of the kinds of `engine_kinds.py`. The process is llama.cpp's own server for one GGUF file, which xllamacpp carries:
slots that answer at the same time. NAME is what answers call the model, CONTEXT how many tokens a slot holds (llama.cpp
rounds it up to 256), SETTINGS a JSON object of xllamacpp's `CommonParams`. The API key is read from the environment
variable KEY_VARIABLE.

Requests are translated, or refused where it has none of what they ask for. Its server drops a field that it does not
know; so whatever `requests.py` lets through must be looked at here.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from khmer_assets.foundation.home import PROJECT
from khmer_assets.foundation.processes import PATIENT_THREADS
from khmer_assets.server.kept_models import kept_model
from khmer_assets.server.keys import engine_key
from khmer_assets.server.refusals import Refused
from khmer_assets.server.requests import Body, Chat, Completion, Embeddings, Generation, Tokenization
from khmer_assets.server.state import AdapterVersion, ModelVersion
from khmer_assets.server.structure import ToolChoice, keywords, written_out

KEY_VARIABLE = "LLAMA_API_KEY"
SLOTS = 8
MAX_SCHEMAS = 2000  # it writes each $ref out, and answers nobody meanwhile: a kilobyte can stand for a thousand million
# Keywords of JSON Schema that llama.cpp passes over, and `pattern`, with which it can fail to read its own answer
UNENFORCED = {"pattern", "patternProperties", "propertyNames", "multipleOf", "uniqueItems", "contains", "minContains"}
UNENFORCED |= {"maxContains", "minProperties", "maxProperties", "dependentRequired", "dependentSchemas", "not", "if"}
UNENFORCED |= {"then", "else", "unevaluatedProperties", "unevaluatedItems"}


class LlamaCpp:
    """llama.cpp's server, in this project's own environment. It takes no adapters.

    `reads_tools`: whether the model does.
    """

    def __init__(self, reads_tools: bool = False):
        self.reads_tools = reads_tools

    def require(self, model: Path) -> None:
        """Raise nothing: the file is what makes a model this kind's, and the engine is always installed."""

    def command(
        self, folder: Path, port: int, release: ModelVersion, adapters: tuple[AdapterVersion, ...]
    ) -> tuple[list[str], dict[str, str], Path]:
        """What starts this module as a process."""
        file = gguf_file(kept_model(folder, release.digest))
        settings = [release.names[1], str(release.max_model_length), json.dumps(release.engine)]
        command = [sys.executable, "-m", __name__, str(file), str(port), *settings]
        return command, {KEY_VARIABLE: engine_key(folder), **PATIENT_THREADS}, PROJECT

    def check(self, body: Body) -> None:
        """Raise `Refused` for what llama.cpp cannot do, or answers in another shape than OpenAI."""
        translated(body, self.reads_tools)

    def content(self, body: Body) -> bytes:
        """The body in llama.cpp's words. Raises `Refused` as `check` does."""
        return json.dumps(translated(body, self.reads_tools)).encode()

    def refusal(self, status: int, answer: bytes, path: str) -> Refused | None:
        """The error that llama.cpp has answered, as OpenAI would tell it."""
        try:
            error = json.loads(answer)["error"]
        except (ValueError, KeyError, TypeError):
            return Refused(status, "the served model does not answer this request")
        if error.get("type") == "exceed_context_size_error":
            message = f"the prompt has {error['n_prompt_tokens']:,} tokens; the model reads {error['n_ctx']:,} tokens, "
            return Refused(status, message + "prompt and answer together", code="context_length_exceeded")
        return Refused(status, str(error.get("message")).rpartition("Automatic parser generation failed: ")[2])


def gguf_file(model: Path) -> Path | None:
    """The GGUF file of a model's folder, which llama.cpp serves; None for a transformers folder, which vLLM serves."""
    return next(model.glob("*.gguf"), None)


def translated(body: Body, reads_tools: bool = False) -> dict[str, Any]:
    """The fields to send; `reads_tools`: whether the model does.

    Raises `Refused` for what llama.cpp cannot do, or answers in another shape than OpenAI.
    """
    if isinstance(body, Embeddings):
        raise Refused(404, "the served model does not answer /v1/embeddings")
    fields = body.fields_for(reads_tools) if isinstance(body, Chat) else body.model_dump(exclude_none=True)
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
        if body.logit_bias is not None:  # a text of digits is tokenized
            fields["logit_bias"] = [[int(token), bias] for token, bias in body.logit_bias.items()]
        if body.stream:
            fields |= {"stream_options": {"include_usage": True}, "timings_per_token": True}
    for schema in body.schemas():
        if written_out(schema) > MAX_SCHEMAS:
            raise _unable(
                "$ref", f"written out, this schema holds more than {MAX_SCHEMAS:,}, and this engine writes it out"
            )
        if unknown := UNENFORCED.intersection(keywords(schema)):
            raise _unable(sorted(unknown)[0], "this model's engine does not keep to it; leave it out of the schema")
    if isinstance(body, Chat) and body.may_call():
        fields.setdefault("parallel_tool_calls", True)  # OpenAI's default
        if isinstance(body.tool_choice, ToolChoice):  # it would take an object for "auto"
            name = body.tool_choice.function.name
            fields["tools"] = [tool for tool in fields["tools"] if tool["function"]["name"] == name]
            fields["tool_choice"] = "required"
    if isinstance(body, Chat) and body.logprobs:
        fields["top_logprobs"] = body.top_logprobs or 1  # none would be 20 of them, and 0 no log probabilities at all
    return fields


def _unable(parameter: str, message: str) -> Refused:
    return Refused(400, f"{parameter}: {message}", parameter=parameter, code="unsupported_parameter")


def main() -> None:
    """Serve until SIGTERM. Raises `ValueError` for a setting that llama.cpp does not have."""
    import xllamacpp

    file, port, name, context, settings = sys.argv[1:]
    parameters = xllamacpp.CommonParams()
    parameters.n_parallel = SLOTS
    for setting, value in json.loads(settings).items():
        if not hasattr(parameters, setting):
            raise ValueError(f"llama.cpp has no setting {setting!r}; serving.engine takes those of CommonParams")
        setattr(parameters, setting, value)
    parameters.model.path = file
    parameters.model_alias = {name}
    parameters.hostnames, parameters.port = ["127.0.0.1"], int(port)
    parameters.api_keys = [os.environ[KEY_VARIABLE]]
    parameters.n_ctx = int(context) * parameters.n_parallel
    parameters.fit_params = False  # else it shortens the context where memory is short
    parameters.ui = parameters.endpoint_slots = False
    parameters.verbosity = 1  # errors; else a kilobyte a request
    parameters.sse_ping_interval = -1  # the gateway keeps what streams as it comes, and wants no comments in it
    parameters.cache_ram_mib = 0  # else up to 8 GiB of prompts; the slots keep their last ones anyway
    # Answers as vLLM gives them: a last turn of the assistant is not continued, and nothing but calls of tools is cut
    # out of the text.
    parameters.prefill_assistant = False
    parameters.reasoning_format = xllamacpp.common_reasoning_format.COMMON_REASONING_FORMAT_NONE
    sampling = parameters.sampling  # OpenAI's defaults; penalties see the whole context (for -1 they do nothing)
    sampling.temp, sampling.top_p, sampling.top_k, sampling.min_p = 1.0, 1.0, 0, 0.0
    sampling.penalty_last_n = int(context)
    try:
        server = xllamacpp.Server(parameters)  # its threads serve as long as it is referred to
    except RuntimeError:
        sys.exit("llama.cpp does not start; the lines above say why")
    print(f"serving {name} at {server.listening_address}", flush=True)
    signal.pause()


if __name__ == "__main__":
    main()
