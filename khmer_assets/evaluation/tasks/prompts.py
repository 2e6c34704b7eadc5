"""The recipe's prompts: answered side by side for people, with checks that a program can make."""

import re
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import model_validator

from khmer_assets.evaluation.items import ItemLanguage
from khmer_assets.evaluation.measures import Measure, mean_of
from khmer_assets.foundation.settings import PositiveInt, Settings
from khmer_assets.khmer.script import dominant_script

TASK = "prompts"
SCRIPTS: dict[ItemLanguage, str] = {"khm_Khmr": "Khmr", "eng_Latn": "Latn"}
DIGITS = {"khmer": "[\u17e0-\u17e9]", "latin": "[0-9]"}


class Prompt(Settings):
    """What is asked, and what the answer must be like. `language`: that of most of its letters. `contains`: texts that
    it must hold, `one_of`: of which it must hold one, `lacks`: none. `digits`: in which its numbers are written."""

    prompt: str
    language: ItemLanguage | None = None
    contains: list[str] = []
    one_of: list[str] = []
    lacks: list[str] = []
    min_characters: PositiveInt | None = None
    max_characters: PositiveInt | None = None
    digits: Literal["khmer", "latin"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        return {"prompt": value} if isinstance(value, str) else value

    @property
    def has_checks(self) -> bool:
        """Whether a program can tell whether an answer will do."""
        return bool(self.model_fields_set - {"prompt"})


def failures(prompt: Prompt, answer: str) -> list[str]:
    """What the answer is not that it must be."""
    said = answer.casefold()
    found = [f"lacks {text!r}" for text in prompt.contains if text.casefold() not in said]
    if prompt.one_of and not any(text.casefold() in said for text in prompt.one_of):
        found.append(f"has none of {', '.join(map(repr, prompt.one_of))}")
    found += [f"has {text!r}" for text in prompt.lacks if text.casefold() in said]
    if prompt.language and dominant_script(answer) != SCRIPTS[prompt.language]:
        found.append(f"is not in {prompt.language}")
    if prompt.min_characters and len(answer) < prompt.min_characters:
        found.append(f"has {len(answer)} characters, fewer than {prompt.min_characters}")
    if prompt.max_characters and len(answer) > prompt.max_characters:
        found.append(f"has {len(answer)} characters, more than {prompt.max_characters}")
    if prompt.digits:
        other = DIGITS["latin" if prompt.digits == "khmer" else "khmer"]
        if not re.search(DIGITS[prompt.digits], answer) or re.search(other, answer):
            found.append(f"is not in {prompt.digits} digits")
    return found


def measure(prompts: Sequence[Prompt], answers: Sequence[str]) -> Measure | None:
    """The share of the prompts with checks whose answers pass all of them; nothing where none has any."""
    scores = {
        prompt.prompt: float(not failures(prompt, answer))
        for prompt, answer in zip(prompts, answers, strict=True)
        if prompt.has_checks
    }
    return mean_of(TASK, "checks passed", scores, scale=100) if scores else None
