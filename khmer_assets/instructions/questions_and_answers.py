"""Questions with their answers, written by teachers from documents, whose text is the ground, and from topics.

Each begins with a directive (សូមពន្យល់, ចូរប្រៀបធៀប, Explain ...; `questions_and_answers.yaml`), which says how many
sentences the answer has at least. Rules:

| rule | measure |
|---|---|
| other_language | the share of the letters that are of the text's script |
| too_few_sentences | how many the answer has |
| other_directive | none; the instruction does not use the directive |
| foreign_number | how many numbers (of two and more digits) neither the document nor the question has |
"""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationInfo

from khmer_assets.foundation.settings import PositiveInt, RecipeError, Settings, folder_of_file
from khmer_assets.foundation.yaml_files import read_yaml
from khmer_assets.instructions.chats import Message
from khmer_assets.instructions.writing import Assignment, Ground, Unfit, Written, require_language
from khmer_assets.khmer.numbers import to_latin_digits
from khmer_assets.khmer.sentences import count_sentences
from khmer_assets.teachers.settings import Template

WORDING = Path(__file__).with_suffix(".yaml")
SCHEMA = {
    "type": "object",
    "properties": {
        "instruction": {"type": "string", "minLength": 1},
        "input": {"type": "string"},
        "output": {"type": "string", "minLength": 1},
    },
    "required": ["instruction", "input", "output"],
}
_NUMBER = re.compile(r"\d{2,}")


@cache
def wording() -> dict[str, Any]:
    """The content of `questions_and_answers.yaml`."""
    return read_yaml(WORDING)


class Directive(Settings):
    """`say` stands in the question; the answer has at least so many `sentences`."""

    say: Annotated[str, Field(min_length=1)]
    sentences: PositiveInt = 1


class Directives(Settings):
    """The directives by language."""

    khm: Annotated[list[Directive], Field(min_length=1)]
    eng: Annotated[list[Directive], Field(min_length=1)]


def _read(value: Any, about: ValidationInfo) -> Any:
    """The directives of a file; None stands for the project's own."""
    if value is None:
        return wording()["directives"]
    if not isinstance(value, str | Path):
        return value
    try:
        return read_yaml(folder_of_file(value, about).absolute() / value).get("directives")
    except RecipeError as error:
        raise ValueError(str(error)) from None


class QuestionsAndAnswers(Written):
    """`each`: how many questions are asked about a document or topic, with different directives. `directives`: a file
    like `questions_and_answers.yaml` with directives of your own, relative to the recipe."""

    each: PositiveInt = 1
    directives: Annotated[Directives, BeforeValidator(_read)] = Field(default=None, validate_default=True)


def question_task(settings: QuestionsAndAnswers, written_about: Sequence[Ground], seed: int) -> Assignment:
    """What is asked of the teachers, a row a question."""
    known = {"khm": settings.directives.khm, "eng": settings.directives.eng}
    rows, asked = [], {}
    for ground in written_about:
        chosen = Random(f"{seed} {ground.id}").sample(known[ground.language], len(known[ground.language]))
        for number, directive in enumerate(chosen[: settings.each], 1):
            row = {
                "id": f"{ground.id}-{number}",
                "language": wording()["languages"][ground.language],
                "directive": directive.say,
                "sentences": str(directive.sentences),
                "ground": f"{wording()['grounds'][ground.kind]}\n{ground.text}",
            }
            rows.append(row)
            asked[row["id"]] = ground, directive

    def chat(row: Mapping[str, str], value: dict[str, Any]) -> dict[str, Any]:
        ground, directive = asked[row["id"]]
        question = "\n\n".join(part for part in (value["instruction"], value["input"]) if part.strip())
        _require(question, value, ground, directive)
        return {
            "language": ground.language,
            "messages": [Message(role="user", content=question), Message(role="assistant", content=value["output"])],
        }

    template = Template(
        text=wording()["text"],
        system=wording()["system"],
        answer_schema=SCHEMA,
        max_answer_tokens=settings.max_answer_tokens,
    )
    return Assignment(template, rows, chat)


def _require(question: str, value: dict[str, Any], ground: Ground, directive: Directive) -> None:
    require_language([value["instruction"], value["output"]], ground.language)
    count = count_sentences(value["output"])
    if count < directive.sentences:
        raise Unfit("too_few_sentences", count, f"{count} sentences, expected {directive.sentences} at least")
    if directive.say.casefold() not in value["instruction"].casefold():
        raise Unfit("other_directive", None, f"the instruction does not say {directive.say}")
    if ground.kind == "document":
        known = set(_numbers(ground.text)) | set(_numbers(question))
        foreign = [number for number in _numbers(value["output"]) if number not in known]
        if foreign:
            raise Unfit("foreign_number", len(foreign), f"the document has no {', '.join(foreign)}"[:300])


def _numbers(text: str) -> list[str]:
    return _NUMBER.findall(to_latin_digits(text))
