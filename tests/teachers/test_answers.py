"""Answers and requests stay, whatever ends the process; what was under way is known for what it is."""

import multiprocessing
import sqlite3

import pytest

from khmer_assets.teachers.answers import ANSWERED, Answers, Kept, costs_by_day
from khmer_assets.teachers.limits import Size

LAW = Kept({"topic": "ច្បាប់"}, None, None, None, 7, 3)


def test_answers_are_there_for_the_next_opening(tmp_path):
    with Answers(tmp_path / "a.sqlite") as answers:
        with answers.change():
            number = answers.begin(["d1", "d2"], "labels", 30, Size(100, 50))
        with answers.change():
            answers.end(number, ["d1", "d2"], ANSWERED, Size(7, 3), 0.5, {"d1": LAW})
    with Answers(tmp_path / "a.sqlite") as answers:
        assert answers.known([f"d{n}" for n in range(1200)]) == {"d1": LAW}
    costs = costs_by_day(tmp_path)
    assert costs.row(0, named=True) | {"day": ""} == {
        "day": "", "teacher": "a", "purpose": "labels", "requests": 1, "lost": 0, "prompt_tokens": 7,
        "answer_tokens": 3, "cost": 0.5,
    }  # fmt: skip


def test_what_fails_in_the_middle_leaves_nothing(tmp_path):
    with Answers(tmp_path / "a.sqlite") as answers:
        with pytest.raises(RuntimeError), answers.change():
            answers.begin(["d1"], "", 30, Size(1, 1))
            raise RuntimeError
        assert answers.claimed_elsewhere(["d1"]) == set()


def test_rows_under_way_are_claimed_until_they_are_given_up(tmp_path):
    first, second = Answers(tmp_path / "a.sqlite"), Answers(tmp_path / "a.sqlite")
    with first.change():
        first.begin(["d1"], "", 30, Size(40, 20))
    with second.change():
        assert second.sent_elsewhere() == (1, Size(40, 20))
        assert second.bury() == 0, "the process lives"
        assert second.claimed_elsewhere(["d1", "d2"]) == {"d1"}
        assert second.under_way_elsewhere() == 1
    first.__exit__()
    assert second.claimed_elsewhere(["d1"]) == set()
    second.__exit__()
    assert costs_by_day(tmp_path)["lost"].to_list() == [1]


def test_a_dead_processs_requests_are_lost_and_asked_again(tmp_path):
    first = Answers(tmp_path / "a.sqlite")
    with first.change():
        first.begin(["d1"], "", 30, Size(40, 20))
    with sqlite3.connect(tmp_path / "a.sqlite") as connection:
        connection.execute("UPDATE owners SET process = json_set(process, '$.start_ticks', 1)")
    with Answers(tmp_path / "a.sqlite") as second, second.change():
        assert second.shared
        assert second.bury() == 1
        assert second.claimed_elsewhere(["d1"]) == set()


def test_no_file_is_no_cost(tmp_path):
    assert costs_by_day(tmp_path / "none").height == 0


def _open_all(folder, together, failed):
    for number in range(20):
        together.wait()
        try:
            with Answers(folder / f"{number}.sqlite"):
                pass
        except Exception as error:
            failed.put(repr(error))


@pytest.mark.slow
def test_processes_that_make_a_file_at_once_all_get_it(tmp_path):
    context = multiprocessing.get_context("fork")
    together, failed = context.Barrier(6), context.Queue()
    processes = [context.Process(target=_open_all, args=(tmp_path, together, failed)) for _ in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert failed.empty()
    assert len(list(tmp_path.glob("*.sqlite"))) == 20
