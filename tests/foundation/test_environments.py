"""The environments that `make run` builds while the graph runs: who needs one waits for it."""

import fcntl
import os
from concurrent.futures import ThreadPoolExecutor, wait

from khmer_assets.foundation.environments import is_being_built, wait_until_built


def test_who_needs_an_environment_waits_while_it_is_built(tmp_path):
    builder = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(builder, fcntl.LOCK_EX)
    assert is_being_built(tmp_path)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(wait_until_built, tmp_path)
        assert wait([waiting], timeout=0.3).not_done
        os.close(builder)
        waiting.result(timeout=60)
    assert not is_being_built(tmp_path)


def test_an_environment_that_nobody_builds_is_not_waited_for(tmp_path):
    assert not is_being_built(tmp_path / "none")
    wait_until_built(tmp_path / "none")
