"""`khmer run`: one at a time in a home."""

import fcntl
import subprocess
import sys

from khmer_assets.foundation.home import PROJECT


def test_the_second_of_two_runs_says_who_is_at_work_and_ends(tmp_path):
    with (tmp_path / "run.lock").open("w") as first:
        first.write("process 4711, since noon")
        first.flush()
        fcntl.flock(first, fcntl.LOCK_EX)
        second = subprocess.run(
            [sys.executable, "-m", "khmer_assets", "run"],
            cwd=PROJECT,
            env={"KHMER_HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
    assert second.returncode == 2
    assert second.stderr == "`khmer run` is at work already (process 4711, since noon); wait for it, or end it\n"
