"""The assets of the instructions stage."""

from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
from upath import UPath

from khmer_assets.corpus.decontamination import (
    Decontamination,
    contamination_batch,
    evaluation_hashes,
    evaluation_texts,
)
from khmer_assets.corpus.mixture import MIXTURE
from khmer_assets.corpus.near_copies import near_copies
from khmer_assets.foundation.settings import RecipeError, code_version, digest_of
from khmer_assets.foundation.tables import markdown_table
from khmer_assets.instructions.chat_dataset import split_chats
from khmer_assets.instructions.chat_files import read_chats
from khmer_assets.instructions.chats import SAMPLE_CHATS, Split, readable, said
from khmer_assets.instructions.embedded_chats import Instructions, compose_chats, written_chats
from khmer_assets.khmer.normalization import Normalization
from khmer_assets.sources.documents import SET_ASIDE
from khmer_assets.sources.file_versions import version_of
from khmer_assets.sources.rows import SourceError
from resources.set_aside import set_aside_share_is_steady

# A question that is asked in another way is a fair test, so chats may be more alike than texts, and more of them.
NEAR_COPY = 0.9  # Jaccard similarity of character n-grams
NEAR_COPIES = 0.1  # of the held-out chats
SHOWN_COPIES = 20


def instruction_assets(
    settings: Instructions,
    decontamination: Decontamination,
    base: Path,
    normalization: Normalization,
    with_texts: bool,
    seed: int,
) -> list[Any]:
    """chat_dataset with its checks; `base` is the folder that the paths of evaluation sets are relative to.

    `with_texts`: and chat_texts, for a recipe without a corpus.
    """

    @dg.observable_source_asset(group_name="instructions")
    def chat_files() -> dg.DataVersion:
        """The recipe's files of chats; the version is a digest of their content."""
        versions = []
        for file in settings.files:
            try:
                versions.append(version_of(UPath(file)))
            except OSError:  # chat_dataset fails with the reason
                versions.append("missing")
        return dg.DataVersion(digest_of(versions)[:16])

    @dg.asset(
        group_name="instructions",
        io_manager_key="frames",
        kinds={"polars"},
        deps=["evaluation_files", *([chat_files] if settings.files else [])],
        code_version=code_version(
            1, instructions=settings, normalization=normalization, decontamination=decontamination, seed=seed
        ),
    )
    def chat_dataset(context: dg.AssetExecutionContext) -> pl.LazyFrame:
        """Chats in one schema (`khmer_assets/instructions/chats.py`), split by the hash of their content.

        Columns: id, source, language, category, messages (role, content), label, toxicity, tags, content_hash, split.
        Chats with a fault, repeated chats and lines that are no chats are set aside with the reason.
        """
        found = []
        if settings.generated_chats is not None:
            found += [written_chats(), compose_chats(settings.generated_chats, seed)]
        for number, file in enumerate(settings.files, 1):
            try:
                found.append(read_chats(file, f"{number}-{file.stem}", normalization))
            except OSError as error:
                told = f"{file} cannot be read: {error}; put the file there, or correct instructions.files"
                raise dg.Failure(f"{told} in the recipe", allow_retries=False) from None
        chats = split_chats(pl.concat(found, how="diagonal"), settings.split)
        kept = chats.filter(pl.col("rule").is_null()).collect()
        counts = kept.pivot("split", index=["category", "language"], values="id", aggregate_function="len")
        context.add_output_metadata(
            {
                "chats_by_category": dg.MetadataValue.md(markdown_table(counts.sort("category", "language"))),
                "samples": dg.MetadataValue.md(markdown_table(readable(kept.head(SAMPLE_CHATS)))),
            }
        )
        return chats

    @dg.asset(group_name="instructions", io_manager_key="frames", kinds={"polars"}, code_version="1")
    def chat_texts(chat_dataset: pl.LazyFrame) -> pl.LazyFrame:
        """What is said in the chats, a text a chat, in the columns of training_mixture: where a recipe has no corpus,
        models are measured and calibrated on it. The chats' split `test` is left out."""
        chats = chat_dataset.filter(pl.col("split") != "test").collect()
        columns = ("id", "source", "language", "content_hash", "split")
        return (
            chats.select(*columns, text=said(chats)["text"], copies=pl.lit(1, pl.UInt32)).select(MIXTURE.names()).lazy()
        )

    return [
        *([chat_files] if settings.files else []),
        chat_dataset,
        *([chat_texts] if with_texts else []),
        *chat_checks("chat_dataset", settings.split, decontamination, base, normalization),
    ]


def chat_checks(
    asset: str,
    split: Split,
    decontamination: Decontamination,
    base: Path,
    normalization: Normalization,
    partitions: dg.PartitionsDefinition | None = None,
) -> list[dg.AssetChecksDefinition]:
    """What must hold for chats, whoever wrote them, before they are learned; `base` is the catalogue's folder."""
    common: dict[str, Any] = {"asset": asset, "partitions_def": partitions, "blocking": True}

    @dg.asset_check(**common)
    def every_split_has_chats(chats: pl.LazyFrame) -> dg.AssetCheckResult:
        """There are chats to train on, to validate with and to test with, as the recipe's shares ask for."""
        found = dict(chats.group_by("split").len().collect().iter_rows())
        missing = [name for name, share in split.model_dump().items() if share and not found.get(name)]
        told = f"no chat is in the split {' and '.join(missing)}; bring more chats" if missing else None
        return dg.AssetCheckResult(passed=not missing, description=told, metadata=found)

    @dg.asset_check(**common)
    def held_out_chats_are_new(chats: pl.LazyFrame) -> dg.AssetCheckResult:
        """At most 10 % of the held-out chats have a near-copy among those trained on."""
        texts = said(chats.collect()).lazy()
        train, held_out = texts.filter(split="train"), texts.filter(pl.col("split") != "train")
        copies = near_copies(held_out, train, NEAR_COPY)
        held = held_out.select(pl.len()).collect().item()
        return dg.AssetCheckResult(
            passed=copies.height <= NEAR_COPIES * held,
            description=f"{copies.height} of {held} held-out chats are nearly the same as one that is trained on",
            metadata={
                "near_copies": copies.height,
                "held_out": held,
                "examples": dg.MetadataValue.md(markdown_table(copies.head(SHOWN_COPIES))),
            },
        )

    @dg.asset_check(**common)
    def no_chat_is_of_an_evaluation_set(chats: pl.LazyFrame) -> dg.AssetCheckResult:
        """No chat that is trained on holds a text of the recipe's evaluation sets."""
        try:
            texts = evaluation_texts(decontamination, base, normalization)
        except (SourceError, RecipeError) as error:
            return dg.AssetCheckResult(passed=False, description=str(error))
        evaluation = evaluation_hashes(texts, decontamination.ngram)
        trained = said(chats.filter(split="train").collect())
        judged = contamination_batch(
            trained.with_columns(pl.lit(None, kind).alias(name) for name, kind in SET_ASIDE.items()), evaluation
        )
        found = judged.filter(pl.col("rule").is_not_null())
        told = "; ".join(
            f"{identity}: {reason}" for identity, reason in found.select("id", "reason").head(5).iter_rows()
        )
        return dg.AssetCheckResult(
            passed=found.is_empty(),
            description=f"take these chats out, or the set: {told}" if told else None,
            metadata={"evaluation_sets": len(texts), "contaminated": found.height},
        )

    return [
        every_split_has_chats,
        held_out_chats_are_new,
        no_chat_is_of_an_evaluation_set,
        set_aside_share_is_steady(asset, partitions),
    ]
