"""Documents that hold a text of an evaluation set, found by shared n-grams of characters (white space aside).

As for GPT-3 (Brown et al. 2020, appendix C), one shared run is enough; there it is 13 words, here as many characters,
for Khmer writes no spaces. A text of the set that is shorter than a run is found where it is all of a document.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field

from khmer_assets.foundation.settings import PlainValues, Settings
from khmer_assets.khmer.normalization import Normalization, normalize
from khmer_assets.sources import reading
from khmer_assets.sources.catalogue import Source
from khmer_assets.sources.documents import SET_ASIDE
from khmer_assets.sources.rows import SourceError


class Decontamination(Settings):
    """`evaluation_sets`: each the settings of a source of kind `files`, paths relative to the catalogue. A document
    that shares a run of `ngram` characters (white space aside) with one of them is removed; 50 characters of Khmer
    are about the 13 words of GPT-3 (Brown et al. 2020, appendix C)."""

    ngram: Annotated[int, Field(ge=8, le=1000)] = 50
    evaluation_sets: list[PlainValues] = []


SHOWN_CHARACTERS = 80  # of the document, from where the shared run is
# Rules of a source that lose nothing here: a text that comes twice, or is empty.
HARMLESS = ("duplicate_id", "exact_duplicate", "missing_text")


@dataclass(frozen=True)
class Evaluation:
    """The n-grams of all evaluation sets: `hashes`, sorted, and for each the number of the first set that has it.

    `beginnings` has a bit for every possible value of a hash's first 24 bits, set where a hash begins so: nearly all
    n-grams of a clean document are told from the sets' by that alone.
    """

    ngram: int
    names: tuple[str, ...]
    hashes: NDArray[np.uint64]
    sets: NDArray[np.uint16]
    beginnings: NDArray[np.uint8]

    @property
    def digest(self) -> str:
        """Equal for equal n-grams and sets."""
        content = hashlib.sha256(repr((self.ngram, self.names)).encode())
        content.update(self.hashes.tobytes())
        content.update(self.sets.tobytes())
        return content.hexdigest()[:16]

    def find(self, hashes: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Places of the given hashes that are among these, and their places here."""
        start = hashes >> np.uint64(40)
        bits = self.beginnings[start >> np.uint64(3)] >> (start & np.uint64(7)).astype(np.uint8)
        likely = np.flatnonzero(bits & np.uint8(1))
        places = np.searchsorted(self.hashes, hashes[likely])
        if not likely.size:
            return likely, places
        same = self.hashes[np.minimum(places, self.hashes.size - 1)] == hashes[likely]
        return likely[same], places[same]


def evaluation_sources(settings: Decontamination) -> list[Source]:
    """The evaluation sets as sources, so that what reads and digests a source does so with them."""
    return [
        Source(name=f"evaluation_set_{number}", kind="files", license="", settings=values)
        for number, values in enumerate(settings.evaluation_sets, start=1)
    ]


def evaluation_texts(settings: Decontamination, base: Path, normalization: Normalization) -> dict[str, list[str]]:
    """The texts of each evaluation set in canonical spelling, by the set's path.

    Raises `RecipeError` for wrong settings; `SourceError` for data that is not there, and for a row that cannot be
    read: what it holds would stay in the corpus.
    """
    texts: dict[str, list[str]] = {}
    for source in evaluation_sources(settings):
        rows = reading.read(source, base).select("text", "rule", "reason").collect()
        unread = rows.filter(pl.col("rule").is_not_null() & ~pl.col("rule").is_in(HARMLESS))
        if unread.height:
            raise SourceError(
                f"{source.name}: {unread.height} rows cannot be read, and would not be looked for in the corpus; the "
                f"first is {unread['reason'][0]}. Correct or remove them."
            )
        texts.setdefault(str(source.settings["path"]), []).extend(
            normalize(text, normalization)[0] for text in rows["text"]
        )
    return texts


def evaluation_hashes(texts: Mapping[str, Iterable[str]], ngram: int) -> Evaluation:
    """What `contamination_batch` looks for: the n-grams of the texts of each set, by its name."""
    from khmer_assets.corpus.ngrams import ngram_hashes

    found = [[np.empty(0, dtype=np.uint64), *(ngram_hashes(text, ngram) for text in group)] for group in texts.values()]
    hashes = np.concatenate([np.empty(0, dtype=np.uint64), *(part for group in found for part in group)])
    sizes = [sum(part.size for part in group) for group in found]
    numbers = np.repeat(np.arange(len(sizes), dtype=np.uint16), sizes)
    different, first = np.unique(hashes, return_index=True)
    beginnings = np.zeros(1 << 24, dtype=bool)
    beginnings[different >> np.uint64(40)] = True
    return Evaluation(ngram, tuple(texts), different, numbers[first], np.packbits(beginnings, bitorder="little"))


def contamination_batch(batch: pl.DataFrame, evaluation: Evaluation) -> pl.DataFrame:
    """`batch` (columns of `DOCUMENT`, and rule, measure and reason) in its order: a row that no rule has set aside
    gets the rule `contaminated` where it shares an n-gram with an evaluation set; the measure is the share of its
    n-grams that do."""
    rows = batch.select("text", *SET_ASIDE).iter_rows()
    verdicts = [_verdict(text or "", evaluation) if own[0] is None else own for text, *own in rows]
    columns = list(zip(*verdicts, strict=True)) or [()] * len(SET_ASIDE)
    return batch.with_columns(
        pl.Series(name, values, dtype=kind) for (name, kind), values in zip(SET_ASIDE.items(), columns, strict=True)
    )


def _verdict(text: str, evaluation: Evaluation) -> tuple[str | None, float | None, str | None]:
    from khmer_assets.corpus.ngrams import ngram_hashes

    if not evaluation.hashes.size:
        return None, None, None
    own = ngram_hashes(text, evaluation.ngram)
    shared, places = evaluation.find(own)
    if not shared.size:
        return None, None, None
    names = [evaluation.names[number] for number in np.unique(evaluation.sets[places])]
    where = "".join(text.split())[shared[0] : shared[0] + SHOWN_CHARACTERS]
    reason = (
        f"{shared.size} of {own.size} runs of {evaluation.ngram} characters are in {', '.join(names)}, from: {where}"
    )
    return "contaminated", shared.size / own.size, reason
