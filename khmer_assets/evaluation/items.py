"""The items of public benchmarks: where they are fetched from, and the one form into which all tasks bring them.

How a benchmark's own fields are read stands in its module in `tasks/`; what is measured with the items does not belong
here either (`examination.py`).
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import polars as pl
from pydantic import BeforeValidator, Field, ValidationInfo, model_validator

from khmer_assets.foundation.settings import PositiveInt, Settings, digest_of, folder_of_file
from khmer_assets.sources.rows import SourceError

SAMPLES = Path(__file__).parent / "samples"  # 20 items a task, written for this project in the fields of the originals
MAX_FILE_BYTES = 1 << 28  # the largest of these benchmarks has a hundredth of it
MAX_CHARACTERS = 20_000  # of an item's texts together
SHOT_END = "\n\n"

ItemLanguage = Literal["khm_Khmr", "eng_Latn"]  # as FLORES-200 and what was made from it write them
ENGLISH_NAMES: dict[ItemLanguage, str] = {"khm_Khmr": "Khmer", "eng_Latn": "English"}

ITEM = pl.Schema(
    {
        "task": pl.String(),
        "id": pl.String(),
        "prompt": pl.String(),
        "choices": pl.List(pl.String()),
        "answer": pl.Int64(),
        "reference": pl.String(),
        "language": pl.String(),
        "category": pl.String(),
    }
)
SET_ASIDE = {"rule": pl.String(), "measure": pl.Float64(), "reason": pl.String()}


def _folder_or_name(data: Any, about: ValidationInfo) -> Any:
    if isinstance(data, str) and data.startswith((".", "/", "~")):
        return str((folder_of_file(data, about) / Path(data).expanduser()).resolve())
    if isinstance(data, str) and (data.count("/") != 1 or not all(data.split("/"))):
        raise ValueError("expected a data set's name on the hub such as facebook/belebele, or a path from ./ or /")
    return data


class Benchmark(Settings):
    """A public benchmark. `data`: a name on the Hugging Face hub, or a file or folder (relative to the recipe) that
    begins with ./, / or ~ and holds the files as they were published; left out: the project's own 20 items.

    `language`: that of the texts or, of a translation, that into which is translated. `shots`: solved items before
    each. `by`: the likeliest of the topics is picked, or the model says one (`sib200` alone). `items`: how many, from
    the first.
    """

    task: Literal["belebele", "sib200", "flores200", "ntrex128"]
    language: ItemLanguage = "khm_Khmr"
    shots: Annotated[int, Field(ge=0, le=25)] = 0
    by: Literal["likelihood", "generation"] = "likelihood"
    data: Annotated[str, BeforeValidator(_folder_or_name)] | None = None
    revision: str | None = None
    items: PositiveInt | None = None

    @model_validator(mode="after")
    def _fits_the_task(self) -> "Benchmark":
        if self.by == "generation" and self.task != "sib200":
            raise ValueError(f"by: generation is for sib200; {self.task} is measured in one way")
        if self.shots and (self.task in ("flores200", "ntrex128") or self.by == "generation"):
            raise ValueError("shots are for what is measured by likelihood")
        if self.revision and (self.data is None or self.is_local):
            raise ValueError("revision is that of a data set on the hub; set data to its name")
        return self

    @property
    def name(self) -> str:
        """How the task is called in reports and in `release.must_not_lose`."""
        parts = [self.task, self.language, f"{self.shots}-shot" if self.shots else ""]
        return " ".join(filter(None, [*parts, "said" if self.by == "generation" else ""]))

    @property
    def is_local(self) -> bool:
        """Whether nothing is fetched."""
        return self.data is None or self.data.startswith("/")


@dataclass(frozen=True)
class Item:
    """`prompt` is what the `choices` go on with (`answer` counts them from 0) or, without choices, what is asked, to be
    held against `reference`. `rule`, `measure` and `reason` tell why an item is not measured with."""

    id: str
    prompt: str = ""
    choices: list[str] = field(default_factory=list)
    answer: int | None = None
    reference: str = ""
    language: str = ""
    category: str = ""
    rule: str | None = None
    measure: float | None = None
    reason: str | None = None

    @property
    def key(self) -> str:
        """By which models are compared: other data may have the same ids."""
        return f"{self.id} {digest_of([self.prompt, self.choices, self.reference])[:8]}"


def bad(identity: str, rule: str, reason: str, measure: float = 1.0) -> Item:
    """A row that is set aside."""
    return Item(identity, rule=rule, measure=measure, reason=reason)


def as_frame(items: Mapping[str, Sequence[Item]]) -> pl.LazyFrame:
    """The items of each task as `ITEM` rows with rule, measure and reason; ids that come again and items that are too
    long are set aside."""
    rows: list[dict[str, Any]] = []
    for task, listed in items.items():
        seen: set[str] = set()
        for item in listed:
            size = len(item.prompt) + len(item.reference) + sum(map(len, item.choices))
            if any(map(_half, (item.id, item.prompt, item.reference, *item.choices))):
                item = bad(f"row {len(rows) + 1}", "unreadable", "it has half a character (a lone surrogate)")
            elif item.rule is None and item.id in seen:
                item = bad(item.id, "duplicate_id", f"the id {item.id!r:.80} was there before")
            elif item.rule is None and size > MAX_CHARACTERS:
                item = bad(item.id, "too_long", f"{size} characters, more than {MAX_CHARACTERS}", size)
            seen.add(item.id)
            rows.append({"task": task, **asdict(item)})
    return pl.LazyFrame(rows, schema={**ITEM, **SET_ASIDE})


def _half(text: str) -> bool:
    """Whether it has half a character, which can neither be kept nor be asked."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def items_of(folder: Path, task: str) -> list[Item]:
    """The items of a task in the folder of the asset that `as_frame` made."""
    frame = pl.scan_parquet(folder / "data.parquet").filter(pl.col("task") == task).drop("task").collect()
    return [Item(**row) for row in frame.iter_rows(named=True)]


