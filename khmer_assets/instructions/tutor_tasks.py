"""Five tasks of a tutor for learners of Khmer and of English, made from good sentences of the corpus.

| task | answer | made by |
|---|---|---|
| fluency | a score from 0 to 5 with the reason, in Khmer | rules: 5 less what the errors put in cost |
| correction | the right sentence | rules |
| explanation | what is wrong and why, in Khmer, and the right sentence | rules |
| vocabulary | the level, A1 to C2 (Council of Europe), with the reason | teachers |
| dialogue | a short dialogue around the sentence | teachers |

The rules are those of `grammar_errors.py`; without teachers the other two tasks are left out.
"""

import hashlib
import heapq
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from random import Random
from typing import Annotated, Any, Literal, get_args

import polars as pl
from pydantic import Field

from khmer_assets.foundation.settings import PositiveInt, Settings
from khmer_assets.foundation.yaml_files import read_yaml
from khmer_assets.instructions.chats import NEW_CHAT, new_chat
from khmer_assets.instructions.grammar_errors import Error, rarest_error, shuffled
from khmer_assets.instructions.writing import Assignment, Unfit, require_language
from khmer_assets.khmer.normalization import Normalization, normalize
from khmer_assets.khmer.numbers import to_khmer_digits
from khmer_assets.khmer.script import Language, dominant_script
from khmer_assets.khmer.sentences import sentences
from khmer_assets.khmer.utterances import bare
from khmer_assets.teachers.settings import Budget, Template

Task = Literal["fluency", "vocabulary", "correction", "dialogue", "explanation"]
TASKS: tuple[Task, ...] = get_args(Task)
BY_RULES: tuple[Task, ...] = ("fluency", "correction", "explanation")

DOCUMENTS_A_TASK = 20  # that good sentences are looked for in
BEST = 5
COSTS = {"marker_after_verb": 2, "classifier_first": 2, "agreement": 2, "agreement_of_many": 2, "preposition": 2}
SCHEMAS: dict[Task, dict[str, Any]] = {
    "vocabulary": {
        "type": "object",
        "properties": {
            "level": {"type": "string", "enum": ["A1", "A2", "B1", "B2", "C1", "C2"]},
            "reason": {"type": "string", "minLength": 1},
        },
        "required": ["level", "reason"],
    },
    "dialogue": {
        "type": "object",
        "properties": {
            "lines": {
                "type": "array",
                "minItems": 2,
                "maxItems": 8,
                "items": {
                    "type": "object",
                    "properties": {key: {"type": "string", "minLength": 1} for key in ("speaker", "text")},
                    "required": ["speaker", "text"],
                },
            }
        },
        "required": ["lines"],
    },
}
ERRORS = 3  # at most, in a sentence that is scored
KHMER_LENGTH, ENGLISH_WORDS = range(20, 121), range(4, 26)
_GOOD_ENGLISH = re.compile(r"[A-Z][A-Za-z ,'-]+[.?!]")
_GOOD_KHMER = re.compile(r"[\u1780-\u17d3\u17d7\u17e0-\u17e9 ]+[។?!]")


class TutorTasks(Settings):
    """`count`: how many chats are made, of all `tasks` together in equal parts. `budget` is that of each of the tasks
    that teachers do, in one materialization, `max_answer_tokens` that of one answer."""

    count: PositiveInt = 1000
    tasks: Annotated[list[Task], Field(min_length=1)] = list(TASKS)
    max_answer_tokens: PositiveInt = 1_024
    budget: Budget = Budget()


@cache
def wording() -> dict[str, Any]:
    """The content of `tutor_tasks.yaml`."""
    return read_yaml(Path(__file__).with_name("tutor_tasks.yaml"))


def good_sentences(texts: Iterable[str], count: int, seed: int) -> list[tuple[str, Language]]:
    """`count` different whole sentences of the texts with their language, those with the lowest hashes: so that most
    stay when texts are added."""
    found: dict[str, tuple[str, Language]] = {}
    for text in texts:
        for sentence in sentences(text):
            if (language := _language(sentence)) is not None:
                found[hashlib.sha256(f"{seed} {sentence}".encode()).hexdigest()] = sentence, language
        if len(found) > 4 * count + 10_000:
            found = {key: found[key] for key in heapq.nsmallest(count, found)}
    return [found[key] for key in heapq.nsmallest(count, found)]


def _language(sentence: str) -> Language | None:
    """The language of a sentence that is a good one to learn from."""
    if dominant_script(sentence) == "Khmr":
        return "khm" if len(sentence) in KHMER_LENGTH and _GOOD_KHMER.fullmatch(sentence) else None
    words = len(sentence.split())
    return "eng" if words in ENGLISH_WORDS and _GOOD_ENGLISH.fullmatch(sentence) else None


def by_rules(
    settings: TutorTasks, source: str, texts: Iterable[str], normalization: Normalization, seed: int
) -> pl.LazyFrame:
    """The tasks that need no teacher, as `NEW_CHAT`; fewer than asked for where there are fewer good sentences."""
    tasks = [task for task in settings.tasks if task in BY_RULES]
    wanted = settings.count * len(tasks) // len(settings.tasks)
    rows = list(_rows(tasks, wanted, source, good_sentences(texts, 2 * wanted, seed), normalization, seed))
    return pl.LazyFrame(rows, schema=NEW_CHAT)


