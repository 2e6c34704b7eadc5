"""The assets of the extension stage."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg

from khmer_assets.extension import embeddings, merges
from khmer_assets.extension.merges import FIGURES, Extension
from khmer_assets.foundation.settings import code_version
from khmer_assets.tokenizer.assets import report_assets
from resources.compute import Compute
from resources.instance import GPU_POOL

MAX_LOST_BITS = 0.01  # a character, of English: new rows take a little probability from the others
MAX_UNUSED = 0.4


def extension_assets(settings: Extension, max_documents: int) -> list[Any]:
    """extended_tokenizer, extended_model and tokenizer_report, with their checks.

    `max_documents` held-out documents a language are scored.
    """

    @dg.asset(
        group_name="extension",
        io_manager_key="folders",
        kinds={"huggingface"},
        code_version=code_version(1, extension=settings),
    )
    def extended_tokenizer(
        context: dg.AssetExecutionContext, compute: Compute, base_model: Path, training_mixture: Path
    ) -> Iterator[dg.Output[Path]]:
        """A transformers tokenizer folder: the base's, with Khmer merges appended; `extension.json` tells what changed.

        Text without Khmer keeps its ids; where tokens are pruned, its tokens but for those (`unpruned` has all).
        """
        spec = merges.Spec(base=base_model, mixture=training_mixture, settings=settings)
        yield from compute.materialize(context, merges.__name__, spec)

    @dg.asset(
        group_name="extension",
        io_manager_key="folders",
        kinds={"pytorch", "huggingface"},
        pool=GPU_POOL,
        code_version=code_version(1, max_documents=max_documents),
    )
    def extended_model(
        context: dg.AssetExecutionContext,
        compute: Compute,
        base_model: Path,
        extended_tokenizer: Path,
        training_mixture: Path,
    ) -> Iterator[dg.Output[Path]]:
        """A transformers folder: the base with a row for each new token, `base.json` and `extension.json`, which gains
        bits a character by language before and after. All weights of the base are in it bit for bit, but for the rows
        of pruned tokens."""
        spec = embeddings.Spec(
            base=base_model, tokenizer=extended_tokenizer, mixture=training_mixture, max_documents=max_documents
        )
        yield from compute.materialize(context, embeddings.__name__, spec)

    @dg.asset_check(asset="extended_tokenizer")
    def english_keeps_its_ids(extended_tokenizer: Path) -> dg.AssetCheckResult:
        """No held-out English line, no code and no chat template gets other token ids than in the base, or where tokens
        were pruned, other tokens."""
        figures = json.loads((extended_tokenizer / FIGURES).read_text())
        kept = (
            figures["english_lines_changed"] == 0 and figures["code_ids_equal"] and figures["chat_template_ids_equal"]
        )
        return dg.AssetCheckResult(
            passed=kept,
            severity=dg.AssetCheckSeverity.WARN,
            metadata={k: v for k, v in figures.items() if v is not None},
        )

    @dg.asset_check(asset="extended_model")
    def english_is_predicted_as_before(extended_model: Path) -> dg.AssetCheckResult:
        """English takes no more bits a character than in the base, before any training. (A base that knows nothing
        fails it: each new token then takes as much probability as an old one.)"""
        figures = json.loads((extended_model / FIGURES).read_text())
        before, after = (figures.get(f"bits_per_character_eng_{when}", 0.0) for when in ("before", "after"))
        return dg.AssetCheckResult(
            passed=after <= before + MAX_LOST_BITS and "not_scored" not in figures,
            severity=dg.AssetCheckSeverity.WARN,
            description=figures.get("not_scored"),
            metadata={name: value for name, value in figures.items() if name.startswith("bits_per_character")},
        )

    @dg.asset_check(asset="tokenizer_report")
    def new_tokens_are_used(tokenizer_report: Path) -> dg.AssetCheckResult:
        """No more than 40 % of the new tokens are missing from the held-out text, else they were learned from text of
        too few kinds: add text, or lower `extension.merges`."""
        figures = json.loads((tokenizer_report / "report.json").read_text())
        unused = figures["unused_new_tokens"]
        return dg.AssetCheckResult(
            passed=unused <= MAX_UNUSED,
            severity=dg.AssetCheckSeverity.WARN,
            metadata={"unused_new_tokens": unused, "held_out_characters": figures["held_out_characters"]},
        )

    checks = [english_keeps_its_ids, english_is_predicted_as_before, new_tokens_are_used]
    report = report_assets("extended_tokenizer", settings.sample_characters, former="base_model")
    return [extended_tokenizer, extended_model, *report, *checks]
