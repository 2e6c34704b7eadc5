"""llama.cpp's own server for one GGUF file, which xllamacpp carries: slots that answer at the same time.

    python -m resources.llama_cpp_server FILE PORT NAME CONTEXT SETTINGS

NAME is what answers call the model, CONTEXT how many tokens a slot holds (llama.cpp rounds it up to 256), SETTINGS a
JSON object of xllamacpp's `CommonParams`. The API key is read from the environment variable KEY_VARIABLE.
"""

import json
import os
import signal
import sys

KEY_VARIABLE = "LLAMA_API_KEY"
SLOTS = 8


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
    # answers as vLLM gives them: a last turn of the assistant is not continued, and nothing is cut out of the text
    parameters.prefill_assistant = False
    parameters.reasoning_format = xllamacpp.common_reasoning_format.COMMON_REASONING_FORMAT_NONE
    parameters.force_pure_content_parser = True
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
