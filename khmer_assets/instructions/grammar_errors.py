"""Errors that learners make, put into good sentences by rules: so that the right sentence and the reason are known.

Each rule makes what is always wrong where it applies, not what merely is unusual: hence the lists of words. Why each is
wrong, in Khmer, stands in `tutor_tasks.yaml` under the rule's name.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from khmer_assets.foundation.yaml_files import read_yaml
from khmer_assets.khmer.numbers import NUMBER_WORDS
from khmer_assets.khmer.script import Language


class Error(NamedTuple):
    """A sentence with an error: what stands there for what should, the rule's name and the word it is about."""

    sentence: str
    wrong: str
    right: str
    rule: str
    about: str


# Words that are taken for one another, because they sound alike; each way where both are words.
CONFUSED = (
    *(("និង", "នឹង"), ("នឹង", "និង"), ("នៅ", "នូវ"), ("ពី", "ពីរ"), ("ពីរ", "ពី"), ("ដែរ", "ដែល"), ("ដែល", "ដែរ")),
    *(("ឬ", "រឺ"), ("ឲ្យ", "អោយ"), ("កំពុង", "កំពង់"), ("ថ្ងៃ", "ថ្លៃ")),
)
MARKERS = ("មិន", "នឹង", "កំពុង")  # they stand before the verb
NO_VERBS = {"សូវ", "បាន", "មែន", "ទាន់", "ៗ", "ដែល", "ជា"}  # after a marker these may change places
DOUBLED = ("នៅ", "ដែល", "និង", "របស់", "ជា", "ពី", "ក្នុង", "ដោយ", "សម្រាប់")
BANTOC, COENG = "\u17cb", "\u17d2"
_NUMBER = re.compile(rf"{NUMBER_WORDS}|[០-៩]+")
_KHMER_WORD = re.compile(r"[\u1780-\u17d3]+")

PERSONS = "He|She|It|he|she|it|mother|father|sister|brother|teacher|aunt|uncle|farmer|grandmother|grandfather|friend"
MANY = "two|three|four|five|six|seven|eight|nine|ten|twelve|twenty|many|several|these|those"
_MONTHS = "January|February|March|April|May|June|July|August|September|October|November|December"
_DAYS = "Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday"
_HOURS = r"noon|night|midnight|\d+ o'clock|(?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve) o'clock"


@cache
def _known() -> dict[str, Any]:
    """The content of `grammar_errors.yaml`."""
    return read_yaml(Path(__file__).with_suffix(".yaml"))


_Found = Iterator[tuple[int, int, str, str]]  # first and last place, what is put there, the word that it is about


def errors(sentence: str, language: Language, rng: Random) -> dict[str, Error]:
    """The errors that the rules of the language can make in a sentence: one of each rule that applies."""
    found: dict[str, Error] = {}
    for name, rule in (_KHMER_RULES if language == "khm" else _ENGLISH_RULES).items():
        places = list(rule(sentence))
        if not places:
            continue
        start, end, put, about = rng.choice(places)
        broken = sentence[:start] + put + sentence[end:]
        if broken != sentence:
            found[name] = Error(broken, put, sentence[start:end], name, about)
    return found


def rarest_error(sentence: str, language: Language, rng: Random, used: Counter[str]) -> Error | None:
    """An error that can be made, of the rule that was used least so far (`used` counts); None where none can."""
    found = errors(sentence, language, rng)
    if not found:
        return None
    rule = min(sorted(found), key=lambda name: used[name])
    used[rule] += 1
    return found[rule]


def shuffled(sentence: str, language: Language, rng: Random) -> str | None:
    """The sentence with its words in disorder, or None where it has too few to be sure."""
    parts = _words(sentence) if language == "khm" else re.findall(r"\S+", sentence)
    end = parts.pop() if language == "khm" and parts and not _KHMER_WORD.search(parts[-1]) else ""
    if len(parts) < 6:
        return None
    mixed = parts[:]
    while mixed == parts:
        rng.shuffle(mixed)
    return ("" if language == "khm" else " ").join(mixed) + end


def _words(sentence: str) -> list[str]:
    """The words and what stands between them: joined, they are the sentence."""
    from khmer_assets.khmer.words import words  # compiles

    parts, place = [], 0
    for word in words(sentence):
        start = sentence.index(word, place)
        parts += [sentence[place:start], word] if start > place else [word]
        place = start + len(word)
    return [*parts, sentence[place:]] if place < len(sentence) else parts


def _runs(sentence: str, count: int) -> Iterator[tuple[int, Sequence[str]]]:
    """Every run of `count` words with the place of its first character."""
    parts, place = _words(sentence), 0
    for number in range(len(parts) - count + 1):
        yield place, parts[number : number + count]
        place += len(parts[number])


def _confused(sentence: str) -> _Found:
    for place, (word,) in _runs(sentence, 1):
        for right, wrong in CONFUSED:
            if word == right:
                yield place, place + len(word), wrong, right


