"""vLLM's environment: the project's own, or the one that the operator names."""

import fcntl
import os
import sys
from concurrent.futures import ThreadPoolExecutor, wait

import pytest

from khmer_assets.foundation import environments
from khmer_assets.server import vllm


def test_the_projects_environment_is_waited_for_while_it_is_built(tmp_path, monkeypatch):
    monkeypatch.setattr(environments, "VLLM", tmp_path)
    monkeypatch.delenv(vllm.VLLM_PYTHON_VARIABLE, raising=False)
    builder = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(builder, fcntl.LOCK_EX)
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(vllm.vllm_environment)
        assert wait([asked], timeout=0.3).not_done
        os.close(builder)
        assert isinstance(asked.exception(timeout=60), vllm.ModelServerError)  # nothing was built


def test_who_names_another_environment_does_not_wait_for_ours(tmp_path, monkeypatch):
    monkeypatch.setattr(environments, "VLLM", tmp_path)
    monkeypatch.setenv(vllm.VLLM_PYTHON_VARIABLE, sys.executable)
    builder = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(builder, fcntl.LOCK_EX)
    with pytest.raises(vllm.ModelServerError, match="has no vLLM"):
        vllm.vllm_environment()
    os.close(builder)
