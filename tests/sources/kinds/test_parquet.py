"""Parquet tables become documents: FineWeb2's layout by default, only the columns that are named, row by row."""

from datetime import datetime

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from upath import UPath

from khmer_assets.foundation.settings import RecipeError
from khmer_assets.sources import reading
from khmer_assets.sources.catalogue import Source
from khmer_assets.sources.kinds import parquet
from khmer_assets.sources.rows import SourceError
from tests.sources.hosts import Request, Response, host, part

FINEWEB2 = pl.DataFrame(
    {
        "text": ["កសិករច្រូតស្រូវនៅវាលខាងកើត។", "ទូកដរណែងឡើងដល់កំពង់ផែ។"],
        "id": ["<urn:uuid:1>", "<urn:uuid:2>"],
        "dump": ["CC-MAIN-2024-51"] * 2,
        "url": ["https://a.example/1", "https://a.example/2"],
        "date": ["2024-12-01T00:00:00Z", "2024-12-02T00:00:00Z"],
        "file_path": ["s3://commoncrawl/x.warc.gz"] * 2,
        "language": ["khm"] * 2,
        "language_score": [0.99, 0.98],
        "language_script": ["Khmr"] * 2,
        "minhash_cluster_size": [1, 3],
    }
)


def source(**settings: object) -> Source:
    return Source(name="s", kind="parquet", license="ODC-By", settings=settings)


def read(folder, **settings: object) -> pl.DataFrame:
    return reading.read(source(**settings), folder).collect()


def test_the_layout_of_fineweb2_needs_no_settings_but_the_path(tmp_path):
    FINEWEB2.write_parquet(tmp_path / "a.parquet")
    found = read(tmp_path, path="*.parquet")
    assert found["text"].to_list() == FINEWEB2["text"].to_list()
    assert found["id"].to_list() == ["s:<urn:uuid:1>", "s:<urn:uuid:2>"]
    assert found["url"].to_list() == FINEWEB2["url"].to_list()
    assert found["published_at"].to_list() == FINEWEB2["date"].to_list()
    assert found["language"].to_list() == ["khm", "khm"]
    assert found["rule"].null_count() == 2


def test_other_columns_are_named_in_the_settings(tmp_path):
    pl.DataFrame(
        {"body": ["អត្ថបទ"], "head": ["ចំណងជើង"], "section": ["កីឡា"], "at": [datetime(2025, 3, 1)], "n": [7]}
    ).write_parquet(tmp_path / "a.parquet")
    (row,) = read(
        tmp_path, path="a.parquet", text="body", title="head", category="section", published_at="at", id="n"
    ).iter_rows(named=True)
    assert (row["text"], row["title"], row["category"]) == ("អត្ថបទ", "ចំណងជើង", "កីឡា")
    assert (row["id"], row["published_at"], row["url"]) == ("s:7", "2025-03-01T00:00:00", None)


def test_a_limit_ends_the_reading_over_all_files(tmp_path):
    for name in "ab":
        FINEWEB2.with_columns(id=pl.lit(name) + pl.col("id")).write_parquet(tmp_path / f"{name}.parquet")
    assert read(tmp_path, path="*.parquet", limit=3)["id"].to_list() == [
        "s:a<urn:uuid:1>",
        "s:a<urn:uuid:2>",
        "s:b<urn:uuid:1>",
    ]


@pytest.mark.parametrize("as_dictionary", [True, False])
def test_memory_does_not_grow_with_what_a_small_file_unpacks_to(tmp_path, as_dictionary):
    text = "ក" * 400_000
    table = pa.table({"text": [text] * 600})  # 720 MB
    pq.write_table(table, tmp_path / "a.parquet", compression="zstd", use_dictionary=as_dictionary, write_batch_size=8)
    del table
    held = pa.total_allocated_bytes()
    assert (tmp_path / "a.parquet").stat().st_size < 1_000_000
    with (tmp_path / "a.parquet").open("rb") as stream:
        lengths = []
        for row in parquet.read_columns(stream, {"text"}, ["text"]):
            lengths.append(len(row["text"]))
            assert pa.total_allocated_bytes() - held < 250_000_000
    assert lengths == [len(text)] * 600


def test_only_the_named_columns_are_read(tmp_path):
    FINEWEB2.write_parquet(tmp_path / "a.parquet")
    with (tmp_path / "a.parquet").open("rb") as stream:
        assert [set(row) for row in parquet.read_columns(stream, {"text", "url", "none"}, ["text"])] == [
            {"text", "url"}
        ] * 2


