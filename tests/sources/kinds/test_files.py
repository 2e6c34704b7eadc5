"""Files of every usual format become documents; what cannot be used is set aside with a reason that says where."""

import gzip
import io
import json
import os
from pathlib import Path

import polars as pl
import pytest
import zstandard

from khmer_assets.foundation.settings import RecipeError
from khmer_assets.sources import reading
from khmer_assets.sources.catalogue import Source
from khmer_assets.sources.documents import ALL_COLUMNS
from khmer_assets.sources.kinds import files
from khmer_assets.sources.rows import SourceError

ROW = {"id": "a", "title": "ចំណងជើង", "km": "ទន្លេមេគង្គហូរកាត់ក្រុង។", "en": "The river runs through the town."}


_TWO_ROWS = io.BytesIO()
pl.DataFrame({"body": ["x", "y"]}).write_parquet(_TWO_ROWS)
TWO_ROWS = _TWO_ROWS.getvalue()


def source(**settings: object) -> Source:
    return Source(name="s", kind="files", language="khm", license="CC0-1.0", settings=settings)


def read(folder: Path, **settings: object) -> pl.DataFrame:
    return reading.read(source(**settings), folder).collect()


def compressed(name: str, content: bytes) -> bytes:
    if name.endswith(".gz"):
        return gzip.compress(content, mtime=0)
    return zstandard.ZstdCompressor().compress(content) if name.endswith(".zst") else content


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv", ".parquet"])
def test_rows_of_every_format_give_a_document_for_each_text_field(tmp_path, suffix, ending):
    frame = pl.DataFrame([ROW])
    plain = tmp_path / "plain"
    match suffix:
        case ".jsonl":
            frame.write_ndjson(plain)
        case ".csv":
            frame.write_csv(plain)
        case ".tsv":
            frame.write_csv(plain, separator="\t")
        case ".parquet":
            frame.write_parquet(plain)
    name = f"rows{suffix}{ending}"
    (tmp_path / name).write_bytes(compressed(name, plain.read_bytes()))
    found = read(tmp_path, path=name, id="id", title="title", text=["km", "en"])
    assert found.schema == ALL_COLUMNS
    assert found["id"].to_list() == ["s:a:km", "s:a:en"]
    assert found["text"].to_list() == [ROW["km"], ROW["en"]]
    assert found["title"].to_list() == [ROW["title"]] * 2
    assert found["rule"].null_count() == 2


@pytest.mark.parametrize(
    ("split", "texts"),
    [("document", ["one\ntwo\n\nthree\n"]), ("paragraph", ["one\ntwo", "three"]), ("line", ["one", "two", "three"])],
)
def test_text_is_split_as_the_settings_say(tmp_path, split, texts):
    (tmp_path / "a.txt").write_text("one\ntwo\n\nthree\n")
    assert read(tmp_path, path="*.txt", split=split)["text"].to_list() == texts


def test_a_page_gives_its_article_and_keeps_its_word_marks(tmp_path):
    article = "<p>" + "កសិករ\u200bដាំស្រូវនៅរដូវវស្សា ហើយច្រូតកាត់នៅរដូវប្រាំង។ " * 8 + "</p>"
    (tmp_path / "a.html").write_text(
        f"<html><head><title>ស្រូវ</title></head><body><article>{article}</article></body></html>"
    )
    (row,) = read(tmp_path, path="a.html").iter_rows(named=True)
    assert row["text"].count("\u200b") == 8
    assert row["title"] == "ស្រូវ"


def test_addresses_beyond_the_local_disk_are_read(tmp_path):
    from upath import UPath

    UPath("memory://khmer_test/a.txt").write_text("អត្ថបទ")
    assert read(tmp_path, path="memory://khmer_test/*.txt")["text"].to_list() == ["អត្ថបទ"]


