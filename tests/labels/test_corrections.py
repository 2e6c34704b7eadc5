"""What persons say is read line by line, counts more than what teachers say, and what is no correction is set aside."""

import json

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from khmer_assets.labels.categories import LABELLED, PERSON
from khmer_assets.labels.corrections import read_corrections, with_corrections
from khmer_assets.sources.documents import content_hash
from tests.labels.conftest import labelled_documents, text_of


@pytest.fixture
def read(tmp_path, categories):
    def rows(*lines: object) -> pl.DataFrame:
        text = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
        (tmp_path / "corrections.jsonl").write_text("\n".join(text), encoding="utf-8")
        return read_corrections(tmp_path / "corrections.jsonl", categories)

    return rows


def test_a_persons_word_takes_the_place_of_the_teachers_and_what_he_leaves_out_stays(read):
    labelled = labelled_documents("news", 6)
    corrections = read(
        {"source": "news", "id": "news-1", "topics": ["law", "politics"]},
        {"text": text_of(2)[0], "accuracy": 0},
        {"text": "តុលាការកំពូលបានប្រកាសសាលដីកា។", "topics": ["law"]},
        {"source": "news", "id": "news-999", "topics": ["law"]},
    )
    rows, unknown = with_corrections(labelled, corrections.select(*LABELLED))
    assert unknown == 1
    assert rows.height == 7
    first, second, own = (rows.row(place, named=True) for place in (1, 2, 6))
    assert (first["topics"], first["teacher"], first["claim"]) == (["law", "politics"], PERSON, "unknown")
    assert (second["accuracy"], second["coherence"], second["teacher"]) == (0, 2, PERSON)
    assert second["quality"] == labelled.row(2, named=True)["quality"] - 3
    assert (own["topics"], own["validity"], own["quality"]) == (["law"], None, None)
    assert rows["teacher"].to_list().count("sage") == 4


def test_the_last_of_several_lines_about_one_document_counts(read):
    rows = read({"source": "a", "id": "1", "topics": ["law"]}, {"source": "a", "id": "1", "topics": ["food"]},
                {"source": "b", "id": "1", "topics": ["arts"]})  # fmt: skip
    assert rows["rule"].to_list() == ["corrected_again", None, None]
    assert rows["topics"].to_list()[1] == ["food"]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "line 2: Expecting property name"),
        ([1], "line 2: expected an object, found list"),
        ({"topics": ["law"]}, "line 2: expected `id` and `source` of a labelled document, or a `text`"),
        ({"text": "ច្បាប់"}, "line 2: says nothing: give one of validity, claim, toxicity"),
        ({"text": "ច្បាប់", "topics": ["laws"]}, "line 2: topics.0: 'laws' is not one of"),
        ({"text": 5, "topics": ["law"]}, "line 2: text is no string"),
        ({"text": "ច្បាប់", "accuracy": 4}, "line 2: accuracy: 4 is greater than the maximum of 3"),
        ('{"text": "\\ud800", "topics": ["law"]}', "line 2: 'utf-8' codec can't encode"),
        ("[" * 100_000, "line 2: maximum recursion depth"),
        ('{"text": "' + "ក" * 1_000_001 + '"}', "line 2: the line has more than 1,000,000 characters"),
    ],
)
def test_a_line_that_is_no_correction_is_set_aside_with_its_reason(read, line, told):
    rows = read({"text": "ច្បាប់", "topics": ["law"]}, line, {"text": "ម្ហូប", "topics": ["food"]})
    assert rows["rule"].to_list() == [None, "no_correction", None]
    assert rows["reason"][1].startswith(told)
    assert rows["content_hash"][0] == content_hash("ច្បាប់")


@settings(max_examples=50)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["id", "text", "source", "topics", "accuracy", "claim"]), inner)
        ),
        max_leaves=9,
    )
)
def test_no_line_ends_the_reading(tmp_path, categories, value):
    file = tmp_path / "any.jsonl"
    file.write_text(json.dumps(value) + "\n")
    rows = read_corrections(file, categories)
    assert rows.height <= 1
    with_corrections(labelled_documents("news", 2), rows.filter(pl.col("rule").is_null()).select(*LABELLED))


def test_a_file_that_is_not_there_is_told(tmp_path, categories):
    with pytest.raises(OSError, match="No such file"):
        read_corrections(tmp_path / "gone.jsonl", categories)
    with pytest.raises(OSError, match="is a folder"):
        read_corrections(tmp_path, categories)
