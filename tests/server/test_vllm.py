"""vLLM's environment, which `make run` builds while the graph runs."""

import fcntl
import os
import sys
from concurrent.futures import ThreadPoolExecutor, wait

from khmer_assets.server import vllm


def test_who_needs_vllm_waits_while_its_environment_is_built(tmp_path, monkeypatch):
    monkeypatch.setattr(vllm, "ENVIRONMENT", tmp_path)
    monkeypatch.setenv(vllm.VLLM_PYTHON_VARIABLE, sys.executable)
    builder = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(builder, fcntl.LOCK_EX)
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(vllm.vllm_environment)
        assert wait([asked], timeout=0.3).not_done
        os.close(builder)
        assert isinstance(asked.exception(timeout=60), vllm.ModelServerError)  # this Python has no vLLM
