"""What a materialization took: requests, tokens and money by teacher, and what became of the rows."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from khmer_assets.foundation.tables import markdown_table
from khmer_assets.teachers.limits import Size
from khmer_assets.teachers.settings import Budget, Teacher


class TeacherError(Exception):
    """Teachers that cannot be asked; the message says what was given, what is expected and what to do."""


@dataclass(frozen=True)
class Answer:
    """What became of one row: `value` fits the template's schema, or is None for a row set aside by `rule`.

    `prompt_tokens` and `answer_tokens` are the row's part of the request that it was answered in, whenever that was.
    """

    id: str
    teacher: str
    value: dict[str, Any] | None
    rule: str | None
    measure: float | None
    reason: str | None
    prompt_tokens: int
    answer_tokens: int


@dataclass
class Spent:
    """One teacher's part. `guessed` of the requests had no tokens told: theirs are guesses, and so is the cost."""

    requests: int = 0
    answered: int = 0
    rows: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    guessed: int = 0


@dataclass
class Asked:
    """The books of one materialization.

    `rows` came in; `reused` of them had their answer on disk; `missing` were not asked, for what `why_missing` says;
    `set_aside` by rule. `lost` requests of processes that died are asked again; what they took is not known. `by_day`:
    what all that was asked of these teachers took, on the last days.
    """

    teachers: Sequence[Teacher]
    rows: int = 0
    reused: int = 0
    missing: int = 0
    lost: int = 0
    set_aside: Counter[str] = field(default_factory=Counter)
    why_missing: list[str] = field(default_factory=list)
    by_teacher: dict[str, Spent] = field(default_factory=dict)
    by_day: pl.DataFrame | None = None

    @property
    def requests(self) -> int:
        """Those of this materialization that were sent and came to an end."""
        return sum(spent.requests for spent in self.by_teacher.values())

    @property
    def tokens(self) -> int:
        """Of prompts and answers."""
        return sum(spent.prompt_tokens + spent.answer_tokens for spent in self.by_teacher.values())

    @property
    def cost(self) -> float | None:
        """Money; None where a teacher that was asked has no prices."""
        costs = [self.cost_of(teacher) for teacher in self.teachers if self.by_teacher[teacher.name].answered]
        return None if None in costs else sum(cost or 0.0 for cost in costs)

    def cost_of(self, teacher: Teacher) -> float | None:
        """Money that this teacher took."""
        spent = self.by_teacher[teacher.name]
        return teacher.cost(spent.prompt_tokens, spent.answer_tokens)

    def table(self) -> pl.DataFrame:
        """A row a teacher."""
        return pl.DataFrame(
            [
                {"teacher": teacher.name, "model": teacher.model, "rows": spent.rows, "requests": spent.requests,
                 "prompt tokens": spent.prompt_tokens, "answer tokens": spent.answer_tokens,
                 "cost": told_cost(self.cost_of(teacher))}
                for teacher in self.teachers
                for spent in [self.by_teacher[teacher.name]]
            ]
        )  # fmt: skip

    def figures(self) -> dict[str, float]:
        """Numbers, as Dagster and MLflow draw them over time."""
        counts = {"rows": self.rows, "reused": self.reused, "missing": self.missing, "lost_requests": self.lost}
        counts |= {"set_aside": self.set_aside.total(), "requests": self.requests}
        counts |= {"guessed_requests": sum(spent.guessed for spent in self.by_teacher.values())}
        counts |= {"prompt_tokens": sum(spent.prompt_tokens for spent in self.by_teacher.values())}
        counts |= {"answer_tokens": sum(spent.answer_tokens for spent in self.by_teacher.values())}
        return counts | ({} if self.cost is None else {"cost": self.cost})

    def metadata(self) -> dict[str, Any]:
        """For Dagster: the figures, what each teacher took, now and day by day, the rules of what was set aside, and
        why rows are missing. Texts with `|` are tables in Markdown."""
        found: dict[str, Any] = {f"teachers_{name}": number for name, number in self.figures().items()}
        found["teachers"] = markdown_table(self.table())
        if self.by_day is not None and self.by_day.height:
            found["teachers_costs_by_day"] = markdown_table(self.by_day)
        if self.set_aside:
            rules = pl.DataFrame({"rule": list(self.set_aside), "rows": list(self.set_aside.values())})
            found["teachers_set_aside_by_rule"] = markdown_table(rules.sort("rule"))
        if self.why_missing:
            found["teachers_missing_because"] = "; ".join(self.why_missing)
        return found


class Purse:
    """What is left of a budget while requests are under way: each has set aside the most that it can take."""

    def __init__(self, budget: Budget):
        self._budget = budget
        self._requests = 0
        self._tokens = 0
        self._money = 0.0

    def allows(self, teacher: Teacher, size: Size) -> bool:
        """Whether a request that takes at most `size` may be sent."""
        budget = self._budget
        return (
            (budget.requests is None or self._requests < budget.requests)
            and (budget.tokens is None or self._tokens + size.prompt + size.answer <= budget.tokens)
            and (budget.money is None or self._money + (teacher.cost(size.prompt, size.answer) or 0) <= budget.money)
        )

    def take(self, teacher: Teacher, size: Size, requests: int = 1) -> None:
        """Set aside, or count, what a request takes."""
        self._requests += requests
        self._tokens += size.prompt + size.answer
        self._money += teacher.cost(size.prompt, size.answer) or 0.0

    def correct(self, teacher: Teacher, set_aside: Size, took: Size) -> None:
        """Count what a request took instead of the most that it could."""
        self.take(teacher, Size(took.prompt - set_aside.prompt, took.answer - set_aside.answer), requests=0)

    def told(self) -> str:
        """The budget, for people."""
        parts = {"requests": self._budget.requests, "tokens": self._budget.tokens, "of money": self._budget.money}
        return ", ".join(f"{number:,} {name}" for name, number in parts.items() if number is not None)


def told_cost(cost: float | None) -> str:
    """Money, for people."""
    return "unknown (no prices)" if cost is None else f"{cost:,.4f}"
