"""Measures tokenizers: tokens a character by language on held-out text, and token counts by source.

Compared are the tokenizer, the one that it was extended from (where there is none, one of the same size with GPT-2's
pattern), and every tokenizer that the Hugging Face cache of this machine holds.
"""

import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import BaseModel

from khmer_assets.foundation import plots
from khmer_assets.foundation.tables import markdown_table
from khmer_assets.foundation.workers import chunks
from khmer_assets.tokenizer.bpe import GPT2_PATTERN, TrainingSample, texts_of, train_bpe
from resources.payload import PayloadRun

TEXTS_AT_ONCE = 1_000

Count = Callable[[list[str]], list[int]]


class Spec(BaseModel):
    """Folders of tokenizer and training_mixture; how much text a tokenizer to compare with is trained on. `former`:
    the folder of the tokenizer that it was extended from."""

    tokenizer: Path
    mixture: Path
    sample_characters: int
    former: Path | None = None


def main(spec: Spec, run: PayloadRun) -> dict[str, Any]:
    """Write `report.json`, `report.md` and `fertility.png`.

    Of an extended tokenizer, `unused_new_tokens` is the share (0 to 1) of the new tokens that the held-out texts never
    need, and `held_out_characters` how long those are.
    """
    from tokenizers import Tokenizer

    trained = Tokenizer.from_file(str(spec.tokenizer / "tokenizer.json"))
    contenders: dict[str, Count] = {"this tokenizer": _counter(trained)}
    size = trained.get_vocab_size()
    if spec.former is not None:
        former = Tokenizer.from_file(str(spec.former / "tokenizer.json"))
        contenders["before the extension"] = _counter(former)
    else:
        run.log("training the tokenizer with GPT-2's pattern, for comparison")
        contenders["GPT-2 pattern, same size"] = _counter(
            train_bpe(TrainingSample(spec.mixture, spec.sample_characters), size, GPT2_PATTERN)
        )
    for name, path in local_tokenizers().items():
        contenders[name] = _counter(Tokenizer.from_file(str(path)))

    mixture = pl.scan_parquet(spec.mixture / "data.parquet")
    characters: dict[str, int] = {}
    tokens: dict[str, Counter[str]] = {name: Counter() for name in contenders}
    unfaithful, used = 0, set[int]()
    for language in mixture.select("language").unique().sort("language").collect()["language"]:
        for texts in chunks(texts_of(spec.mixture, "validation", language), TEXTS_AT_ONCE, len):
            characters[language] = characters.get(language, 0) + sum(map(len, texts))
            for name, count in contenders.items():
                tokens[name][language] += sum(count(texts))
            for text, encoded in zip(texts, trained.encode_batch(texts, add_special_tokens=False), strict=True):
                unfaithful += trained.decode(encoded.ids, skip_special_tokens=False) != text
                used.update(encoded.ids)
    fertility = pl.DataFrame(
        [
            {"tokenizer": name} | {language: tokens[name][language] / characters[language] for language in characters}
            for name in contenders
        ]
    )
    by_source = _by_source(mixture, contenders["this tokenizer"])
    report: dict[str, Any] = {
        "vocabulary_size": size,
        "tokens_per_character": {row.pop("tokenizer"): row for row in fertility.to_dicts()},
        "round_trip_failures": unfaithful,
        "tokens_by_source": by_source.to_dicts(),
    }
    if spec.former is not None:
        known = former.get_vocab()
        new = {identity for token, identity in trained.get_vocab().items() if token not in known}
        report["unused_new_tokens"] = len(new - used) / max(1, len(new))
        report["held_out_characters"] = sum(characters.values())
    (run.output / "report.json").write_text(json.dumps(report, ensure_ascii=False, indent=1))
    tables = (
        f"## Tokens a character, held-out text\n\n{markdown_table(fertility)}\n\n"
        f"## By source\n\n{markdown_table(by_source)}\n"
    )
    figure = _bars(fertility)
    figure.savefig(run.output / "fertility.png", dpi=110)
    (run.output / "report.md").write_text(f"# Tokenizer\n\n{tables}\n![](fertility.png)\n")
    own = report["tokens_per_character"]["this tokenizer"]
    return {
        "fertility": plots.as_markdown(figure),
        "tables": tables,
        **{f"tokens_per_character_{language}": value for language, value in own.items()},
        **({"unused_new_tokens": report["unused_new_tokens"]} if spec.former else {}),
    }


def _by_source(mixture: pl.LazyFrame, count: Count) -> pl.DataFrame:
    """Documents, characters and tokens by source and language."""
    parts = [
        batch.select(
            "source",
            "language",
            documents=pl.lit(1),
            characters=pl.col("text").str.len_chars().cast(pl.Int64),
            tokens=pl.Series(count(batch["text"].to_list()), dtype=pl.Int64),
        )
        .group_by("source", "language")
        .sum()
        for batch in mixture.select("source", "language", "text").collect_batches(chunk_size=TEXTS_AT_ONCE)
    ]
    return pl.concat(parts).group_by("source", "language").sum().sort("source", "language")


def local_tokenizers() -> dict[str, Path]:
    """tokenizer.json files in the Hugging Face cache, by the model's name."""
    cache = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface") / "hub"
    found = sorted(cache.glob("models--*/snapshots/*/tokenizer.json"))
    return {path.parts[-4].removeprefix("models--").replace("--", "/"): path for path in found}


def _counter(tokenizer: Any) -> Count:
    return lambda texts: [len(e.ids) for e in tokenizer.encode_batch(texts, add_special_tokens=False)]


def _bars(fertility: pl.DataFrame) -> Any:
    figure = plots.new_figure()
    axes = figure.subplots()
    languages = fertility.columns[1:]
    for offset, language in enumerate(languages):
        axes.barh(
            [row + offset * 0.8 / len(languages) for row in range(fertility.height)],
            fertility[language],
            height=0.8 / len(languages),
            label={"khm": "ខ្មែរ (khm)", "eng": "English (eng)"}.get(language, language),
        )
    axes.set_yticks([row + 0.4 * (1 - 1 / len(languages)) for row in range(fertility.height)], fertility["tokenizer"])
    axes.invert_yaxis()
    axes.set(xlabel="tokens a character (less is better)", title="Fertility on held-out text")
    axes.legend()
    return figure