@pytest.mark.parametrize(
    ("table", "rule", "reason"),
    [
        ({"text": ["a", None]}, "missing_text", "a.parquet, row 2: 'text' is null"),
        ({"text": ["a", " "]}, "missing_text", "a.parquet, row 2: there is no text"),
        ({"text": [[1]]}, "malformed_row", "a.parquet, row 1: 'text' holds list, expected a text"),
        (
            {"body": ["a", "b"]},
            "missing_column",
            "a.parquet: there is no column 'text'; name the one with the texts as 'text' in ",
        ),
        ({"text": pl.Series([], dtype=pl.String)}, "empty_file", "a.parquet: there is nothing in it"),
    ],
)
def test_a_bad_row_is_set_aside_with_its_place(tmp_path, table, rule, reason):
    pl.DataFrame(table).write_parquet(tmp_path / "a.parquet")
    bad = read(tmp_path, path="a.parquet").filter(pl.col("rule").is_not_null())
    assert bad["rule"].to_list() == [rule]
    assert bad["reason"][0].startswith(reason)


def test_a_file_that_breaks_off_leaves_what_was_read_and_the_other_files(tmp_path):
    rows = pl.DataFrame({"text": [f"{number} ផ្លែឈើទុំ" * 50 for number in range(4000)]})
    rows.write_parquet(tmp_path / "a.parquet", row_group_size=1000, compression="uncompressed")
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    content[len(content) // 2 : len(content) // 2 + 20_000] = b"\xff" * 20_000
    (tmp_path / "a.parquet").write_bytes(content)
    (tmp_path / "b.parquet").write_bytes(content[:-100])
    FINEWEB2.write_parquet(tmp_path / "c.parquet")
    found = read(tmp_path, path="*.parquet")
    bad = found.filter(pl.col("rule") == "unreadable_file")
    assert [reason.split(":")[0] for reason in bad["reason"]] == ["a.parquet", "b.parquet"]
    assert "cannot be read after row" in bad["reason"][0]
    assert found.filter(pl.col("rule").is_null()).height > 1000


def test_a_bucket_is_read_through_its_protocol(tmp_path, monkeypatch):
    FINEWEB2.write_parquet(tmp_path / "a.parquet")
    content = (tmp_path / "a.parquet").read_bytes()
    listing = f"""<?xml version="1.0" encoding="UTF-8"?>
<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>bucket</Name><Prefix>khm/</Prefix>
<KeyCount>1</KeyCount><MaxKeys>1000</MaxKeys><IsTruncated>false</IsTruncated><Contents><Key>khm/a.parquet</Key>
<LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>"1"</ETag><Size>{len(content)}</Size>
<StorageClass>STANDARD</StorageClass></Contents></ListBucketResult>""".encode()

    def bucket(request: Request) -> Response:
        if request.path == "/bucket/khm/a.parquet":
            return part(content, request)
        if "list-type" in request.query and "khm/a.parquet".startswith(request.query.get("prefix", "")):
            return Response(listing, headers={"Content-Type": "application/xml"})
        return Response(status=404)

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    with host(bucket) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        assert read(tmp_path, path="s3://bucket/khm/*.parquet").height == 2
        assert reading.fingerprint(source(path="s3://bucket/khm/*.parquet"), tmp_path)


def test_an_address_that_cannot_be_reached_is_an_error_that_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(SourceError, match=r"source 's': hf://.* cannot be reached: .*; check the address and the net"):
        read(tmp_path, path="hf://datasets/nobody/nothing/data/*.parquet")
    with pytest.raises(SourceError, match=r"source 's': nothing is at .*none\*.parquet; put the files there"):
        read(tmp_path, path="none*.parquet")


@pytest.mark.parametrize("settings", [{}, {"path": []}, {"path": "a", "limit": 0}, {"path": "a", "columns": {}}])
def test_wrong_settings_are_an_error_in_the_recipe(tmp_path, settings):
    with pytest.raises(RecipeError, match="source 's': settings"):
        read(tmp_path, **settings)


def test_the_fingerprint_changes_with_the_data_and_with_the_entry(tmp_path):
    FINEWEB2.write_parquet(tmp_path / "a.parquet")
    first = reading.fingerprint(source(path="a.parquet"), tmp_path)
    assert reading.fingerprint(source(path="a.parquet"), tmp_path) == first
    assert reading.fingerprint(source(path="a.parquet", limit=1), tmp_path) != first
    FINEWEB2.head(1).write_parquet(tmp_path / "a.parquet")
    assert reading.fingerprint(source(path="a.parquet"), tmp_path) != first


def test_any_address_of_universal_pathlib_is_read(tmp_path):
    place = UPath("memory://khmer_parquet/a.parquet")
    with place.open("wb") as stream:
        FINEWEB2.write_parquet(stream)
    assert read(tmp_path, path="memory://khmer_parquet/*.parquet").height == 2