def by_teachers(settings: TutorTasks, source: str, texts: Iterable[str], seed: int) -> list[Assignment]:
    """The tasks that teachers do, with their rows."""
    tasks = [task for task in settings.tasks if task not in BY_RULES]
    good = good_sentences(texts, settings.count * len(tasks) // len(settings.tasks), seed + 1) if tasks else []
    return [_by_teachers(task, settings, source, good[number :: len(tasks)], seed) for number, task in enumerate(tasks)]


def _by_teachers(
    task: Task, settings: TutorTasks, source: str, good: list[tuple[str, Language]], seed: int
) -> Assignment:
    answered = _vocabulary if task == "vocabulary" else _dialogue
    rows = [{"id": f"{task}-{number}", "sentence": sentence} for number, (sentence, _) in enumerate(good)]

    def made(row: Mapping[str, str], value: dict[str, Any]) -> dict[str, Any]:
        sentence, language = good[int(row["id"].rpartition("-")[2])]
        exchange = sentence, answered(sentence, language, value)
        return chat(source, task, sentence, language, exchange, Random(f"{seed} {sentence}"))

    template = Template(
        **wording()["teachers"][task], answer_schema=SCHEMAS[task], max_answer_tokens=settings.max_answer_tokens
    )
    return Assignment(template, rows, made)


def _vocabulary(sentence: str, language: Language, value: dict[str, Any]) -> str:
    require_language([value["reason"]], "khm")
    return f"{wording()['answers']['level'].format(level=value['level'])} {value['reason'].strip()}"


def _dialogue(sentence: str, language: Language, value: dict[str, Any]) -> str:
    require_language([line["text"] for line in value["lines"]], language)
    if not any(bare(sentence) in bare(line["text"]) for line in value["lines"]):
        raise Unfit("sentence_missing", None, f"nobody says the sentence: {sentence}")
    return "\n".join(f"{line['speaker'].strip()}: {line['text'].strip()}" for line in value["lines"])


def _rows(
    tasks: list[Task],
    count: int,
    source: str,
    good: list[tuple[str, Language]],
    normalization: Normalization,
    seed: int,
) -> Iterator[dict[str, Any]]:
    used: Counter[str] = Counter()  # so that rules that seldom apply are not lost beside those that always do
    made = 0
    for sentence, language in good:
        if made == count:
            return
        task = tasks[made % len(tasks)]
        rng = Random(f"{seed} {sentence}")
        if task == "fluency":
            exchange = _fluency(sentence, language, rng, used)
        elif (error := rarest_error(sentence, language, rng, used)) is None:
            continue
        else:
            corrected = f"{explained(error)}\n{wording()['answers']['corrected']}\n{sentence}"
            exchange = error.sentence, sentence if task == "correction" else corrected
        if normalize(exchange[0], normalization)[0] != exchange[0]:
            continue  # normalization would undo the error
        made += 1
        yield chat(source, task, sentence, language, exchange, rng)


def chat(
    source: str, task: Task, sentence: str, language: Language, exchange: tuple[str, str], rng: Random
) -> dict[str, Any]:
    """A row of `NEW_CHAT` that asks a task of the sentence `exchange[0]`, made of the good `sentence`."""
    prompt = f"{rng.choice(wording()['prompts'][task])}\n{exchange[0]}"
    identity = f"{source}-{task}-{hashlib.sha256(sentence.encode()).hexdigest()[:12]}"
    return new_chat(identity, source, language, "tutor", [prompt, exchange[1]], task=task)


def explained(error: Error) -> str:
    """What is wrong and why, in Khmer."""
    values = error._asdict() | {"reason": wording()["reasons"].get(error.right, "")}
    return str(wording()["explanations"][error.rule]).format_map(values).strip()


def _fluency(sentence: str, language: Language, rng: Random, used: Counter[str]) -> tuple[str, str]:
    """The sentence with no error, with some, or in disorder; and its score with the reasons."""
    made: list[Error] = []
    broken, wanted = sentence, rng.randint(0, ERRORS + 1)
    if wanted > ERRORS and (disorder := shuffled(sentence, language, rng)) is not None:
        return disorder, _scored(0, [wording()["explanations"]["shuffled"]])
    for _ in range(min(wanted, ERRORS)):
        error = rarest_error(broken, language, rng, used)
        if error is None or error.rule in {one.rule for one in made} or _overlap(error, made):
            break
        broken = error.sentence
        made.append(error)
    score = max(0, BEST - sum(COSTS.get(error.rule, 1) for error in made))
    return broken, _scored(score, [explained(error) for error in made] or [wording()["answers"]["correct"]])


def _overlap(error: Error, made: list[Error]) -> bool:
    """Whether a later error changed what an earlier one is about, so that its explanation would be wrong."""
    return any(one.wrong not in error.sentence or one.wrong in error.right or error.wrong in one.wrong for one in made)


def _scored(score: int, reasons: list[str]) -> str:
    return "\n".join([wording()["answers"]["score"].format(score=to_khmer_digits(score)), *reasons])
