"""The assets of the tokenizer stage."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg

from khmer_assets.foundation.settings import code_version
from khmer_assets.tokenizer import bpe, report
from khmer_assets.tokenizer.bpe import TokenizerSettings
from resources.compute import Compute


def tokenizer_assets(settings: TokenizerSettings) -> list[Any]:
    """tokenizer and tokenizer_report, with their checks."""

    @dg.asset(
        group_name="tokenizer",
        io_manager_key="folders",
        kinds={"huggingface"},
        code_version=code_version(1, tokenizer=settings),
    )
    def tokenizer(
        context: dg.AssetExecutionContext, compute: Compute, training_mixture: Path
    ) -> Iterator[dg.Output[Path]]:
        """A transformers tokenizer folder with chat template: a byte-level BPE trained on the train split."""
        yield from compute.materialize(
            context,
            bpe.__name__,
            bpe.Spec(
                mixture=training_mixture,
                vocabulary_size=settings.vocabulary_size,
                sample_characters=settings.sample_characters,
            ),
        )

    @dg.asset_check(asset="tokenizer_report")
    def khmer_costs_fewer_tokens(tokenizer_report: Path) -> dg.AssetCheckResult:
        """Khmer takes fewer tokens a character than with GPT-2's pattern at the same size."""
        fertility = json.loads((tokenizer_report / "report.json").read_text())["tokens_per_character"]
        own, other = (fertility[name].get("khm") for name in ("this tokenizer", "GPT-2 pattern, same size"))
        return dg.AssetCheckResult(
            passed=own is None or own < other,
            metadata={"tokens_per_character": own or 0.0, "gpt2_pattern": other or 0.0},
        )

    return [tokenizer, *report_assets("tokenizer", settings.sample_characters), khmer_costs_fewer_tokens]


def report_assets(tokenizer: str, sample_characters: int, former: str | None = None) -> list[Any]:
    """tokenizer_report with its blocking check. `tokenizer` is the asset of the tokenizer, `former` that of the one
    that it was extended from; `sample_characters` of text train one to compare with."""
    ins = {"tokenizer": dg.AssetIn(tokenizer), **({"former": dg.AssetIn(former)} if former else {})}

    @dg.asset(
        group_name="tokenizer",
        io_manager_key="folders",
        ins=ins,
        code_version=code_version(1, sample_characters=sample_characters),
    )
    def tokenizer_report(
        context: dg.AssetExecutionContext, compute: Compute, tokenizer: Path, training_mixture: Path, **others: Path
    ) -> Iterator[dg.Output[Path]]:
        """`report.md`, `report.json`, a plot: tokens a character by language and tokenizer, tokens by source; of an
        extended tokenizer, before and after, and how many of the new tokens the held-out text uses."""
        spec = report.Spec(
            tokenizer=tokenizer,
            mixture=training_mixture,
            sample_characters=sample_characters,
            former=others.get("former"),
        )
        yield from compute.materialize(context, report.__name__, spec)

    @dg.asset_check(asset="tokenizer_report", blocking=True)
    def tokenizer_is_lossless(tokenizer_report: Path) -> dg.AssetCheckResult:
        """Decoding what was encoded gives every held-out text back."""
        failures = json.loads((tokenizer_report / "report.json").read_text())["round_trip_failures"]
        return dg.AssetCheckResult(passed=failures == 0, metadata={"texts_not_given_back": failures})

    return [tokenizer_report, tokenizer_is_lossless]
