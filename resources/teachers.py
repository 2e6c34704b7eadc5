"""The teachers of the recipe, as assets ask them: answers on disk under the state folder, books in the metadata."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import Field

from khmer_assets.teachers.asking import Answer, Asked, TeacherError, ask
from khmer_assets.teachers.settings import Budget, Teacher, Template


class Teachers(dg.ConfigurableResource):
    """`teachers` are settings of `khmer_assets/teachers/settings.py`; their answers lie in `<home>/teachers`."""

    home: str
    teachers: list[dict[str, Any]] = Field(default_factory=list)

    def ask(
        self,
        context: dg.AssetExecutionContext,
        template: Template,
        rows: Iterable[Mapping[str, str]],
        budget: Budget,
    ) -> tuple[list[Answer], Asked]:
        """The answers for the rows (`khmer_assets.teachers.asking.ask`). Raises `dg.Failure` with a user's mistake."""
        teachers = [Teacher.model_validate(teacher) for teacher in self.teachers]
        if not teachers:
            raise dg.Failure("the recipe names no teacher: set teachers (docs/teachers.md)", allow_retries=False)
        try:
            return ask(teachers, template, rows, Path(self.home) / "teachers", budget, context.log.info)
        except TeacherError as error:
            raise dg.Failure(str(error), allow_retries=False) from None
