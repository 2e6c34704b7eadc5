"""What asking would take, before anything is asked: rows, requests, tokens, money and minutes by teacher."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from khmer_assets.teachers.answers import Answers
from khmer_assets.teachers.asking import Room
from khmer_assets.teachers.books import told_cost
from khmer_assets.teachers.messages import Wording
from khmer_assets.teachers.settings import Teacher, Template

# Of a teacher that has answered nothing yet: a token a Khmer letter, of three bytes. Tokenizers that know Khmer make
# half as many; those that know none, three times as many.
TOKENS_A_BYTE = 1 / 3


@dataclass(frozen=True)
class Estimate:
    """One teacher's part. `known` of the rows have their answer on disk. `measured`: by what was answered before."""

    teacher: Teacher
    rows: int
    known: int
    requests: int
    prompt_tokens: int
    answer_tokens: int
    most_answer_tokens: int
    measured: bool

    @property
    def cost(self) -> float | None:
        """Money, most likely."""
        return self.teacher.cost(self.prompt_tokens, self.answer_tokens)

    @property
    def minutes(self) -> float:
        """The least that the teacher's limits allow."""
        limited = (
            (self.requests, self.teacher.requests_a_minute),
            (self.prompt_tokens, self.teacher.prompt_tokens_a_minute),
            (self.answer_tokens, self.teacher.answer_tokens_a_minute),
        )
        return max(amount / limit if limit else 0.0 for amount, limit in limited)


def estimates(
    teachers: Sequence[Teacher], template: Template, rows: Iterable[Mapping[str, str]], answers: Path, purpose: str
) -> list[Estimate]:
    """An estimate a teacher, of asking for these rows; nothing is asked. `purpose` as in `asking.ask`."""
    room, wording, found = Room(teachers, template, rows), Wording(template), []
    with ExitStack() as held:
        for teacher in teachers:
            items = room.items[teacher.name]
            file = answers / f"{teacher.name}.sqlite"
            kept = held.enter_context(Answers(file)) if file.exists() else None
            known = kept.known(list(items)) if kept else {}
            asked = [item for digest, item in items.items() if digest not in known]
            past = kept.past(purpose) if kept else None
            a_byte = past.prompt_tokens / past.bytes if past else TOKENS_A_BYTE
            a_row = past.answer_tokens / past.rows if past else template.max_answer_tokens
            together = min(template.rows_at_once, max(len(asked), 1))
            requests = -(-len(asked) // together)
            size = requests * len(wording.system(together).encode()) + sum(len(item.text.encode()) for item in asked)
            most = len(asked) * template.max_answer_tokens
            found.append(
                Estimate(teacher, len(items), len(known), requests, round(size * a_byte),
                         min(most, round(len(asked) * a_row)), most, past is not None)
            )  # fmt: skip
    return found


def table(asset: str, found: Sequence[Estimate]) -> pl.DataFrame:
    """A row a teacher, for people."""
    return pl.DataFrame(
        [
            {
                "asset": asset,
                "teacher": one.teacher.name,
                "rows": f"{one.rows:,}",
                "known": f"{one.known:,}",
                "requests": f"{one.requests:,}",
                "prompt tokens": f"{one.prompt_tokens:,}",
                "answer tokens": f"{one.answer_tokens:,}",
                "cost": told_cost(one.cost),
                "at most": told_cost(one.teacher.cost(one.prompt_tokens, one.most_answer_tokens)),
                "minutes at the limits": f"{one.minutes:,.1f}" if one.minutes >= 0.05 else "",
                "by": "answers so far" if one.measured else "a guess",
            }
            for one in found
        ]
    )
