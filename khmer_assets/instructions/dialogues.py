"""Dialogues of several turns with a system message, written by teachers about documents and topics.

What is kept are the references: the user goes on with pronouns and short questions, and the last question must lean on
what was said before. That is told by its words (`dialogues.yaml`), a look at the surface: a question that holds "it"
counts as leaning. Rules:

| rule | measure |
|---|---|
| too_few_turns | how many exchanges there are |
| other_language | the share of the letters that are of the text's script |
| stands_alone | none; the last question leans on nothing said before |
"""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from khmer_assets.foundation.yaml_files import read_yaml
from khmer_assets.instructions.chats import Message
from khmer_assets.instructions.questions_and_answers import wording as question_wording
from khmer_assets.instructions.writing import Assignment, Ground, Unfit, Written, require_language
from khmer_assets.khmer.script import Language
from khmer_assets.teachers.settings import Template

FEWEST = 2  # exchanges


class Dialogues(Written):
    """`turns`: how many exchanges of user and assistant a dialogue has."""

    turns: Annotated[int, Field(ge=FEWEST, le=12)] = 3


@cache
def wording() -> dict[str, Any]:
    """The content of `dialogues.yaml`."""
    return read_yaml(Path(__file__).with_suffix(".yaml"))


def dialogue_task(settings: Dialogues, written_about: Sequence[Ground]) -> Assignment:
    """What is asked of the teachers, a row a dialogue."""
    languages, kinds = question_wording()["languages"], question_wording()["grounds"]
    known = {ground.id: ground for ground in written_about}
    rows = [
        {
            "id": ground.id,
            "language": languages[ground.language],
            "turns": str(settings.turns),
            "ground": f"{kinds[ground.kind]}\n{ground.text}",
        }
        for ground in written_about
    ]

    def chat(row: Mapping[str, str], value: dict[str, Any]) -> dict[str, Any]:
        language = known[row["id"]].language
        turns = value["turns"]
        said = [turn[who] for turn in turns for who in ("user", "assistant")]
        if len(turns) < FEWEST:
            raise Unfit("too_few_turns", len(turns), f"{len(turns)} exchanges, expected {FEWEST} at least")
        require_language(said, language)
        if not leans(turns[-1]["user"], language):
            raise Unfit("stands_alone", None, f"the last question names nothing said before: {turns[-1]['user']:.200}")
        messages = [Message(role="system", content=value["system"])]
        for turn in turns:
            messages += [Message(role=who, content=turn[who]) for who in ("user", "assistant")]
        return {"language": language, "messages": messages}

    exchange = {
        "type": "object",
        "properties": {who: {"type": "string", "minLength": 1} for who in ("user", "assistant")},
        "required": ["user", "assistant"],
    }
    schema = {
        "type": "object",
        "properties": {
            "system": {"type": "string", "minLength": 1},
            "turns": {"type": "array", "items": exchange, "minItems": 1, "maxItems": settings.turns},
        },
        "required": ["system", "turns"],
    }
    template = Template(
        text=wording()["text"],
        system=wording()["system"],
        answer_schema=schema,
        max_answer_tokens=settings.max_answer_tokens,
    )
    return Assignment(template, rows, chat)


def leans(question: str, language: Language) -> bool:
    """Whether a question refers to something that was said before, by its words alone.

    >>> leans("ហើយវាធំប៉ុណ្ណា?", "khm"), leans("តើរាជធានីកម្ពុជាឈ្មោះអ្វី?", "khm")
    (True, False)
    """
    for phrase in wording()["no_references"][language]:
        question = re.sub(re.escape(phrase), " ", question, flags=re.IGNORECASE)
    if language == "eng":
        return bool(set(re.findall(r"[a-z]+", question.casefold())) & set(wording()["references"]["eng"]))
    from khmer_assets.khmer.words import words  # compiles

    return bool(set(words(question)) & set(wording()["references"]["khm"]))
