"""The teachers of the recipe, as assets ask them: answers on disk under the state folder, books in MLflow."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import Field

from khmer_assets.teachers.asking import Answer, Asked, TeacherError, ask
from khmer_assets.teachers.settings import Budget, Teacher, Template
from resources.tracking import record


class Teachers(dg.ConfigurableResource):
    """`teachers` are settings of `khmer_assets/teachers/settings.py`, without nulls, for Dagster takes none; their
    answers lie in `<home>/teachers`."""

    home: str
    teachers: list[dict[str, Any]] = Field(default_factory=list)

    @property
    def answers(self) -> Path:
        """The folder of the SQLite files, one a teacher."""
        return Path(self.home) / "teachers"

    @property
    def known(self) -> list[Teacher]:
        """The teachers as settings."""
        return [Teacher.model_validate(teacher) for teacher in self.teachers]

    def ask(
        self,
        context: dg.AssetExecutionContext,
        template: Template,
        rows: Iterable[Mapping[str, str]],
        budget: Budget,
    ) -> tuple[list[Answer], Asked]:
        """The answers for the rows and the books, as `khmer_assets.teachers.asking.ask` gives them.

        The asset puts `Asked.metadata()` into its metadata; what was paid is also a run in MLflow, named after the
        asset. Raises `dg.Failure` with the message of a user's mistake.
        """
        name = purpose_of(context)
        try:
            answers, asked = ask(self.known, template, rows, self.answers, budget, context.log.info, name)
        except TeacherError as error:
            raise dg.Failure(str(error), allow_retries=False) from None
        if asked.requests:
            parameters = {"template": template.version, "teachers": ", ".join(sorted(asked.by_teacher))}
            record(Path(self.home), name, context.run_id, parameters, asked.figures())
        return answers, asked


def purpose_of(context: dg.AssetExecutionContext) -> str:
    """Under which name an asset's part of the costs is told."""
    name = context.asset_key.to_user_string()
    return f"{name} ({context.partition_key})" if context.has_partition_key else name
