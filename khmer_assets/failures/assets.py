"""The assets of what the model gets wrong and learns from it; all are made on demand, by one job."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl

from khmer_assets.adapters.adapter import TrainedAdapter
from khmer_assets.adapters.assets import COMMON, Names, trained_adapter_assets
from khmer_assets.corpus.decontamination import Decontamination, evaluation_hashes, evaluation_texts
from khmer_assets.corpus.semantic import HASHING, SemanticSearch
from khmer_assets.evaluation.evaluate import Evaluation
from khmer_assets.failures import clusters, find, measure
from khmer_assets.failures.find import Failures
from khmer_assets.failures.new_chats import nearest_chats, prompts_of, without_held_out
from khmer_assets.foundation.settings import RecipeError, code_version
from khmer_assets.foundation.tables import markdown_table
from khmer_assets.instructions.assets import chat_checks
from khmer_assets.instructions.chat_dataset import split_chats
from khmer_assets.instructions.chat_sources import EmbeddedSource, Instructions
from khmer_assets.instructions.chats import NEW_CHAT, SAMPLE_CHATS, hash_of, prompt_of, readable
from khmer_assets.instructions.embedded_chats import compose_chats
from khmer_assets.khmer.normalization import Normalization
from khmer_assets.sources.rows import SourceError
from resources.compute import Compute
from resources.instance import GPU_POOL, ON_DEMAND
from resources.model_server import ModelServer

NAMES = Names("failure_chats", "failure_adapter", "failure_evaluation", "failure_release", "served_failure_adapter")
JOB_ASSETS = ("failures", "failure_clusters", *NAMES, "failure_measurement")
GROUP = "failures"
COMPOSED = 4  # times as many chats as were learned are composed anew, for the nearest to be chosen from


def failure_assets(
    settings: Failures | None,
    instructions: Instructions,
    normalization: Normalization,
    decontamination: Decontamination,
    search: SemanticSearch,
    base: Path,
    evaluation: Evaluation,
    model: str,
    evaluated: str,
    context_length: int,
    seed: int,
) -> list[Any]:
    """All assets from failures to the adapter that has learned from them; none without settings.

    `search` names the embedder, `base` is the folder that the paths of evaluation sets are relative to, `model` the
    asset of the model that failed, `evaluated` that of its evaluation.
    """
    if settings is None:
        return []
    embedder = search if search.embedder else search.model_copy(update={"embedder": HASHING})
    common: dict[str, Any] = {"group_name": GROUP, "tags": ON_DEMAND}

    @dg.asset(
        **common,
        io_manager_key="frames",
        pool=GPU_POOL,
        ins={"model": dg.AssetIn(model), "evaluated": dg.AssetIn(evaluated)},
        code_version=code_version(
            1,
            consent=settings.consent,
            max_confidence=settings.max_confidence,
            max_held_out=settings.max_held_out,
            max_new_tokens=evaluation.max_new_tokens,
        ),
    )
    def failures(
        context: dg.AssetExecutionContext,
        compute: Compute,
        model_server: ModelServer,
        model: Path,
        chat_dataset: Path,
        evaluated: Path,
    ) -> Iterator[dg.Output[pl.LazyFrame]]:
        """What the model got wrong: held-out chats, prompts of its evaluation and, where `failures.consent` is set,
        conversations of the audit log. Columns: `find.FAILURE`. Nothing of it is learned from."""
        spec = find.Spec(
            model=model,
            chats=chat_dataset,
            evaluation=evaluated,
            records=Path(model_server.home) / "audit" if settings.consent else None,
            settings=settings,
            max_new_tokens=evaluation.max_new_tokens,
            context_length=context_length,
        )
        with compute.run(context, find.__name__, spec) as folder:
            yield dg.Output(pl.scan_parquet(folder / find.ROWS))

    @dg.asset(
        **common,
        io_manager_key="frames",
        kinds={"polars"},
        code_version=code_version(1, embedder=embedder.embedder, chunks=embedder.chunk_characters, seed=seed),
    )
    def failure_clusters(failures: pl.LazyFrame) -> dg.Output[pl.LazyFrame]:
        """Failures by what they are about: `failures` with cluster, name, closeness (to the cluster's center) and part,
        `learned` from or `measured` with."""
        try:
            rows = clusters.clustered(failures.collect(), embedder, seed)
        except ValueError as error:
            raise dg.Failure(str(error), allow_retries=False) from None
        table = dg.MetadataValue.md(markdown_table(clusters.told(rows)))
        return dg.Output(rows.lazy(), metadata={"clusters": table})

    @dg.asset(
        **common,
        io_manager_key="frames",
        kinds={"polars"},
        deps=["evaluation_files"],
        code_version=code_version(
            1,
            instructions=instructions,
            decontamination=decontamination,
            normalization=normalization,
            chats=settings.chats,
            seed=seed,
        ),
    )
    def failure_chats(chat_dataset: pl.LazyFrame, failure_clusters: pl.LazyFrame) -> dg.Output[pl.LazyFrame]:
        """New chats about what the model got wrong, as of chat_dataset, with the cluster that each was taken for.

        They come from the chats that are trained on, and from those that the embedded source composes besides. None is
        held out, or close to what is: such chats are set aside.
        """
        known, rows = chat_dataset.collect(), failure_clusters.collect()
        candidates = pl.concat([known.filter(split="train").select(NEW_CHAT.names()), *_composed(instructions, seed)])
        held_out = prompts_of(known.filter(pl.col("split") != "train"))
        held_out += [prompt_of([{"role": "user", "content": one.prompt}]) for one in evaluation.prompts]
        held_out += [prompt_of(messages) for messages in rows["messages"].to_list()]
        said = pl.Series([hash_of(messages) for messages in candidates["messages"].to_list()], dtype=pl.String)
        different = candidates.filter(said.is_first_distinct())
        judged = without_held_out(different, held_out)
        free, aside = judged.filter(pl.col("rule").is_null()), judged.filter(pl.col("rule").is_not_null())
        nearest = nearest_chats(rows, free.drop("rule", "measure", "reason"), settings.chats, embedder)
        clusters_by_id = nearest.select("id", "cluster")
        new = pl.concat([nearest.drop("cluster"), aside], how="diagonal").lazy()
        try:
            sets = evaluation_texts(decontamination, base, normalization)
        except (SourceError, RecipeError) as error:
            raise dg.Failure(str(error), allow_retries=False) from None
        hashes = evaluation_hashes(sets, decontamination.ngram) if sets else None
        chats = split_chats(new, instructions.split, hashes).collect().join(clusters_by_id, on="id", how="left")
        kept = chats.filter(pl.col("rule").is_null())
        names = rows.select("cluster", "name").unique()
        counted = kept.group_by("cluster").len("new chats").join(names, on="cluster", how="left").sort("cluster")
        return dg.Output(
            chats.lazy(),
            metadata={
                "by_cluster": dg.MetadataValue.md(markdown_table(counted.select("cluster", "name", "new chats"))),
                "samples": dg.MetadataValue.md(markdown_table(readable(kept.head(SAMPLE_CHATS)))),
            },
        )

    @dg.asset(
        **common,
        io_manager_key="folders",
        pool=GPU_POOL,
        ins={"model": dg.AssetIn(model)},
        code_version=code_version(
            1, prompts=evaluation.prompts, max_held_out=settings.max_held_out, max_new_tokens=evaluation.max_new_tokens
        ),
    )
    def failure_measurement(
        context: dg.AssetExecutionContext,
        compute: Compute,
        model: Path,
        chat_dataset: Path,
        failure_clusters: Path,
        failure_adapter: Path,
    ) -> Iterator[dg.Output[Path]]:
        """`measurement.json`: the share of right answers in each cluster before and after, of failures and chats that
        had no say in what was learned; `answers.parquet` has each answer."""
        spec = measure.Spec(
            model=model,
            adapter=failure_adapter,
            clusters=failure_clusters,
            chats=chat_dataset,
            prompts=evaluation.prompts,
            embedder=SemanticSearch.model_validate(embedder.model_dump(include=set(SemanticSearch.model_fields))),
            max_held_out=settings.max_held_out,
            max_new_tokens=evaluation.max_new_tokens,
            context_length=context_length,
        )
        yield from compute.materialize(context, measure.__name__, spec)

    @dg.asset_check(asset="failure_measurement", blocking=True)
    def more_is_right(failure_measurement: Path) -> dg.AssetCheckResult:
        """Of all held-out chats in the clusters more are right with the adapter than without it."""
        whole = json.loads((failure_measurement / measure.REPORT).read_text())["held_out"][-1]
        before, after = whole["before"] or 0.0, whole["after"] or 0.0
        told = f"{after:.1%} of {whole['asked']} held-out chats are right with the adapter, {before:.1%} without it"
        return dg.AssetCheckResult(passed=after > before, description=told, metadata={"before": before, "after": after})

    trained = {find.NAME: TrainedAdapter.model_validate(settings.model_dump(include=COMMON))}
    return [
        failures,
        failure_clusters,
        failure_chats,
        *chat_checks("failure_chats", instructions.split, decontamination, base, normalization),
        failure_measurement,
        more_is_right,
        *trained_adapter_assets(
            trained, NAMES, evaluation, model, context_length, seed, None, {}, ["failure_measurement"], ON_DEMAND, GROUP
        ),
    ]


def _composed(instructions: Instructions, seed: int) -> list[pl.DataFrame]:
    """Chats that the embedded sources compose besides those that chat_dataset has of them."""
    found = []
    for name, count in embedded_counts(instructions):
        for more in range(1, COMPOSED + 1):
            rows = compose_chats(count, seed + more)
            identity = pl.format(f"{name}-{more}-{{}}", "id")
            found.append(rows.with_columns(id=identity, source=pl.lit(name)).collect())
    return found


def embedded_counts(instructions: Instructions) -> list[tuple[str, int]]:
    """Name and number of the chats of each embedded source."""
    named = [
        (one.name, one.settings.generated_chats) for one in instructions.sources if isinstance(one, EmbeddedSource)
    ]
    return named + ([("composed", instructions.generated_chats)] if instructions.generated_chats else [])