def _without(sign: str) -> Callable[[str], _Found]:
    def rule(sentence: str) -> _Found:
        for place, (word,) in _runs(sentence, 1):
            if sign in word[1:] and _KHMER_WORD.fullmatch(word):
                yield place, place + len(word), word[0] + word[1:].replace(sign, "", 1), word

    return rule


def _marker_after_verb(sentence: str) -> _Found:
    for place, (marker, verb, after) in _runs(sentence, 3):
        if marker in MARKERS and _KHMER_WORD.fullmatch(verb) and verb not in NO_VERBS and after.strip("។?! "):
            yield place, place + len(marker) + len(verb), verb + marker, marker


def _classifier_first(sentence: str) -> _Found:
    for place, (noun, number, classifier) in _runs(sentence, 3):
        if noun in _known()["nouns"] and _NUMBER.fullmatch(number) and classifier in _known()["classifiers"]:
            whole = noun + number + classifier
            yield place, place + len(whole), number + classifier + noun, noun


def _doubled(sentence: str) -> _Found:
    for place, (word,) in _runs(sentence, 1):
        if word in DOUBLED:
            yield place, place + len(word), word + word, word


def _matches(pattern: str, broken: Callable[[re.Match[str]], str | None]) -> Callable[[str], _Found]:
    """A rule that puts `broken` where the group `word` of the pattern stands."""
    compiled = re.compile(pattern)

    def rule(sentence: str) -> _Found:
        for match in compiled.finditer(sentence):
            if (put := broken(match)) is not None:
                yield match.start("word"), match.end("word"), put, match["word"]

    return rule


def _third_person(verb: str) -> str:
    if verb.endswith(("ch", "sh", "ss", "x", "o")):
        return f"{verb}es"
    return f"{verb[:-1]}ies" if verb.endswith("y") and verb[-2] not in "aeiou" else f"{verb}s"


def _singular(noun: str) -> str | None:
    if noun in _known()["no_singular"] or noun.endswith(("ss", "us", "is")) or len(noun) < 4:
        return None
    if noun.endswith("ies"):
        return f"{noun[:-3]}y"
    return noun[:-2] if noun.endswith(("ches", "shes", "xes", "sses")) else noun[:-1]


@cache
def _plain() -> dict[str, str]:
    """Verbs by their form of the third person."""
    return {"is": "are", "was": "were", "has": "have", **{_third_person(verb): verb for verb in _known()["verbs"]}}


_OF_MANY = {"are": "is", "were": "was", "have": "has"}


_PREPOSITIONS = {"in": "on", "on": "in", "at": "in", "In": "On", "On": "In", "At": "In"}


def _other_article(match: re.Match[str]) -> str | None:
    if re.match("hist|hon|hour|uni|use|one|eu", match["next"]):  # written otherwise than spoken
        return None
    return f"{match['word']}n" if len(match["word"]) == 1 else match["word"][0]


def _misspelled(match: re.Match[str]) -> str | None:
    put = _known()["misspelled"].get(match["word"].lower())
    return put.capitalize() if put and match["word"][0].isupper() else put


_KHMER_RULES: dict[str, Callable[[str], _Found]] = {
    "confused_word": _confused,
    "missing_bantoc": _without(BANTOC),
    "missing_subscript": _without(COENG),
    "marker_after_verb": _marker_after_verb,
    "classifier_first": _classifier_first,
    "doubled_word": _doubled,
}
_ENGLISH_RULES: dict[str, Callable[[str], _Found]] = {
    "agreement": _matches(rf"\b(?:{PERSONS}) (?P<word>[a-z]+)\b", lambda match: _plain().get(match["word"])),
    "agreement_of_many": _matches(
        r"\b(?:They|We|You|they|we|you) (?P<word>are|were|have)\b", lambda match: _OF_MANY[match["word"]]
    ),
    "article": _matches(r"\b(?P<word>[Aa]n?) (?P<next>[a-z]+)", _other_article),
    "preposition": _matches(
        rf"\b(?P<word>(?:[Ii]n(?= (?:{_MONTHS})\b)|[Oo]n(?= (?:{_DAYS})\b)|[Aa]t(?= (?:{_HOURS})\b)))",
        lambda match: _PREPOSITIONS[match["word"]],
    ),
    "plural": _matches(rf"\b(?:{MANY}) (?P<word>[a-z]+s)\b(?!')", lambda match: _singular(match["word"])),
    "irregular_verb": _matches(r"\b(?P<word>[a-z]+)\b", lambda match: _known()["irregular"].get(match["word"])),
    "misspelled_word": _matches(r"\b(?P<word>[A-Za-z]+)\b(?!')", _misspelled),
}
RULES: dict[Language, tuple[str, ...]] = {"khm": tuple(_KHMER_RULES), "eng": tuple(_ENGLISH_RULES)}
