"""The assets of the corpus stage, from the sources' files to the training mixture, and their checks."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl

from khmer_assets.corpus import descriptions, report
from khmer_assets.corpus.decontamination import (
    Decontamination,
    Evaluation,
    contamination_batch,
    evaluation_hashes,
    evaluation_sources,
    evaluation_texts,
)
from khmer_assets.corpus.deduplication import (
    Deduplication,
    all_documents,
    find_duplicates,
    remove_duplicates,
    sign_batch,
)
from khmer_assets.corpus.filters import Filters, filter_batch
from khmer_assets.corpus.mixture import Mixture, mix, too_few
from khmer_assets.corpus.near_copies import near_copies
from khmer_assets.corpus.normalized import changes_by_rule, normalize_batch
from khmer_assets.corpus.personal_data import masks
from khmer_assets.corpus.verbalized import verbalize_batch
from khmer_assets.foundation.settings import RecipeError, code_version, digest_of
from khmer_assets.foundation.tables import markdown_table
from khmer_assets.khmer.normalization import Normalization, normalize
from khmer_assets.sources import reading, refresh
from khmer_assets.sources.catalogue import Source
from khmer_assets.sources.documents import DOCUMENT, kept
from khmer_assets.sources.rows import SourceError
from resources.batches import Batches
from resources.compute import Compute
from resources.instance import SNAPSHOT
from resources.set_aside import set_aside_share_is_steady
from resources.storage import DATA, REMOVED
from resources.vector_index import VectorIndex

SAMPLED_TEXTS = 1_000
NEAR_COPY = 0.8  # Jaccard similarity of character n-grams
NEAR_COPIES = 0.01  # of the held-out documents
SHOWN_COPIES = 20
WEIGHT_TOLERANCE = 0.05  # a language's share of the characters, beside its weight


def evaluation_files(decontamination: Decontamination, base: Path) -> Any:
    """The evaluation sets; `base` is the folder that their paths are relative to."""

    @dg.observable_source_asset(name="evaluation_files", group_name="corpus")
    def files(context: dg.OpExecutionContext) -> dg.DataVersion:
        """The data of the recipe's evaluation sets; the version is a digest of it."""
        try:
            found = [reading.fingerprint(source, base) for source in evaluation_sources(decontamination)]
        except Exception as error:  # filtered_corpus fails with the reason
            context.log.warning(f"{error}")
            return dg.DataVersion("missing")
        return dg.DataVersion(digest_of(found))

    return files


