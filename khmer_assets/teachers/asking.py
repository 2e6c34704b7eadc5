"""Asking teachers about many rows."""

import hashlib
import json
import math
import os
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from khmer_assets.teachers.messages import digest_of_row, messages, rendered, sent_schema, taken_apart
from khmer_assets.teachers.settings import Budget, Teacher, Template


class TeacherError(Exception):
    """A teacher that cannot be asked; the message says what was given, what is expected and what to do."""


@dataclass(frozen=True)
class Answer:
    """What became of one row: `value` fits the template's schema, or is None for a row set aside by `rule`."""

    id: str
    teacher: str
    value: dict[str, Any] | None
    rule: str | None
    measure: float | None
    reason: str | None
    prompt_tokens: int
    answer_tokens: int


@dataclass
class Asked:
    """The books of one materialization."""

    rows: int = 0
    requests: int = 0
    reused: int = 0
    missing: int = 0
    set_aside: dict[str, int] = field(default_factory=dict)

    def metadata(self) -> dict[str, Any]:
        """For Dagster and MLflow."""
        return {"rows": self.rows, "requests": self.requests, "reused": self.reused, "missing": self.missing}


def teacher_of(teachers: Sequence[Teacher], values: Mapping[str, str]) -> Teacher:
    """The teacher of a row, by its content alone: more rows, or another teacher, move no more rows than they must."""
    content = json.dumps(dict(sorted(values.items())), ensure_ascii=False)

    def weight(teacher: Teacher) -> float:
        digest = hashlib.sha256(f"{teacher.name}\0{content}".encode("utf-8", "surrogatepass")).digest()
        position = (int.from_bytes(digest[:7], "big") + 1) / (256**7 + 1)
        return -teacher.share / math.log(position)

    return max(teachers, key=weight)


def ask(
    teachers: Sequence[Teacher],
    template: Template,
    rows: Iterable[Mapping[str, str]],
    answers: Path,
    budget: Budget,
    log: Callable[[str], None],
) -> tuple[list[Answer], Asked]:
    """The teachers' answers for rows, which have an `id` and the template's values, in the order of the rows."""
    answers.mkdir(parents=True, exist_ok=True)
    found, asked = [], Asked()
    for row in rows:
        asked.rows += 1
        values = {name: row[name] for name in template.placeholders}
        teacher = teacher_of(teachers, values)
        with sqlite3.connect(answers / f"{teacher.name}.sqlite") as kept:
            kept.execute("CREATE TABLE IF NOT EXISTS early (digest TEXT PRIMARY KEY, answer TEXT)")
            digest = digest_of_row(teacher.model, template, rendered(template, values))
            known = kept.execute("SELECT answer FROM early WHERE digest = ?", [digest]).fetchone()
            if known is None and budget.requests is not None and asked.requests >= budget.requests:
                asked.missing += 1
                continue
            if known is None:
                asked.requests += 1
                known = [json.dumps(_request(teacher, template, rendered(template, values)))]
                kept.execute("INSERT INTO early VALUES (?, ?)", [digest, known[0]])
            else:
                asked.reused += 1
        answer = Answer(row["id"], teacher.name, *json.loads(known[0]))
        if answer.rule is not None:
            asked.set_aside[answer.rule] = asked.set_aside.get(answer.rule, 0) + 1
        found.append(answer)
    return found, asked


def _request(teacher: Teacher, template: Template, text: str) -> list[Any]:
    key = os.environ.get(teacher.key_variable) if teacher.key_variable else None
    body = {
        "model": teacher.model,
        "messages": messages(template, [text]),
        "max_tokens": template.max_answer_tokens,
        "temperature": template.temperature,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": sent_schema(template, 1), "strict": True},
        },
    }
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    response = httpx.post(f"{teacher.address}/chat/completions", json=body, headers=headers, timeout=120)
    if response.status_code != 200:
        raise TeacherError(f"{teacher.address} answered {response.status_code}: {response.text[:200]}")
    answer = response.json()
    (value,) = taken_apart(template, answer["choices"][0]["message"]["content"] or "", 1)
    usage = answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]
    return [value, None, None, None, *usage] if isinstance(value, dict) else [None, *value, *usage]
