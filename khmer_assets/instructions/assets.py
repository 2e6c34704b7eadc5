"""The assets of the instructions stage."""

from collections.abc import Iterator, Sequence
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
from khmer_assets.instructions import translation
from khmer_assets.instructions.chat_dataset import split_chats
from khmer_assets.instructions.chat_files import read_all, read_chats
from khmer_assets.instructions.chat_sources import (
    ChatFilesSource,
    DialoguesSource,
    EmbeddedSource,
    Instructions,
    QuestionsSource,
    TranslatedSource,
    TutorSource,
)
from khmer_assets.instructions.chats import NEW_CHAT, SAMPLE_CHATS, Split, readable, said
from khmer_assets.instructions.copies import own_words
from khmer_assets.instructions.dialogues import dialogue_task
from khmer_assets.instructions.embedded_chats import compose_chats, written_chats
from khmer_assets.instructions.questions_and_answers import question_task
from khmer_assets.instructions.scoring import scored
from khmer_assets.instructions.tutor_tasks import DOCUMENTS_A_TASK, by_rules, by_teachers
from khmer_assets.instructions.writing import Assignment, drawn, grounds, made
from khmer_assets.khmer.normalization import Normalization
from khmer_assets.labels.model import LabelModel
from khmer_assets.sources.documents import SET_ASIDE
from khmer_assets.sources.file_versions import versions_of
from khmer_assets.sources.rows import SourceError
from khmer_assets.teachers.settings import Budget, Teacher
from resources.compute import Compute
from resources.set_aside import set_aside_share_is_steady
from resources.teachers import Teachers

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
    teachers: Sequence[Teacher] = (),
    labelled: bool = False,
) -> list[Any]:
    """chat_dataset with its checks, and before it an asset for each kind of source that is made; `base` is the folder
    that the paths of evaluation sets are relative to.

    `with_texts`: and chat_texts, for a recipe without a corpus. `labelled`: the recipe has a label model, which judges
    the chats that nobody has judged, where `settings.min_quality` asks for it.
    """
    files = [UPath(file) for file in settings.files]
    from_files = [source for source in settings.sources if isinstance(source, ChatFilesSource | TranslatedSource)]
    texts = dg.AssetIn("training_mixture")
    common: dict[str, Any] = {"group_name": "instructions", "io_manager_key": "frames"}
    # who the teachers are decides what they write; what they cost and how fast they may be asked does not
    asked = [(teacher.name, teacher.model, teacher.share) for teacher in teachers]

    def written_version(kind: str) -> str:
        found = [source.model_dump(mode="json") for source in settings.of(kind)]
        return code_version(1, sources=found, teachers=asked, normalization=normalization, seed=seed)

    @dg.observable_source_asset(group_name="instructions")
    def chat_files() -> dg.DataVersion:
        """The recipe's files of chats; the version is a digest of their content."""
        found = [*files]
        try:
            found += [file for source in from_files for file in source.settings.files]
        except SourceError:  # chat_dataset fails with the reason
            return dg.DataVersion("missing")
        return dg.DataVersion(digest_of(versions_of(found))[:16])

    @dg.asset(
        **common,
        ins={"training_mixture": texts} if _reads(settings, "questions_and_answers") else {},
        code_version=written_version("questions_and_answers"),
    )
    def questions_and_answers(
        context: dg.AssetExecutionContext, teachers: Teachers, **inputs: pl.LazyFrame
    ) -> pl.LazyFrame:
        """Questions with their answers, written by teachers (`NEW_CHAT`); what does not fit is set aside."""
        tasks = []
        for source in settings.of("questions_and_answers"):
            assert isinstance(source, QuestionsSource)
            about = grounds(source.settings, inputs.get("training_mixture"), seed)
            tasks.append((source.name, question_task(source.settings, about, seed), source.settings.budget))
        return _written(context, teachers, "question", tasks, normalization)

    @dg.asset(
        **common,
        ins={"training_mixture": texts} if _reads(settings, "dialogues") else {},
        code_version=written_version("dialogues"),
    )
    def dialogues(context: dg.AssetExecutionContext, teachers: Teachers, **inputs: pl.LazyFrame) -> pl.LazyFrame:
        """Dialogues of several turns, written by teachers (`NEW_CHAT`); what does not fit is set aside."""
        tasks = []
        for source in settings.of("dialogues"):
            assert isinstance(source, DialoguesSource)
            about = grounds(source.settings, inputs.get("training_mixture"), seed)
            tasks.append((source.name, dialogue_task(source.settings, about), source.settings.budget))
        return _written(context, teachers, "dialogue", tasks, normalization)

    @dg.asset(**common, code_version=written_version("tutor_tasks"))
    def tutor_tasks(
        context: dg.AssetExecutionContext, teachers: Teachers, training_mixture: pl.LazyFrame
    ) -> pl.LazyFrame:
        """A tutor's tasks on sentences of the mixture (`NEW_CHAT`): those made by rules and, where the recipe names
        teachers, those that they do; what does not fit is set aside."""
        found, tasks = [], []
        for source in settings.of("tutor_tasks"):
            assert isinstance(source, TutorSource)
            documents = drawn(training_mixture, DOCUMENTS_A_TASK * source.settings.count, seed)
            learned = documents.collect()["text"].to_list()
            found.append(by_rules(source.settings, source.name, learned, normalization, seed))
            if asked:
                tasks += [
                    (source.name, task, source.settings.budget)
                    for task in by_teachers(source.settings, source.name, learned, seed)
                ]
        return pl.concat([*found, _written(context, teachers, "tutor", tasks, normalization)], how="diagonal")

    @dg.asset(**common, deps=["chat_files"], code_version=written_version("translated"))
    def translated_instructions(
        context: dg.AssetExecutionContext, compute: Compute
    ) -> Iterator[dg.Output[pl.LazyFrame]]:
        """English chats in Khmer (`NEW_CHAT`); those with a sentence that was not soundly translated are set aside."""
        sources = {source.name: source.settings for source in settings.of("translated")}
        spec = translation.Spec.model_validate({"sources": sources, "normalization": normalization})
        with compute.run(context, translation.__name__, spec) as folder:
            yield dg.Output(pl.scan_parquet(folder / translation.ROWS))

    generated = {"questions_and_answers": questions_and_answers, "dialogues": dialogues, "tutor_tasks": tutor_tasks}
    generated |= {"translated": translated_instructions}
    generated = {kind: asset for kind, asset in generated.items() if settings.of(kind)}

    @dg.asset(
        **common,
        kinds={"polars"},
        ins={kind: dg.AssetIn(asset.key) for kind, asset in generated.items()}
        | ({"label_model": dg.AssetIn()} if labelled and settings.min_quality is not None else {}),
        deps=["evaluation_files", *([chat_files] if files or from_files else [])],
        code_version=code_version(
            3, instructions=settings, normalization=normalization, decontamination=decontamination, seed=seed
        ),
    )
    def chat_dataset(context: dg.AssetExecutionContext, **inputs: Any) -> pl.LazyFrame:
        """Chats in one schema (`khmer_assets/instructions/chats.py`), split by the hash of what they ask.

        Columns: id, source, language, task, category, messages (role, content), label, toxicity, tags, quality,
        content_hash, split. What is no chat, faulty, repeated, nearly the same, of an evaluation set or of too low a
        quality is set aside with the reason; personal data are masked.
        """
        found = _short_form(settings, normalization, seed)
        try:
            for source in settings.sources:
                if isinstance(source, EmbeddedSource):
                    composed = [written_chats(), compose_chats(source.settings.generated_chats, seed)]
                    found.append(pl.concat(composed).with_columns(source=pl.lit(source.name)))
                elif isinstance(source, ChatFilesSource):
                    found.append(read_all(source.settings, source.name, normalization))
                else:
                    found.append(inputs[source.kind].filter(source=source.name))
        except (OSError, SourceError) as error:
            told = f"the chats of the source {source.name!r} cannot be read: {error}; put the files there, or correct"
            raise dg.Failure(f"{told} instructions.sources in the recipe", allow_retries=False) from None
        try:
            sets = evaluation_texts(decontamination, base, normalization)
        except (SourceError, RecipeError) as error:
            raise dg.Failure(str(error), allow_retries=False) from None
        evaluation = evaluation_hashes(sets, decontamination.ngram) if sets else None
        together = pl.concat(found, how="diagonal")
        if "label_model" in inputs:
            together = scored(together.collect(), LabelModel.load(inputs["label_model"])).lazy()
        chats = split_chats(together, settings.split, evaluation, settings.min_quality)
        kept = chats.filter(pl.col("rule").is_null()).collect()
        by_category, by_source = (
            kept.pivot("split", index=index, values="id", aggregate_function="len").sort(index)
            for index in (["category", "language"], ["source", "task", "language"])
        )
        context.add_output_metadata(
            {
                "chats_by_category": dg.MetadataValue.md(markdown_table(by_category)),
                "chats_by_source": dg.MetadataValue.md(markdown_table(by_source)),
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
        *([chat_files] if files or from_files else []),
        *generated.values(),
        chat_dataset,
        *([chat_texts] if with_texts else []),
        *chat_checks("chat_dataset", settings.split, decontamination, base, normalization),
    ]


def _reads(settings: Instructions, kind: str) -> bool:
    return any(source.name in settings.reads_texts for source in settings.of(kind))


def _short_form(settings: Instructions, normalization: Normalization, seed: int) -> list[pl.LazyFrame]:
    """The chats of the recipe's `generated_chats` and `files`. Raises `dg.Failure` for a file that cannot be read."""
    found = []
    if settings.generated_chats is not None:
        found += [written_chats(), compose_chats(settings.generated_chats, seed)]
    for number, file in enumerate(settings.files, 1):
        try:
            found.append(read_chats(file, f"{number}-{file.stem}", normalization))
        except OSError as error:
            told = f"{file} cannot be read: {error}; put the file there, or correct instructions.files"
            raise dg.Failure(f"{told} in the recipe", allow_retries=False) from None
    return found


def _written(
    context: dg.AssetExecutionContext,
    teachers: Teachers,
    category: str,
    tasks: Sequence[tuple[str, Assignment, Budget]],
    normalization: Normalization,
) -> pl.LazyFrame:
    """What the teachers write for each source's task; their books become metadata, by task where there are several."""
    found = []
    for number, (source, task, budget) in enumerate(tasks, 1):
        answers, books = teachers.ask(context, task.template, task.rows, budget)
        prefix = f"{source}_{number}_" if len(tasks) > 1 else ""
        shown = {key: dg.MetadataValue.md(v) if "|" in str(v) else v for key, v in books.metadata().items()}
        context.add_output_metadata({f"{prefix}{key}": value for key, value in shown.items()})
        found.append(made(task, source, category, answers, normalization))
    return pl.concat(found) if found else pl.LazyFrame(schema={**NEW_CHAT, **SET_ASIDE})


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
        """At most 10 % of the held-out chats have a near-copy among those trained on; sentences that many chats have
        word for word are left out of the comparison."""
        whole = said(chats.collect())
        own = [words or text for words, text in zip(own_words(whole["text"].to_list()), whole["text"], strict=True)]
        texts = whole.with_columns(text=pl.Series(own, dtype=pl.String)).lazy()
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
