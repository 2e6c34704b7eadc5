"""The assets of the instructions stage."""

import hashlib
from typing import Any

import dagster as dg
import polars as pl

from khmer_assets.instructions.chat_files import read_chats
from khmer_assets.instructions.chats import find_fault, hash_of, split_chats
from khmer_assets.instructions.generated import compose_chats, written_chats
from khmer_assets.recipe import Recipe
from resources.storage import markdown_table

SAMPLE_CHATS = 10
# the hash decides each chat alone, so shares vary; five standard deviations leave room for chance only
DEVIATIONS = 5


def instruction_assets(recipe: Recipe) -> list[Any]:
    """chat_dataset with its checks, and the chats of the recipe's adapters."""

    @dg.asset(
        group_name="instructions",
        io_manager_key="frames",
        kinds={"polars"},
        code_version=recipe.version(1, "instructions", "seed"),
    )
    def chat_dataset(context: dg.AssetExecutionContext) -> pl.LazyFrame:
        """Chats in one schema (`khmer_assets/instructions/chats.py`), split by the hash of their content.

        Columns: id, source, language, category, messages (role, content), label, toxicity, tags, content_hash, split.
        Chats with a fault and repeated chats are set aside with the reason.
        """
        new = pl.concat([written_chats(), compose_chats(recipe.instructions.generated_chats, recipe.seed)])
        chats = split_chats(new, recipe.instructions.split)
        kept = chats.filter(pl.col("rule").is_null()).collect()
        counts = kept.pivot("split", index=["category", "language"], values="id", aggregate_function="len")
        context.add_output_metadata(
            {
                "chats_by_category": dg.MetadataValue.md(markdown_table(counts.sort("category", "language"))),
                "samples": dg.MetadataValue.md(markdown_table(_readable(kept.head(SAMPLE_CHATS)))),
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
        wanted = recipe.instructions.split.model_dump()
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

    chat_checks = [splits_share_no_content, shares_are_near_the_split, chats_are_valid]
    return [chat_dataset, *chat_checks, *(adapter_chat_assets(recipe) if recipe.adapters else [])]


def adapter_chat_assets(recipe: Recipe) -> list[Any]:
    """adapter_files and adapter_chats."""
    partitions = dg.StaticPartitionsDefinition([adapter.name for adapter in recipe.adapters])

    @dg.observable_source_asset(group_name="instructions", partitions_def=partitions)
    def adapter_files() -> dg.DataVersionsByPartition:
        """The files with the adapters' chats; the version of each is a digest of its content."""
        versions = {}
        for adapter in recipe.adapters:
            try:
                with adapter.chats.open("rb") as file:
                    versions[adapter.name] = hashlib.file_digest(file, "sha256").hexdigest()[:16]
            except OSError:
                versions[adapter.name] = "missing"
        return dg.DataVersionsByPartition(versions)

    @dg.asset(
        group_name="instructions",
        io_manager_key="frames",
        kinds={"polars"},
        partitions_def=partitions,
        deps=["adapter_files"],
        code_version=recipe.version(1, "normalization", "instructions"),
    )
    def adapter_chats(context: dg.AssetExecutionContext) -> dg.Output[pl.LazyFrame]:
        """The chats that an adapter learns, as of chat_dataset; lines that are no chats are set aside with a reason."""
        adapter = recipe.adapter(context.partition_key)
        try:
            chats = read_chats(adapter.chats, adapter.name, recipe.normalization)
        except OSError as error:
            reason = (
                f"the chats of the adapter {adapter.name!r} cannot be read: {error}; put the file there, or correct"
            )
            raise dg.Failure(f"{reason} adapters.chats in the recipe", allow_retries=False) from None
        split = split_chats(chats, recipe.instructions.split)
        samples = _readable(split.filter(pl.col("rule").is_null()).head(SAMPLE_CHATS).collect())
        return dg.Output(split, metadata={"samples": dg.MetadataValue.md(markdown_table(samples))})

    return [adapter_files, adapter_chats]


def _readable(chats: pl.DataFrame) -> pl.DataFrame:
    """One line a chat, for people."""
    said = [" / ".join(message["content"] for message in messages) for messages in chats["messages"].to_list()]
    return chats.select("category", "language", "split", chat=pl.Series(said, dtype=pl.String))
