"""Dagster's instance in a fresh state folder."""

import multiprocessing
from pathlib import Path

from resources.instance import open_instance

AT_ONCE = 6


def _open(home: Path, gate, told) -> None:
    gate.wait()
    try:
        told.put(len(open_instance(home).get_runs()))
    except Exception as error:
        told.put(repr(error))


def test_many_open_a_fresh_instance_at_once(tmp_path):
    fork = multiprocessing.get_context("fork")
    gate, told = fork.Barrier(AT_ONCE), fork.Queue()
    processes = [fork.Process(target=_open, args=(tmp_path, gate, told)) for _ in range(AT_ONCE)]
    for process in processes:
        process.start()
    answers = [told.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert answers == [0] * AT_ONCE