def test_an_id_that_is_not_given_is_the_beginning_of_the_content_hash(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    found = read(tmp_path, path="a.txt")
    assert found["id"][0] == f"s:{found['content_hash'][0][:16]}"


@pytest.mark.parametrize(
    ("name", "content", "rule", "place"),
    [
        ("a.jsonl", b'{"text": "whole"}\n{"text": \n', "malformed_row", "a.jsonl, line 2"),
        ("a.jsonl", b'{"text": "whole"}\n["text"]\n', "malformed_row", "a.jsonl, line 2"),
        ("a.jsonl", b'{"text": "whole"}\n{"text": 5}\n', "malformed_row", "a.jsonl, line 2"),
        ("a.jsonl", b'{"text": "whole"}\n{"body": "x"}\n', "missing_text", "a.jsonl, line 2"),
        ("a.jsonl", b'{"text": "whole"}\n{"text": "\\ud800"}\n', "undecodable", "a.jsonl, line 2"),
        ("a.jsonl", b'{"text": "whole"}\n{"text": "\xff"}\n', "undecodable", "a.jsonl, line 2"),
        ("a.jsonl", b'{"text": "whole"}\n{"text": "whole"}\n', "exact_duplicate", "a.jsonl, line 2"),
        ("a.jsonl", b'{"text": "whole"}\n{"text": "x", "text": "y"}\n', "malformed_row", "a.jsonl, line 2"),
        ("a.jsonl", b'{"text": "whole"}\n' + b"[" * 100_000 + b"\n", "malformed_row", "a.jsonl, line 2"),
        ("a.csv", b"text,x\nwhole,1\nonly\n", "malformed_row", "a.csv, line 3"),
        ("a.csv", b'text,x\nwhole,1\n"never closed,2\nmore\n', "malformed_row", "a.csv, lines 3 to 4"),
        ("a.txt.gz", gzip.compress(b"cut off" * 100, mtime=0)[:-12], "unreadable_file", "a.txt.gz"),
        ("a.txt.gz", b"this is no gzip", "unreadable_file", "a.txt.gz"),
        ("a.parquet", b"this is no parquet", "unreadable_file", "a.parquet"),
        ("a.txt", b"", "empty_file", "a.txt"),
        ("a.html", b"<html></html>", "missing_text", "a.html"),
    ],
)
def test_a_bad_row_is_set_aside_and_the_others_stay(tmp_path, name, content, rule, place):
    (tmp_path / name).write_bytes(content)
    found = read(tmp_path, path=name)
    bad = found.filter(pl.col("rule").is_not_null())
    assert bad["rule"].to_list() == [rule]
    assert bad["reason"][0].startswith(place)
    assert found.filter(pl.col("rule").is_null())["text"].to_list() == (["whole"] if b"whole" in content else [])


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.jsonl", b'[{"text": "x"}, {"text": "y"}]', "is one JSON document, and here every line must be an object"),
        ("a.jsonl", b'[\n {\n  "text": "x"\n }\n]\n', "is one JSON document, and here every line must be an object"),
        ("a.jsonl", b'{\n "text": "x"\n}\n', "is one JSON document, and here every line must be an object"),
        ("a.jsonl", '{"text": "ទឹក"}\n'.encode("utf-16"), "is in UTF-16: set encoding: utf-16"),
        ("a.txt", "ទឹកហូរ\nភ្លៀងធ្លាក់".encode("utf-16-be"), "is in UTF-16: set encoding: utf-16-be"),
        ("a.jsonl", gzip.compress(b'{"text": "x"}\n', mtime=0), "is compressed with gzip: let its name end in .gz"),
        ("a.txt", b"PK\x03\x04\x14\x00", "is a zip archive or an office document"),
        ("a.txt", "café".encode("latin-1"), "if the file is not in utf-8, set encoding in settings"),
        ("a.csv", b"text;n\nx;1\n", "'text;n' is one field: commas part those of .csv, tabs those of .tsv"),
        ("a.csv", b"text,text\nx,y\n", "has the column 'text' twice; rename one"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', "holds half of a pair of surrogates"),
        (
            "a.csv",
            b"body,n\nx,1\ny,2\n",
            "no column 'text'; name the one with the texts as 'text' in settings: there are 'b",
        ),
        (
            "a.parquet.gz",
            gzip.compress(TWO_ROWS, mtime=0),
            "no column 'text'; name the one with the texts as 'text' in settings",
        ),
    ],
)
def test_a_file_that_is_not_what_it_should_be_is_told_once_with_what_to_do(tmp_path, name, content, told):
    (tmp_path / name).write_bytes(content)
    (reason,) = read(tmp_path, path=name)["reason"]
    assert reason.startswith(name) and told in reason


