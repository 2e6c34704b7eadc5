"""`khmer estimate`: what an asset would take from its teachers, before the first request.

The asset's own code runs, with teachers that count what they are asked and answer nothing; nothing is written.
"""

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
from pydantic import PrivateAttr

from khmer_assets.commands.materialization import MaterializationError
from khmer_assets.commands.steps import reason
from khmer_assets.foundation.home import home
from khmer_assets.foundation.settings import RecipeError
from khmer_assets.foundation.tables import markdown_table
from khmer_assets.recipe import Recipe
from khmer_assets.teachers.asking import Answer, Asked, TeacherError
from khmer_assets.teachers.books import Spent, told_cost
from khmer_assets.teachers.estimate import Estimate, estimates, table
from khmer_assets.teachers.settings import Budget, Teacher, Template
from resources.storage import FoldersIOManager, FramesIOManager, store_root
from resources.teachers import Teachers, purpose_of

HELP = "estimate what an asset would take from its teachers: rows, requests, tokens and money"

Told = list[tuple[str, Budget, list[Estimate]]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to estimate."""
    parser.add_argument("asset", help="an asset that asks teachers, or a group of them, as labels")


def main(arguments: argparse.Namespace) -> int:
    """Print a line for each time that the asset asks a teacher."""
    recipe = Recipe.current()
    if not recipe.teachers:
        raise RecipeError(f"{recipe.name}: no teacher is set; name one under teachers in the recipe (docs/teachers.md)")
    from khmer_assets.definitions import build_definitions  # the graph of the current recipe, which takes seconds

    told = estimated(partial(build_definitions, recipe, home()), recipe.teachers, home(), arguments.asset)
    print(f"{markdown_table(pl.concat(table(purpose, found) for purpose, _, found in told))}\n")
    every = [one for _, _, found in told for one in found]
    cost = None if any(one.cost is None and one.requests for one in every) else sum(one.cost or 0.0 for one in every)
    tokens = sum(one.prompt_tokens + one.answer_tokens for one in every)
    print(f"{sum(one.requests for one in every):,} requests, about {tokens:,} tokens, cost {told_cost(cost)}.")
    for limits in dict.fromkeys(_limits(budget) for _, budget, _ in told):
        print(f"Each time, the budget ({limits}) is the most; what it leaves out is asked the next time.")
    print(
        "A guess is one token a Khmer letter and answers as long as they may be; after the first answers, theirs count."
    )
    return 0


def _limits(budget: Budget) -> str:
    return ", ".join(f"{name} {limit:,}" for name, limit in budget if limit is not None) or "none is set"


def estimated(
    build: Callable[[Mapping[str, Any]], dg.Definitions], teachers: Sequence[Teacher], state: Path, name: str
) -> Told:
    """What each asset (and partition) of that name or group would ask, of the graph that `build` makes with resources.

    Raises `RecipeError` for a name that is none, and `MaterializationError` where an asset cannot ask yet.
    """
    told: Told = []
    storage = {"root": store_root(state), "cache": str(state / "cache")}
    settings = [teacher.model_dump(mode="json", exclude_none=True) for teacher in teachers]
    counting = Counting(home=str(state), teachers=settings).telling(told)
    resources = {"teachers": dg.ResourceDefinition.hardcoded_resource(counting)}  # else Dagster makes it anew
    defs = build(
        {**resources, "frames": ReadOnlyFrames(**storage), "folders": ReadOnlyFolders(**storage)},
    )
    graph = defs.resolve_asset_graph()
    asking = [
        k for k in graph.materializable_asset_keys if "teachers" in defs.resolve_assets_def(k).required_resource_keys
    ]
    keys = [key for key in asking if name in (key.to_user_string(), graph.get(key).group_name)]
    if not keys:
        names = ", ".join(sorted(key.to_user_string() for key in asking)) or "none"
        raise RecipeError(f"{name!r} is no asset of this recipe that asks teachers; these do: {names}")
    with dg.DagsterInstance.ephemeral() as instance:
        for key in sorted(keys):
            partitions = graph.get(key).partitions_def
            for partition in partitions.get_partition_keys() if partitions else [None]:
                _run(defs, instance, key, partition)
    return told


def _run(defs: dg.Definitions, instance: dg.DagsterInstance, key: dg.AssetKey, partition: str | None) -> None:
    job = defs.resolve_implicit_job_def_def_for_assets([key])
    assert job is not None, f"no job holds {key}"
    result = job.execute_in_process(
        run_config={"loggers": {name: {} for name in job.loggers}},
        instance=instance,
        partition_key=partition,
        asset_selection=[key],
        raise_on_error=False,
    )
    if not result.success:
        raise MaterializationError(f"{key.to_user_string()}: {reason(result)}")


class Counting(Teachers):
    """Teachers that tell what asking them would take, and have no answers."""

    _told: Told = PrivateAttr(default_factory=list)

    def telling(self, told: Told) -> "Counting":
        """This one, adding to `told`."""
        self._told = told
        return self

    def ask(
        self, context: dg.AssetExecutionContext, template: Template, rows: Iterable[Mapping[str, str]], budget: Budget
    ) -> tuple[list[Answer], Asked]:
        """No answers. Raises `dg.Failure` as its parent does."""
        try:
            found = estimates(self.known, template, rows, self.answers, purpose_of(context))
        except TeacherError as error:
            raise dg.Failure(str(error), allow_retries=False) from None
        self._told.append((purpose_of(context), budget, found))
        return [], Asked(self.known, by_teacher={teacher.name: Spent() for teacher in self.known})


class ReadOnlyFrames(FramesIOManager):
    """Frames that are read and not written."""

    def handle_output(self, context: dg.OutputContext, obj: pl.LazyFrame) -> None:
        """Nothing."""


class ReadOnlyFolders(FoldersIOManager):
    """Folders that are read and not written."""

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        """Nothing."""
