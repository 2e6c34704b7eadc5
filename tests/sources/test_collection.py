"""What a source that fetches keeps: every item once, every row for good, failures until they are mended."""

import pytest

from khmer_assets.sources.collection import Collection


@pytest.fixture
def file(tmp_path):
    return tmp_path / "collections" / "news.sqlite"


def texts(collection):
    return [row["text"] for row in collection.rows()]


def test_items_wait_in_order_until_they_are_finished(file):
    with Collection(file) as collection:
        collection.add([("/a", {"depth": 0}), ("/b", {"depth": 1}), ("/a", {"depth": 9})])
        collection.finish("/a", [{"text": "ភ្លៀងធ្លាក់"}], found=[("/c", {"depth": 1}), ("/b", {"depth": 2})])
    with Collection(file) as collection:
        assert collection.waiting() == [("/b", {"depth": 1}), ("/c", {"depth": 1})]
        assert collection.waiting(limit=1) == [("/b", {"depth": 1})]
        assert texts(collection) == ["ភ្លៀងធ្លាក់"]


def test_a_transaction_that_breaks_leaves_nothing(file):
    def rows():
        yield {"text": "ពាក់កណ្តាល"}
        raise RuntimeError

    with Collection(file) as collection:
        collection.add([("/a", {})])
        with pytest.raises(RuntimeError):
            collection.finish("/a", rows())
        assert texts(collection) == []
        assert collection.waiting() == [("/a", {})]


def test_a_refresh_adds_what_changed_and_keeps_what_was_there(file):
    with Collection(file) as collection:
        collection.finish("/a", [{"text": "ព័ត៌មានដំបូង"}])
        collection.reopen()
        collection.finish("/a", [{"text": "ព័ត៌មានដំបូង"}])
        assert texts(collection) == ["ព័ត៌មានដំបូង"]
        collection.reopen(["/a"])
        collection.finish("/a", [{"text": "ព័ត៌មានដែលបានកែ"}])
        assert texts(collection) == ["ព័ត៌មានដំបូង", "ព័ត៌មានដែលបានកែ"]
        assert len({row["id"] for row in collection.rows()}) == 2


def test_a_failure_stands_until_the_item_is_read(file):
    with Collection(file) as collection:
        collection.finish("/a", [{"text": "", "rule": "unreachable", "reason": "/a: no answer"}])
        assert collection.counts() == {"waiting": 0, "done": 1, "rows": 1, "failures": 1}
        collection.finish("/a", [{"text": "ឥឡូវមានហើយ"}], info={"etag": "1"})
        assert collection.counts()["failures"] == 0
        assert texts(collection) == ["ឥឡូវមានហើយ"]
        assert collection.info("/a") == {"etag": "1"}
        assert collection.info("/b") is None


def test_bytes_that_are_no_characters_are_kept(file):
    with Collection(file) as collection:
        collection.store([("/a", {"text": "ខូច\udcff"})])
        assert texts(collection) == ["ខូច\udcff"]


def test_notes_are_remembered(file):
    with Collection(file) as collection:
        collection.note("since", "2026-01-01")
        collection.note("since", "2026-02-01")
    with Collection(file) as collection:
        assert collection.noted("since") == "2026-02-01"
        assert collection.noted("until") is None
