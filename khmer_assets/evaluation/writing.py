"""How the Khmer is written that a model generates: script, canonical order, broken syllables, damage, repetition.

Whether what is said is right does not belong here (`tasks/`).
"""

import re
from collections.abc import Iterable, Mapping

from khmer_assets.evaluation.measures import Measure, mean_of
from khmer_assets.khmer.normalization import Normalization, normalize
from khmer_assets.khmer.script import KHMER_LETTERS, LATIN_LETTERS, script_shares

TASK = "writing"
# A word mark, or a deprecated letter, is a choice of spelling; the order of a syllable is right or wrong.
SPELLING = Normalization(zero_width_space="keep", fold_deprecated=False)
HARMLESS = {"spaces", "line_ending", "nfc"}  # rules of `normalize` that say nothing of how Khmer is written

_LETTER = re.compile(r"[^\W\d_]")
_OWN = re.compile(f"{KHMER_LETTERS}|{LATIN_LETTERS}")
_MARK = "[\u17b6-\u17d1\u17d3\u17dd]"
_BASE = "[\u1780-\u17b3]"
# a subscript sign without a consonant after it, or a vowel or sign without a letter that carries it
_BROKEN = re.compile(f"\u17d2(?!\u200c*{_BASE})|(?<![\u1780-\u17d3\u17dd\u200b-\u200d\u25cc]){_MARK}")
_DAMAGED = re.compile("[\ud800-\udfff\ufffd]")
_REPEATED = re.compile(r"(\S.{0,60}?)\1{3,}", re.DOTALL)  # four times the same, one behind the other
_SHORT_RUN = 12  # characters; what lengthens a cry, or a row of dots, is no loop

ABOUT = {
    "Khmer where asked for": "share of Khmer among the Khmer and Latin letters of answers that should be Khmer",
    "canonical": "answers that normalizing does not change",
    "whole syllables": "answers without a subscript sign or vowel that stands alone",
    "undamaged": "answers without U+FFFD and lone surrogates",
    "without loops": "answers in which nothing stands four times in a row",
    "own scripts": "answers without a letter that is neither Khmer nor Latin",
}


def faults(text: str, language: str) -> dict[str, float]:
    """A score from 0 to 1 for each of `ABOUT`; 1 is without fault. Share of Khmer only where `language` is khm_Khmr,
    and the text has letters."""
    rules = set(normalize(text, SPELLING)[1]) - HARMLESS
    scores = {
        "canonical": float(not rules - {"lone_surrogate"}),
        "whole syllables": float(not _BROKEN.search(text)),
        "undamaged": float(not _DAMAGED.search(text)),
        "without loops": float(not any(len(run[0]) > _SHORT_RUN for run in _REPEATED.finditer(text))),
        "own scripts": float(not any(not _OWN.match(letter) and letter not in "ៗ" for letter in _LETTER.findall(text))),
    }
    khmer, latin = script_shares(text)
    if language == "khm_Khmr" and khmer + latin:
        scores["Khmer where asked for"] = khmer
    return scores


def measures(answers: Mapping[str, tuple[str, str]]) -> list[Measure]:
    """The measures of all generations, by id: the text, and the language in which it was asked for. An empty answer
    says nothing of how it is written."""
    found: dict[str, dict[str, float]] = {name: {} for name in ABOUT}
    for identity, (text, language) in answers.items():
        if text:
            for name, score in faults(text, language).items():
                found[name][identity] = score
    return [mean_of(TASK, name, scores, scale=100) for name, scores in found.items() if scores]


def examples(answers: Iterable[tuple[str, str]], shown: int = 3) -> dict[str, list[str]]:
    """The first answers with each fault."""
    found: dict[str, list[str]] = {}
    for text, language in answers:
        for name, score in faults(text, language).items() if text else ():
            if score < 0.5 and len(found.setdefault(name, [])) < shown:
                found[name].append(text)
    return found
