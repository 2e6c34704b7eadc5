"""The assets of the instructions stage."""

from typing import Any

import dagster as dg
import polars as pl

from khmer_assets.foundation.settings import code_version
from khmer_assets.foundation.tables import markdown_table
from khmer_assets.instructions.chats import SAMPLE_CHATS, find_fault, hash_of, readable, split_chats
from khmer_assets.instructions.embedded_chats import Instructions, compose_chats, written_chats

# the hash decides each chat alone, so shares vary; five standard deviations leave room for chance only
DEVIATIONS = 5


def instruction_assets(settings: Instructions, seed: int) -> list[Any]:
    """chat_dataset with its checks."""

    @dg.asset(
        group_name="instructions",
        io_manager_key="frames",
        kinds={"polars"},
        code_version=code_version(1, instructions=settings, seed=seed),
    )
    def chat_dataset(context: dg.AssetExecutionContext) -> pl.LazyFrame:
        """Chats in one schema (`khmer_assets/instructions/chats.py`), split by the hash of their content.

        Columns: id, source, language, category, messages (role, content), label, toxicity, tags, content_hash, split.
        Chats with a fault and repeated chats are set aside with the reason.
        """
        new = pl.concat([written_chats(), compose_chats(settings.generated_chats, seed)])
        chats = split_chats(new, settings.split)
        kept = chats.filter(pl.col("rule").is_null()).collect()
        counts = kept.pivot("split", index=["category", "language"], values="id", aggregate_function="len")
        context.add_output_metadata(
            {
                "chats_by_category": dg.MetadataValue.md(markdown_table(counts.sort("category", "language"))),
                "samples": dg.MetadataValue.md(markdown_table(readable(kept.head(SAMPLE_CHATS)))),
            }
        )
        return chats

    @dg.asset_check(asset="chat_dataset", blocking=True)
    def splits_share_no_content(chat_dataset: pl.LazyFrame) -> dg.AssetCheckResult:
        """What is said in one split is not said in another, whatever its case, spaces and final marks."""
        chats = chat_dataset.select("messages", "split").collect()
        digests = chats.select("split", digest=pl.Series([hash_of(m) for m in chats["messages"].to_list()]))
        shared = digests.group_by("digest").agg(pl.col("split").n_unique()).filter(pl.col("split") > 1).height
        return dg.AssetCheckResult(passed=shared == 0, metadata={"contents_in_two_splits": shared})

    @dg.asset_check(asset="chat_dataset", blocking=True)
    def shares_are_near_the_split(chat_dataset: pl.LazyFrame) -> dg.AssetCheckResult:
        """Each split's share of the chats is what the recipe asks for, up to the chance of hashing."""
        splits = chat_dataset.select("split").collect()["split"]
        total = len(splits)
        found = {name: int((splits == name).sum()) / max(total, 1) for name in ("train", "validation", "test")}
        wanted = settings.split.model_dump()
        passed = total > 0 and all(
            abs(found[name] - share) <= DEVIATIONS * (share * (1 - share) / total) ** 0.5 + 1e-9
            for name, share in wanted.items()
        )
        return dg.AssetCheckResult(passed=passed, metadata={"chats": total, **found})

    @dg.asset_check(asset="chat_dataset", blocking=True)
    def chats_are_valid(chat_dataset: pl.LazyFrame) -> dg.AssetCheckResult:
        """Roles are in order, nobody is silent, and the assistant has the last word."""
        chats = chat_dataset.select("id", "messages").collect()
        faults = {row["id"]: fault[2] for row in chats.iter_rows(named=True) if (fault := find_fault(row["messages"]))}
        examples = "; ".join(f"{identity}: {reason}" for identity, reason in list(faults.items())[:5])
        return dg.AssetCheckResult(
            passed=chats.height > 0 and not faults,
            metadata={"chats": chats.height, "faulty": len(faults), "examples": examples},
        )

    return [chat_dataset, splits_share_no_content, shares_are_near_the_split, chats_are_valid]