def with_shots(items: Sequence[Item], pool: Sequence[Item], shots: int) -> list[Item]:
    """Each item after the first `shots` of the pool that are not itself, solved."""
    if not shots:
        return list(items)
    whole = [item for item in pool if item.rule is None]
    texts = {item.id: f"{item.prompt} {item.choices[item.answer or 0]}{SHOT_END}" for item in whole[: shots + 1]}

    def behind(item: Item) -> str:
        return "".join([text for identity, text in texts.items() if identity != item.id][:shots])

    return [item if item.rule else replace(item, prompt=behind(item) + item.prompt) for item in items]


def folder_of(benchmark: Benchmark, patterns: Sequence[str]) -> Path:
    """Where the files of a benchmark lie; those that match the patterns are fetched from the hub.

    Raises `SourceError` with what to do where there are none.
    """
    if benchmark.data is None:
        return SAMPLES / benchmark.task
    if benchmark.is_local:
        found = Path(benchmark.data)
        if not found.exists():
            raise SourceError(f"evaluation.tasks ({benchmark.name}): {found} is not there; put the files there")
        return found
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                benchmark.data, repo_type="dataset", revision=benchmark.revision, allow_patterns=list(patterns)
            )
        )
    except Exception as error:  # whatever the hub's library raises when a hub is away, or answers nonsense
        told = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
        raise SourceError(
            f"evaluation.tasks ({benchmark.name}): {benchmark.data} cannot be fetched from the hub: {told}; try again, "
            "or name the folder that holds its files"
        ) from None


def published(folder: Path, names: Sequence[str]) -> Path:
    """The first of the names that is in the folder; a file is itself. Raises `SourceError` where none is."""
    places = [folder] if folder.is_file() else [folder / name for name in names]
    for place in places:
        if place.is_file():
            if place.stat().st_size > MAX_FILE_BYTES:
                raise SourceError(f"{place} has more than {MAX_FILE_BYTES:,} bytes; that is no file of this benchmark")
            return place
    raise SourceError(f"{folder} has none of {', '.join(names)}; put the files there under the names they came with")


def rows_of(file: Path) -> Iterator[dict[str, Any]]:
    """The rows of a JSON Lines, TSV or Parquet file, as text by field; one that is none has the field `unreadable`."""
    if file.suffix == ".parquet":
        yield from pl.scan_parquet(file).collect().iter_rows(named=True)
    elif file.suffix == ".tsv":
        names, *lines = _lines(file) or [""]
        for line in filter(None, lines):
            yield dict(zip(names.split("\t"), line.split("\t"), strict=False))
    else:
        for line in _lines(file):
            if line.strip():
                try:
                    row = json.loads(line)
                    yield row if isinstance(row, dict) else {"unreadable": "it is no JSON object"}
                except (ValueError, RecursionError) as error:
                    yield {"unreadable": f"it is no JSON: {error}"}


def _lines(file: Path) -> list[str]:
    """Its lines; other separators than a newline belong to texts."""
    text = file.read_text(encoding="utf-8-sig", errors="replace")
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]


def texts_in(row: Mapping[str, Any], names: Sequence[str]) -> tuple[list[str], str | None]:
    """The fields as texts, and why the row cannot be used; nothing where it can."""
    if row.get("unreadable"):
        return [], str(row["unreadable"])
    found = ["" if row.get(name) is None else str(row[name]).strip() for name in names]
    missing = [name for name, text in zip(names, found, strict=True) if not text]
    return found, f"{', '.join(missing)} is missing or empty" if missing else None
