"""A tutor's chats in the words and forms of the typed client (`client/`), made by rules of what the sample knows.

| task | asked about | answer |
|---|---|---|
| fluency | a sentence with no error, with some, or in disorder | 1 to 5: 5 less what the errors cost; reasons |
| grammar | a sentence with an error, or with none | the right sentence, the change and its reason |
| explanation | a sentence with an error | the rule, the reason, the right sentence |
| vocabulary | a sentence of which words are explained | word, level and meaning, in Khmer or English |
| dialogue | a word | questions and answers about it, in Khmer or English |

The sentences are the facts that the sample knows: a model that small corrects what it could say itself. A word's level
is told by how often it is used: A1 where at least one sentence of a hundred holds it, A2 one of 300, B1 one of 1,000,
else B2. Errors and reasons are those of `tutor_tasks.py`, which has wordings of its own for people; these chats are
what programs ask.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import chain, repeat
from pathlib import Path
from random import Random
from typing import Annotated, Any, Literal

import polars as pl
from pydantic import Field

from khmer_assets.foundation.settings import Settings
from khmer_assets.foundation.yaml_files import read_yaml
from khmer_assets.instructions.chats import NEW_CHAT, new_chat
from khmer_assets.instructions.grammar_errors import Error, rarest_error, shuffled
from khmer_assets.instructions.tutor_tasks import BEST, COSTS, explained
from khmer_assets.instructions.tutor_tasks import wording as reasons
from khmer_assets.khmer.normalization import Normalization, normalize
from khmer_assets.khmer.script import Language
from khmer_assets.sample import composition

Task = Literal["fluency", "grammar", "explanation", "vocabulary", "dialogue"]
SHARES: dict[Task, int] = {"grammar": 6, "explanation": 4, "fluency": 4, "vocabulary": 4, "dialogue": 2}  # of 20 chats
ROUNDS = 8  # of errors that are made in each sentence, at most
LEVELS = (("A1", 1 / 100), ("A2", 1 / 300), ("B1", 1 / 1_000), ("B2", 0.0))
RIGHT_SHARE = 0.15  # of the sentences that are to be corrected
WORDS = 2  # of a sentence that are explained at most, so that the answer fits a small model's context
MOST_ERRORS = 2
LINES = 4  # of a dialogue
ABOUT = ("provinces", "capitals", "animals", "colors", "jobs")  # tables of facts that dialogues are about
LONGEST = 60  # characters of a sentence
LONGEST_ANSWER = 225  # characters: with what the client says before, it fits a context of 256 of the sample's tokens

Row = dict[str, Any]


class EmbeddedTutor(Settings):
    """`chats`: how many are made, of all five tasks together."""

    kind: Literal["embedded_tutor"]
    chats: Annotated[int, Field(ge=100, le=20_000)] = 3_000


@cache
def wording() -> dict[str, Any]:
    """The content of `embedded_tutor.yaml`."""
    return read_yaml(Path(__file__).with_suffix(".yaml"))


def tutor_chats(settings: EmbeddedTutor, source: str, normalization: Normalization, seed: int) -> pl.LazyFrame:
    """The chats as `NEW_CHAT`, the same for the same seed; fewer than asked for where the rules find no more."""
    rng = Random(seed)
    good = _sentences(rng)
    lexicon = _lexicon([sentence for sentence, language in good if language == "khm"])
    made: dict[Task, Iterator[Row]] = {
        "fluency": _with_errors(_fluency, good, rng),
        "grammar": _with_errors(_grammar, good, rng),
        "explanation": _with_errors(_explanation, good, rng),
        "vocabulary": _vocabulary(lexicon, good),
        "dialogue": _dialogues(rng),
    }
    rows = []
    for task, share in SHARES.items():
        wanted = settings.chats * share // sum(SHARES.values())
        for row in made[task]:
            if normalize(row["text"], normalization)[0] != row["text"]:
                continue  # normalization would undo the error
            chat = _chat(source, task, row)
            if len(chat["messages"][-1]["content"]) > LONGEST_ANSWER:
                continue
            rows.append(chat)
            wanted -= 1
            if wanted == 0:
                break
    return pl.LazyFrame(rows, schema=NEW_CHAT)


def system_prompt(task: Task, **values: Any) -> str:
    """What the typed client tells a model of a task."""
    question = str(wording()["questions"][task]).format(**values)
    return f"{question} {wording()['answer_with']} {wording()['patterns'][task]}"


def _chat(source: str, task: Task, row: Row) -> Row:
    asked = {"language": "Khmer", **row["asked"]}
    answer = json.dumps(row["answer"], ensure_ascii=False, separators=(",", ":"))  # as engines hold models to
    identity = hashlib.sha256(f"{asked} {row['text']}".encode()).hexdigest()[:12]
    language = "eng" if row.get("language") == "eng" else "khm"
    turns = [row["text"], answer]
    return new_chat(f"{source}-{task}-{identity}", source, language, "tutor", turns, system_prompt(task, **asked), task)


def _sentences(rng: Random) -> list[tuple[str, Language]]:
    """What the sample knows, a short sentence each."""
    known = {fact.answer: fact.language for fact in composition.facts() if len(fact.answer) <= LONGEST}
    return rng.sample([*known.items()], len(known))


def _with_errors(make: Any, good: Sequence[tuple[str, Language]], rng: Random) -> Iterator[Row]:
    used: Counter[str] = Counter()  # so that rules that seldom apply are not lost beside those that always do
    made = set()
    for sentence, language in chain.from_iterable(repeat(good, ROUNDS)):
        row = make(sentence, language, rng, used)
        if row is not None and row["text"] not in made:
            made.add(row["text"])
            yield {"language": language, "asked": {}, **row}


def _fluency(sentence: str, language: Language, rng: Random, used: Counter[str]) -> Row | None:
    made: list[Error] = []
    text, wanted = sentence, rng.randint(0, MOST_ERRORS + 1)
    if wanted > MOST_ERRORS:
        if (disorder := shuffled(sentence, language, rng)) is None:
            return None
        return {"text": disorder, "answer": _judged(1, [reasons()["explanations"]["shuffled"]])}
    for _ in range(wanted):
        error = rarest_error(text, language, rng, used)
        if (
            error is None
            or error.rule in {one.rule for one in made}
            or any(e.wrong not in error.sentence for e in made)
        ):
            break
        text = error.sentence
        made.append(error)
    score = max(1, BEST - sum(COSTS.get(error.rule, 1) for error in made))
    return {"text": text, "answer": _judged(score, [_told(error) for error in made])}


def _judged(score: int, problems: list[str]) -> Row:
    return {"score": score, "problems": problems, "summary": wording()["summaries"][score]}


def _told(error: Error) -> str:
    """What is wrong, in Khmer and in one sentence: the contexts of small models are short."""
    first, _, _ = explained(error).partition("។")
    return f"{first}។"


def _grammar(sentence: str, language: Language, rng: Random, used: Counter[str]) -> Row | None:
    if rng.random() < RIGHT_SHARE:
        return {"text": sentence, "answer": {"corrected": sentence, "changes": []}}
    if (error := rarest_error(sentence, language, rng, used)) is None:
        return None
    change = {"before": error.wrong, "after": error.right, "reason": wording()["rules"][error.rule]}
    return {"text": error.sentence, "answer": {"corrected": sentence, "changes": [change]}}


def _explanation(sentence: str, language: Language, rng: Random, used: Counter[str]) -> Row | None:
    if (error := rarest_error(sentence, language, rng, used)) is None:
        return None
    answer = {"rule": wording()["rules"][error.rule], "explanation": _told(error), "examples": [sentence]}
    return {"text": error.sentence, "answer": answer}


def _lexicon(khmer: Sequence[str]) -> dict[str, Row]:
    """Level and meanings (`km`, `en`) of the words that the sample knows, by the word."""
    tables = composition.knowledge()["tables"]
    found: dict[str, Row] = {word: {"km": km, "en": en} for word, (km, en) in wording()["meanings"].items()}
    for table, told in wording()["meanings_of_tables"].items():
        for values in tables[table]["rows"]:
            row = dict(zip(tables[table]["columns"], values, strict=True))
            found.setdefault(row["km"], {key: told[key].format_map(row) for key in ("km", "en")})
    counted = Counter(word for sentence in khmer for word, _ in _known_words(sentence, found.keys()))
    for word, meanings in found.items():
        share = counted[word] / max(1, len(khmer))
        meanings["level"] = next(level for level, least in LEVELS if share >= least)
    return found


def _known_words(sentence: str, known: Any) -> list[tuple[str, int]]:
    """The known words in a Khmer sentence, the longest where several begin, with their places, each once."""
    from khmer_assets.khmer.words import words  # compiles

    parts, found, place = words(sentence), dict[str, int](), 0
    while place < len(parts):
        for size in (4, 3, 2, 1):
            word = "".join(parts[place : place + size])
            if word in known:
                found.setdefault(word, place)
                place += size - 1
                break
        place += 1
    return list(found.items())


def _vocabulary(lexicon: dict[str, Row], good: Sequence[tuple[str, Language]]) -> Iterator[Row]:
    """Sentences with words that the sample can explain, those in which rarer words stand first."""
    for sentence, language in good:
        known = [word for word, _ in _known_words(sentence, lexicon.keys())] if language == "khm" else []
        if not known:
            continue
        hard = sorted(known, key=lambda word: lexicon[word]["level"], reverse=True)[:WORDS]
        for key, name in (("km", "Khmer"), ("en", "English")):
            words = [
                {"word": word, "level": lexicon[word]["level"], "meaning": lexicon[word][key]}
                for word in known
                if word in hard
            ]
            yield {"text": sentence, "asked": {"language": name}, "answer": {"words": words}}


def _dialogues(rng: Random) -> Iterator[Row]:
    """Dialogues of questions and answers about a thing, each asked for in several ways."""
    facts: dict[tuple[str, Language], list[composition.Fact]] = defaultdict(list)
    by_task: dict[int, list[composition.Fact]] = defaultdict(list)
    for fact in composition.facts():
        by_task[fact.task].append(fact)
    tables = composition.knowledge()["tables"]
    for number, task in enumerate(composition.knowledge()["tasks"]):
        if task["table"] in ABOUT and task["questions"]:
            column = tables[task["table"]]["columns"].index("km" if task["language"] == "khm" else "en")
            for row, fact in zip(tables[task["table"]]["rows"], by_task[number], strict=False):
                facts[row[column], task["language"]].append(fact)
    seen = set()
    rounds = 6
    for number in range(rounds):
        for (topic, language), known in facts.items():
            words = wording()["dialogues"][language]
            pairs = [(rng.choice(fact.questions), fact.answer) for fact in rng.sample(known, min(2, len(known)))]
            pairs = [*[tuple(words["greeting"])] * (len(pairs) < 2), *pairs]
            lines = [line for pair in pairs for line in pair][:LINES]
            title = words["title"].format(topic=topic)
            spoken = [{"speaker": words["speakers"][n % 2], "text": line} for n, line in enumerate(lines)]
            asked = {
                "language": words["language"],
                "lines": LINES,
                "level": ("A2", "A1", "B1")[number % 3],
            }
            told = words["topics"][number % len(words["topics"])].format(topic=topic)
            if (told, asked["level"]) not in seen:
                seen.add((told, asked["level"]))
                answer = {"title": title, "lines": spoken}
                yield {"text": told, "language": language, "asked": asked, "answer": answer}