def corpus_assets(
    catalogue: Path,
    sources: Mapping[str, Source],
    normalization: Normalization,
    filters: Filters,
    decontamination: Decontamination,
    deduplication: Deduplication,
    mixture: Mixture,
    mixed: str,
    tokenizer: str,
    seed: int,
) -> list[Any]:
    """The sources, the corpus of each in its four states, what is made of all of them, and the checks. `mixed` is the
    asset of the documents that the mixture is made of, `tokenizer` that of the tokenizer whose tokens are counted."""
    partitions = dg.StaticPartitionsDefinition(list(sources))
    base = catalogue.parent
    all_sources = digest_of(list(sources))[:8]  # a source that is gone makes what was made of all of them stale
    corpus: dict[str, Any] = {"group_name": "corpus", "io_manager_key": "frames", "kinds": {"polars", "parquet"}}

    @dg.observable_source_asset(group_name="corpus", partitions_def=partitions)
    def source_files(context: dg.OpExecutionContext) -> dg.DataVersionsByPartition:
        """The data of the catalogue's sources; the version of each is a digest of its data and its entry."""
        versions = {}
        for name, source in sources.items():
            try:
                versions[name] = reading.fingerprint(source, base)
            except Exception as error:  # whatever one source's library raises, the others are looked at
                known = isinstance(error, SourceError | RecipeError)
                context.log.warning(f"{error}" if known else f"source {name!r}: cannot be looked at: {error!r:.300}")
                versions[name] = "missing"
        return dg.DataVersionsByPartition(versions)

    @dg.asset(**corpus, partitions_def=partitions, deps=["source_files"], code_version="1")
    def raw_corpus(context: dg.AssetExecutionContext, compute: Compute) -> Iterator[dg.Output[pl.LazyFrame]]:
        """A source's documents as they were found (`DOCUMENT`); rows that cannot be used are set aside. A source that
        fetches appends what is new to what it has collected before."""
        source = sources[context.partition_key]
        with ExitStack() as held:
            if reading.fetches(source):
                collection = Path(compute.home) / "collections" / f"{source.name}.sqlite"
                spec = refresh.Spec(source=source, base=base, collection=collection)
                documents = pl.scan_parquet(
                    held.enter_context(compute.run(context, refresh.__name__, spec)) / refresh.ROWS
                )
            else:
                try:
                    documents = reading.read(source, base)
                except (SourceError, RecipeError) as error:
                    raise dg.Failure(str(error), allow_retries=False) from None
            rows = held.enter_context(_computed(documents))
            yield dg.Output(rows, metadata=_shown(descriptions.lengths(kept(rows))))

    @dg.asset(**corpus, partitions_def=partitions, code_version=code_version(2, normalization=normalization))
    def normalized_corpus(
        context: dg.AssetExecutionContext, raw_corpus: pl.LazyFrame, batches: Batches
    ) -> dg.Output[pl.LazyFrame]:
        """The documents in canonical Unicode (Technical Note 61 for Khmer), with the content hash of the new text, and
        `changes`: how often each rule changed the text."""
        normalized = partial(normalize_batch, settings=normalization)
        rows = batches.map(*_name_and_version(context), normalized, raw_corpus)
        by_rule = changes_by_rule(rows)
        return dg.Output(
            rows,
            metadata={
                "changes": int(by_rule["changes"].sum()),
                "changes_by_rule": dg.MetadataValue.md(markdown_table(by_rule)),
            },
        )

    @dg.asset(
        **corpus,
        partitions_def=partitions,
        deps=["evaluation_files"],
        code_version=code_version(3, filters=filters, decontamination=decontamination),
    )
    def filtered_corpus(
        context: dg.AssetExecutionContext, normalized_corpus: pl.LazyFrame, batches: Batches
    ) -> dg.Output[pl.LazyFrame]:
        """The documents that pass the filters and share nothing with an evaluation set, with the language identified
        and personal data masked; the others are kept aside with rule, measure and reason."""
        try:
            texts = evaluation_texts(decontamination, base, normalization)
        except (SourceError, RecipeError) as error:
            raise dg.Failure(str(error), allow_retries=False) from None
        evaluation = evaluation_hashes(texts, decontamination.ngram)
        name, version = _name_and_version(context)
        judged = partial(_judged, filters=filters, evaluation=evaluation)
        version += evaluation.digest
        rows = batches.map(name, version, judged, normalized_corpus.select(*DOCUMENT))
        found = kept(rows).select(masks(pl.col("text"))).sum().collect().row(0, named=True)
        return dg.Output(
            rows,
            metadata=_shown(descriptions.verdicts(rows, "rule")) | {f"masked_{kind}": n for kind, n in found.items()},
        )

    @dg.asset(**corpus, code_version=f"{code_version(2, deduplication=deduplication)}-{all_sources}")
    def dedup_index(
        filtered_corpus: dict[str, pl.LazyFrame], batches: Batches, vector_index: VectorIndex
    ) -> dg.Output[pl.LazyFrame]:
        """Which documents of all sources are copies (id, source, content_hash, cluster, kept_id, duplicate_rule,
        measure, reason): by content, by MinHash, and by embeddings in LanceDB."""
        names = [name for name in sources if name in filtered_corpus]
        documents = all_documents({name: filtered_corpus[name] for name in names})
        version = digest_of([1, deduplication.ngram, deduplication.permutations])  # all that a signature depends on
        sign = partial(sign_batch, settings=deduplication)
        signed = batches.map("signatures", version, sign, documents, workers="threads")
        rows = find_duplicates(documents, signed, names, deduplication, Path(batches.home), vector_index.connect())
        return dg.Output(rows, metadata=_shown(descriptions.verdicts(rows, "duplicate_rule")))

    @dg.asset(**corpus, partitions_def=partitions, code_version="1")
    def deduplicated_corpus(filtered_corpus: pl.LazyFrame, dedup_index: pl.LazyFrame) -> pl.LazyFrame:
        """A source's documents without the copies that dedup_index found; those are set aside with their reason."""
        return remove_duplicates(filtered_corpus, dedup_index)

    @dg.asset(**corpus, partitions_def=partitions, code_version="1")
    def verbalized_sentences(
        context: dg.AssetExecutionContext, deduplicated_corpus: pl.LazyFrame, batches: Batches
    ) -> dg.Output[pl.LazyFrame]:
        """A source's Khmer sentences that hold numbers or dates, as they are written and in words (`VERBALIZED`);
        those whose numbers have no certain words are set aside."""
        rows = batches.map(*_name_and_version(context), verbalize_batch, deduplicated_corpus)
        return dg.Output(rows, metadata=_shown(descriptions.verdicts(rows, "rule")))

    @dg.asset(
        **corpus,
        ins={"documents": dg.AssetIn(mixed)},
        code_version=f"{code_version(1, mixture=mixture, seed=seed)}-{all_sources}",
        tags=SNAPSHOT,
    )
    def training_mixture(documents: dict[str, pl.LazyFrame]) -> Iterator[dg.Output[pl.LazyFrame]]:
        """The documents to train on and to hold out, shuffled (id, source, language, text, content_hash, split,
        copies); languages follow the recipe's weights.

        A snapshot: a refresh of the sources changes nothing in it, so that a model is trained anew when somebody
        takes a new snapshot (materializes this), or changes its settings or the list of sources."""
        by_name = {name: documents[name] for name in sources if name in documents}
        with tempfile.TemporaryDirectory() as folder:
            rows = mix(by_name, mixture, seed, Path(folder))
            if reason := too_few(rows, by_name, mixture):
                raise dg.Failure(reason, allow_retries=False)
            languages = pl.concat(frame.select("language") for frame in by_name.values())
            left_out = languages.filter(~pl.col("language").is_in(list(mixture.weights)))
            yield dg.Output(
                rows,
                metadata={
                    **_shown(descriptions.composition(rows)),
                    "documents_without_weight": left_out.select(pl.len()).collect().item(),
                },
            )

    @dg.asset(
        group_name="corpus",
        io_manager_key="folders",
        ins={"tokenizer": dg.AssetIn(tokenizer)},
        code_version=f"1-{all_sources}",
    )
    def corpus_report(
        context: dg.AssetExecutionContext,
        compute: Compute,
        raw_corpus: dict[str, Path],
        normalized_corpus: dict[str, Path],
        filtered_corpus: dict[str, Path],
        deduplicated_corpus: dict[str, Path],
        dedup_index: Path,
        tokenizer: Path,
    ) -> Iterator[dg.Output[Path]]:
        """`report.md`, `report.json`, plots, and `examples.md` with ten removed rows of each rule: documents,
        characters and tokens by source and month, what each rule removed, clusters of copies, lengths and scripts."""
        spec = report.Spec(
            raw=raw_corpus,
            normalized=normalized_corpus,
            filtered=filtered_corpus,
            deduplicated=deduplicated_corpus,
            dedup_index=dedup_index,
            tokenizer=tokenizer,
            seed=seed,
        )
        yield from compute.materialize(context, report.__name__, spec)

    def no_row_is_lost(after: str, before: str) -> dg.AssetChecksDefinition:
        @dg.asset_check(
            asset=after, additional_ins={"before": dg.AssetIn(before)}, partitions_def=partitions, name="no_row_is_lost"
        )
        def check(after: Path, before: Path) -> dg.AssetCheckResult:
            """Rows in are rows kept and rows set aside."""
            rows_in, rows_kept, rows_set_aside = _rows(before / DATA), _rows(after / DATA), _rows(after / REMOVED)
            return dg.AssetCheckResult(
                passed=rows_in == rows_kept + rows_set_aside,
                metadata={"rows_in": rows_in, "rows_kept": rows_kept, "rows_set_aside": rows_set_aside},
            )

        return check

    @dg.asset_check(asset=normalized_corpus, partitions_def=partitions, blocking=True)
    def text_is_canonical(normalized_corpus: pl.LazyFrame) -> dg.AssetCheckResult:
        """Normalizing a sample of the texts again changes nothing."""
        step = max(1, normalized_corpus.select(pl.len()).collect().item() // SAMPLED_TEXTS)
        texts = normalized_corpus.select("text").gather_every(step).collect()["text"]
        changed = sum(1 for text in texts if normalize(text, normalization)[0] != text)
        return dg.AssetCheckResult(passed=changed == 0, metadata={"texts": texts.len(), "changed": changed})

    @dg.asset_check(asset=training_mixture, blocking=True)
    def held_out_text_is_new(training_mixture: pl.LazyFrame) -> dg.AssetCheckResult:
        """Both splits have documents, and at most 1 % of the held-out ones have a near-copy among those trained on."""
        sizes = dict(training_mixture.group_by("split").len().collect().iter_rows())
        train, held_out = (training_mixture.filter(split=split) for split in ("train", "validation"))
        copies = near_copies(held_out, train, NEAR_COPY)
        return dg.AssetCheckResult(
            passed=len(sizes) == 2 and copies.height <= NEAR_COPIES * sizes["validation"],
            metadata={
                "near_copies": copies.height,
                **{f"{split}_documents": size for split, size in sizes.items()},
                "examples": dg.MetadataValue.md(markdown_table(copies.head(SHOWN_COPIES))),
            },
        )

    @dg.asset_check(asset=training_mixture, blocking=True)
    def weighted_languages_are_present(training_mixture: pl.LazyFrame) -> dg.AssetCheckResult:
        """Every language that has a weight has training documents."""
        shares = _language_shares(training_mixture)
        missing = sorted(set(mixture.weights) - set(shares))
        return dg.AssetCheckResult(passed=not missing, metadata={"missing": ", ".join(missing), **shares})

    @dg.asset_check(asset=training_mixture, additional_ins={"corpus": dg.AssetIn(mixed)})
    def snapshot_is_recent(training_mixture: pl.LazyFrame, corpus: dict[str, pl.LazyFrame]) -> dg.AssetCheckResult:
        """How many documents of the corpus are new since the snapshot was taken, and how many are gone. Of those with a
        weight below 1 the mixture leaves some out, so they count as known."""
        found = [
            frame if "weight" in frame.collect_schema() else frame.with_columns(weight=pl.lit(1.0))
            for frame in corpus.values()
        ]
        now = pl.concat(frame.select("language", "content_hash", "weight") for frame in found)
        now = now.filter(pl.col("language").is_in(list(mixture.weights)))
        new, gone = (
            one.join(other, on="content_hash", how="anti").select(pl.len()).collect(engine="streaming").item()
            for one, other in ((now.filter(pl.col("weight") >= 1), training_mixture), (training_mixture, now))
        )
        return dg.AssetCheckResult(
            passed=not new and not gone,
            severity=dg.AssetCheckSeverity.WARN,
            description=f"{new:,} documents are new since the snapshot was taken, {gone:,} are gone",
            metadata={"new_documents": new, "gone_documents": gone},
        )

    @dg.asset_check(asset=training_mixture)
    def shares_follow_weights(training_mixture: pl.LazyFrame) -> dg.AssetCheckResult:
        """Each language's share of the training characters, repeats counted, is within 0.05 of its weight."""
        shares = _language_shares(training_mixture)
        off = max(abs(shares.get(language, 0.0) - weight) for language, weight in mixture.weights.items())
        return dg.AssetCheckResult(
            passed=off <= WEIGHT_TOLERANCE,
            severity=dg.AssetCheckSeverity.WARN,
            metadata={"largest_difference": off, **shares},
        )

    filtering = [raw_corpus, normalized_corpus, filtered_corpus, deduplicated_corpus, verbalized_sentences]
    return [
        source_files,
        raw_corpus,
        normalized_corpus,
        filtered_corpus,
        dedup_index,
        deduplicated_corpus,
        verbalized_sentences,
        training_mixture,
        corpus_report,
        no_row_is_lost("normalized_corpus", "raw_corpus"),
        no_row_is_lost("filtered_corpus", "normalized_corpus"),
        no_row_is_lost("deduplicated_corpus", "filtered_corpus"),
        *(set_aside_share_is_steady(asset.key.to_user_string(), partitions) for asset in filtering),
        text_is_canonical,
        held_out_text_is_new,
        weighted_languages_are_present,
        snapshot_is_recent,
        shares_follow_weights,
    ]


def _judged(batch: pl.DataFrame, filters: Filters, evaluation: Evaluation) -> pl.DataFrame:
    return contamination_batch(filter_batch(batch, filters), evaluation)


def _name_and_version(context: dg.AssetExecutionContext) -> tuple[str, str]:
    """Under what the results of an artifact's batches are kept, and what they were made with."""
    version = context.assets_def.code_versions_by_key[context.asset_key]
    return f"{context.asset_key.to_python_identifier()}/{context.partition_key}", version or ""


@contextmanager
def _computed(frame: pl.LazyFrame) -> Iterator[pl.LazyFrame]:
    """The frame, computed once in batches, to be both measured and written; it ends with the context."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / DATA
        frame.sink_parquet(file)
        yield pl.scan_parquet(file)


def _rows(file: Path) -> int:
    return int(pl.scan_parquet(file).select(pl.len()).collect().item()) if file.exists() else 0


def _shown(described: dict[str, Any]) -> dict[str, Any]:
    return {name: dg.MetadataValue.md(value) if isinstance(value, str) else value for name, value in described.items()}


def _language_shares(mixture: pl.LazyFrame) -> dict[str, float]:
    characters = pl.col("text").str.len_chars().cast(pl.Int64) * pl.col("copies")
    used = mixture.filter(split="train").group_by("language").agg(characters.sum()).sort("language").collect()
    total = used["text"].sum()
    return {language: count / total for language, count in used.iter_rows()} if total else {}
