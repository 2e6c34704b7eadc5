"""`khmer evaluate`: measures another model on the recipe's tasks and puts it into the benchmark report."""

import argparse
from collections.abc import Callable
from pathlib import Path

from khmer_assets.commands.materialization import MaterializationError, materialize
from khmer_assets.commands.on_demand import show
from khmer_assets.commands.steps import current
from khmer_assets.evaluation.assets import COMPARED
from khmer_assets.evaluation.compare import models_in
from khmer_assets.evaluation.remote import is_address
from khmer_assets.foundation.files import in_turn, write_whole
from khmer_assets.foundation.home import home
from resources.storage import MissingArtifact, Store, store_root

HELP = "measure another model on the recipe's tasks, and put it into the benchmark report"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which model."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a folder, a hub's name such as Qwen/Qwen2.5-0.5B-Instruct, or what a "
        "server serves: http://127.0.0.1:8000/v1#khmer (its key in OPENAI_API_KEY)",
    )


def main(arguments: argparse.Namespace) -> int:
    """Measure the model and print the report. A model that cannot be used is not kept."""
    model = str(Path(arguments.model).resolve()) if Path(arguments.model).is_dir() else arguments.model
    if not model.startswith("/") and not is_address(model) and model.count("/") != 1:
        raise MaterializationError(
            f"{model}: expected a folder that is there, a hub's name such as Qwen/Qwen2.5-0.5B-Instruct, or a server's "
            "address and its model's name, as http://127.0.0.1:8000/v1#khmer"
        )
    try:
        Store(store_root(home()), home() / "cache").current("benchmark_report")
    except MissingArtifact as error:
        raise MaterializationError(f"{error}: `khmer run` makes it, and what other models are compared with") from None
    known = model in _changed(lambda models: [*models, model])
    try:
        materialize(current, home(), "compared_evaluation")
    except MaterializationError:
        if not known:
            _changed(lambda models: [other for other in models if other != model])
        raise
    show("benchmark_report", "report.md")
    return 0


def _changed(change: Callable[[list[str]], list[str]]) -> list[str]:
    """Change the list of models, of which another evaluation may change its own part; return what it was before."""
    file = home() / COMPARED
    with in_turn(home() / "compared"):
        former = models_in(file)
        write_whole(file, "".join(f"{model}\n" for model in dict.fromkeys(change(former))))
    return former
