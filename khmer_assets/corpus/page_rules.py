"""The rules that judge a text as a page, with their limits: FineWeb2's for Khmer, Gopher's and FineWeb's for English.

`filters.py` lists the rules and says when a text is judged as a page; `measures.py` counts.
"""

from typing import Annotated

from pydantic import Field, model_validator

from khmer_assets.corpus.verdicts import Rule, above, below
from khmer_assets.foundation.settings import PositiveFloat, PositiveInt, Ratio, Settings

TopNgram = Annotated[int, Field(ge=2, le=4)]
DuplicateNgram = Annotated[int, Field(ge=5, le=10)]


class PageRules(Settings):
    """Limits on what Gopher and FineWeb measure on a page (`khmer_assets/corpus/measures.py`). Shares from 0 to 1."""

    min_words: PositiveInt = 50
    max_words: PositiveInt = 100_000
    min_word_length: PositiveFloat
    max_word_length: PositiveFloat
    min_alphabetic_words: Ratio
    stop_words: Annotated[tuple[str, ...], Field(min_length=1)]
    min_stop_words: Annotated[int, Field(ge=0)] = 2
    max_hashes: PositiveFloat = 0.1
    max_ellipses: PositiveFloat = 0.1
    max_line_breaks: PositiveFloat
    max_duplicate_lines: Ratio
    max_duplicate_line_characters: Ratio = 0.1
    min_punctuated_lines: Ratio
    max_bullet_lines: Ratio = 0.9
    max_ellipsis_lines: Ratio = 0.3
    max_top_ngrams: dict[TopNgram, PositiveFloat]
    max_duplicate_ngrams: dict[DuplicateNgram, PositiveFloat]

    @model_validator(mode="after")
    def _limits_in_order(self) -> "PageRules":
        for least, most in (("min_words", "max_words"), ("min_word_length", "max_word_length")):
            if getattr(self, least) >= getattr(self, most):
                raise ValueError(f"{least} ({getattr(self, least)}) must be below {most}")
        return self


class KhmerPages(PageRules):
    """The defaults are FineWeb2's for khm_Khmr (its configuration of that name and its pipeline)."""

    min_word_length: PositiveFloat = 2
    max_word_length: PositiveFloat = 13
    min_alphabetic_words: Ratio = 0.905
    stop_words: Annotated[tuple[str, ...], Field(min_length=1)] = (
        "មាន", "បាន", "ដែល", "ជា", "និង", "នៅ", "របស់", "ក្នុង", "ថា", "នេះ", "នៃ", "ហើយ", "ទៅ", "ដោយ"
    )  # fmt: skip
    max_line_breaks: PositiveFloat = 0.361
    max_duplicate_lines: Ratio = 0.917
    min_punctuated_lines: Ratio = 0.0
    max_top_ngrams: dict[TopNgram, PositiveFloat] = {2: 0.594, 3: 0.523, 4: 0.438}
    max_duplicate_ngrams: dict[DuplicateNgram, PositiveFloat] = {
        5: 0.175, 6: 0.16, 7: 0.148, 8: 0.135, 9: 0.121, 10: 0.109
    }  # fmt: skip


class EnglishPages(PageRules):
    """The defaults are Gopher's (Rae et al. 2021, section A.1) and, for lines, FineWeb's (Penedo et al. 2024)."""

    min_word_length: PositiveFloat = 3
    max_word_length: PositiveFloat = 10
    min_alphabetic_words: Ratio = 0.8
    stop_words: Annotated[tuple[str, ...], Field(min_length=1)] = (
        "the", "be", "to", "of", "and", "that", "have", "with"
    )  # fmt: skip
    max_line_breaks: PositiveFloat = 0.3
    max_duplicate_lines: Ratio = 0.3
    min_punctuated_lines: Ratio = 0.12
    max_top_ngrams: dict[TopNgram, PositiveFloat] = {2: 0.2, 3: 0.18, 4: 0.16}
    max_duplicate_ngrams: dict[DuplicateNgram, PositiveFloat] = {
        5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.1
    }  # fmt: skip


def page_rules(limits: PageRules) -> list[Rule]:
    """The rules on what `measures.word_measures` counts, in the order in which they judge."""
    from khmer_assets.corpus.measures import DUPLICATE_NGRAMS, TOP_NGRAMS

    return [
        below("few_words", "plain_words", limits.min_words, "{} words, at least {} are wanted"),
        above("many_words", "plain_words", limits.max_words, "{} words, at most {} are allowed"),
        above(
            "duplicate_lines", "duplicate_lines", limits.max_duplicate_lines, "{} of the lines repeat, at most {} may"
        ),
        *(
            above(
                "repeated_phrase",
                f"top_{n}_grams",
                limits.max_top_ngrams[n],
                f"{{}} of the text are one run of {n} words, at most {{}} may be",
            )
            for n in TOP_NGRAMS
            if n in limits.max_top_ngrams
        ),
        *(
            above(
                "duplicate_ngrams",
                f"duplicate_{n}_grams",
                limits.max_duplicate_ngrams[n],
                f"{{}} of the text are repeated runs of {n} words, at most {{}} may be",
            )
            for n in DUPLICATE_NGRAMS
            if n in limits.max_duplicate_ngrams
        ),
        below(
            "punctuated_lines",
            "punctuated_lines",
            limits.min_punctuated_lines,
            "{} of the lines end as a sentence does, at least {} are wanted",
        ),
        above(
            "duplicate_line_characters",
            "duplicate_line_characters",
            limits.max_duplicate_line_characters,
            "{} of the text are repeated lines, at most {} may be",
        ),
        above("line_breaks", "line_breaks", limits.max_line_breaks, "{} line breaks to a word, at most {} are allowed"),
        below("word_length", "word_length", limits.min_word_length, "a mean of {} characters a word, at least {}"),
        above("word_length", "word_length", limits.max_word_length, "a mean of {} characters a word, at most {}"),
        above("hashes", "hashes", limits.max_hashes, "{} signs # to a word, at most {} are allowed"),
        above("ellipses", "ellipses", limits.max_ellipses, "{} ellipses to a word, at most {} are allowed"),
        above("bullet_lines", "bullet_lines", limits.max_bullet_lines, "{} of the lines are items, at most {} may be"),
        above(
            "ellipsis_lines",
            "ellipsis_lines",
            limits.max_ellipsis_lines,
            "{} of the lines end with an ellipsis, at most {} may",
        ),
        below(
            "alphabetic_words",
            "alphabetic_words",
            limits.min_alphabetic_words,
            "{} of the words have a letter, at least {} should",
        ),
        below(
            "stop_words", "stop_words", limits.min_stop_words, "{} of the most usual words occur, at least {} should"
        ),
    ]