def test_line_ends_of_every_system_are_read(tmp_path):
    for number, end in enumerate(("\n", "\r\n", "\r")):
        (tmp_path / f"{number}.csv").write_bytes(end.join(("text,n", "ទឹក,1", "ដី,2")).encode())
        (tmp_path / f"{number}.jsonl").write_bytes(end.join(('{"text": "ភ្នំ"}', '{"text": "ព្រៃ"}')).encode())
        assert read(tmp_path, path=f"{number}.*")["text"].to_list() == ["ទឹក", "ដី", "ភ្នំ", "ព្រៃ"]


def test_what_a_compressed_parquet_unpacks_to_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_UNPACKED_BYTES", 100)
    (tmp_path / "a.parquet.gz").write_bytes(gzip.compress(TWO_ROWS, mtime=0))
    (row,) = read(tmp_path, path="a.parquet.gz").iter_rows(named=True)
    assert row["rule"] == "unreadable_file" and "over 100 bytes when unpacked" in row["reason"]


def test_a_document_over_the_limit_is_set_aside_with_its_beginning(tmp_path, monkeypatch):
    for module in (reading, files):
        monkeypatch.setattr(module, "MAX_DOCUMENT_BYTES", 100)
    (tmp_path / "a.txt").write_text("ក" * 40)
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": "a" * 200}) + '\n{"text": "short"}\n')
    found = read(tmp_path, path=["a.txt", "b.jsonl"])
    assert found["rule"].to_list() == ["too_large", "too_large", None]
    assert found["measure"][0] == 120


def test_nul_bytes_come_through_for_normalization_to_remove(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"a\0b")
    assert read(tmp_path, path="a.txt")["text"].to_list() == ["a\0b"]


def test_an_empty_source_gives_no_kept_rows(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n\n")
    assert read(tmp_path, path="a.jsonl").filter(pl.col("rule").is_null()).is_empty()


def test_missing_data_is_an_error_that_says_what_to_do(tmp_path):
    with pytest.raises(SourceError, match=r"source 's': nothing is at .*none\*\.txt; put the files there"):
        read(tmp_path, path="none*.txt")
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(
        SourceError, match=r"folder\.jsonl is a folder; name the files in it, as .*folder\.jsonl/\*\.jsonl"
    ):
        read(tmp_path, path="*.jsonl")
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(SourceError, match=r"pipe\.txt is a pipe or a device; name a file"):
        read(tmp_path, path="pipe.txt")


def test_a_link_to_nothing_is_set_aside_and_the_other_files_are_read(tmp_path):
    (tmp_path / "a.txt").symlink_to("gone.txt")
    (tmp_path / "b.txt").write_text("ទឹក")
    rows = read(tmp_path, path="*.txt")
    assert rows["rule"].to_list() == ["unreadable_file", None] and "No such file" in rows["reason"][0]


def test_an_unknown_format_is_an_error(tmp_path):
    (tmp_path / "a.docx").write_bytes(b"x")
    with pytest.raises(SourceError, match="no known format"):
        read(tmp_path, path="a.docx")


@pytest.mark.parametrize(
    "settings",
    [{}, {"path": "a", "sheet": 1}, {"path": "a", "encoding": "klingon"}, {"path": "a", "encoding": "base64"}],
)
def test_wrong_settings_are_an_error_in_the_recipe(tmp_path, settings):
    with pytest.raises(RecipeError, match="source 's': settings"):
        read(tmp_path, **settings)
    with pytest.raises(RecipeError, match="source 's': settings"):
        reading.fingerprint(source(**settings), tmp_path)


def test_the_fingerprint_changes_with_the_data_and_with_the_entry_and_with_nothing_else(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("one")
    entry = source(path="*.txt")
    first = reading.fingerprint(entry, tmp_path)
    file.touch()
    assert reading.fingerprint(entry, tmp_path) == first
    assert reading.fingerprint(entry.model_copy(update={"license": "MIT"}), tmp_path) != first
    assert reading.fingerprint(source(path="*.txt", split="line"), tmp_path) != first
    file.write_text("two")
    assert reading.fingerprint(entry, tmp_path) != first


def test_other_encodings_are_read(tmp_path):
    (tmp_path / "a.txt").write_text("ភាសា\nខ្មែរ", encoding="utf-16")
    assert read(tmp_path, path="a.txt", encoding="utf-16", split="line")["text"].to_list() == ["ភាសា", "ខ្មែរ"]
