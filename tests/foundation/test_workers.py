"""Work on all cores keeps its order, and reads ahead only so far."""

from concurrent.futures import Future

from khmer_assets.foundation import workers


def test_many_things_come_out_of_many_processes_in_their_order():
    things = list(range(300))
    assert list(workers.in_parallel(sorted, things)) == things


def test_no_more_is_read_ahead_than_the_cores_can_wait_for(monkeypatch):
    monkeypatch.setattr(workers, "cores", lambda: 2)
    read = []

    def submit(thing: int) -> Future[int]:
        read.append(thing)
        future: Future[int] = Future()
        future.set_result(-thing)
        return future

    results = workers.in_order(submit, range(100))
    assert next(results) == 0
    assert len(read) == 2 * workers.WAITING
    assert list(results) == [-thing for thing in range(1, 100)]
