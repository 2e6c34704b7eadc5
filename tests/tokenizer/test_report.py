"""The tokenizer's report tells what an extension changed."""

import json

import polars as pl
import pytest

from khmer_assets.tokenizer import report
from khmer_assets.tokenizer.bpe import GPT2_PATTERN, train_bpe
from khmer_assets.tokenizer.chat_template import wrap
from resources.payload import PayloadRun

TEXTS = ["ក្មេងៗកំពុងហែលទឹកក្នុងស្រះ។", "The dogs are swimming in the pond."]


@pytest.fixture
def spec(tmp_path):
    columns = {"text": TEXTS * 2, "language": ["khm", "eng"] * 2, "split": ["train"] * 2 + ["validation"] * 2}
    frame = pl.DataFrame(columns).with_columns(copies=pl.lit(20), source=pl.lit("written"))
    frame.write_parquet(tmp_path / "data.parquet")
    wrap(train_bpe(TEXTS * 9, 330)).save_pretrained(tmp_path / "now")
    wrap(train_bpe(TEXTS * 9, 300, GPT2_PATTERN)).save_pretrained(tmp_path / "before")
    return report.Spec(tokenizer=tmp_path / "now", mixture=tmp_path, sample_characters=1000)


def made(spec, work):
    run = PayloadRun(work)
    report.main(spec, run)
    return json.loads((run.output / "report.json").read_text())


def test_a_new_tokenizer_is_compared_with_gpt2s_pattern(spec, tmp_path):
    figures = made(spec, tmp_path / "work")
    assert list(figures["tokens_per_character"])[:2] == ["this tokenizer", "GPT-2 pattern, same size"]
    assert "unused_new_tokens" not in figures
    assert figures["round_trip_failures"] == 0


def test_an_extended_one_is_compared_with_what_it_was(spec, tmp_path):
    figures = made(spec.model_copy(update={"former": tmp_path / "before"}), tmp_path / "work")
    fertility = figures["tokens_per_character"]
    assert list(fertility)[:2] == ["this tokenizer", "before the extension"]
    assert fertility["this tokenizer"]["khm"] < fertility["before the extension"]["khm"]
    assert figures["held_out_characters"] == 20 * sum(map(len, TEXTS))


def test_new_tokens_that_no_held_out_text_needs_are_told(spec, tmp_path):
    spec = spec.model_copy(update={"former": tmp_path / "before"})
    assert made(spec, tmp_path / "work")["unused_new_tokens"] < 1
    frame = pl.read_parquet(tmp_path / "data.parquet")
    frame.with_columns(text=pl.when(split="validation").then(pl.lit("1 + 1")).otherwise("text")).write_parquet(
        tmp_path / "data.parquet"
    )
    assert made(spec, tmp_path / "work")["unused_new_tokens"] == 1
