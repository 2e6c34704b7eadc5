"""The rules of the house that a machine can keep: where things stand, and that imports run one way."""

import ast
import importlib
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from khmer_assets.foundation.home import PROJECT
from khmer_assets.sources.catalogue import KINDS

# From the ground up: a room imports from those before it alone.
ROOMS = [
    *("khmer_assets.foundation", "khmer_assets.khmer", "khmer_assets.sample", "khmer_assets.server"),
    *("khmer_assets.teachers", "resources"),
    *("khmer_assets.sources", "khmer_assets.corpus", "khmer_assets.labels", "khmer_assets.tokenizer"),
    "khmer_assets.training",
    *("khmer_assets.base_model", "khmer_assets.extension", "khmer_assets.pretraining", "khmer_assets.instructions"),
    *("khmer_assets.finetuning", "khmer_assets.compression", "khmer_assets.evaluation", "khmer_assets.release"),
    *("khmer_assets.adapters", "khmer_assets.router", "khmer_assets.failures", "khmer_assets.load", "jobs", "sensors"),
    "khmer_assets.recipe",
    *("khmer_assets.definitions", "khmer_assets.commands", "khmer_assets.__main__", "benchmarks"),
]
MAX_LINES = 400
LARGEST_SHARE = 0.25
HEAVY = {"torch", "transformers", "mlflow", "llmcompressor", "lancedb", "numba", "ray", "scrapy", "trafilatura"}
HEAVY |= {"matplotlib", "peft"}


def name_of(file: Path) -> str:
    return ".".join(file.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__")


FILES = {
    name_of(file): file
    for folder in ("khmer_assets", "resources", "jobs", "sensors", "benchmarks")
    for file in sorted((PROJECT / folder).rglob("*.py"))
}


def room_of(module: str) -> str:
    return ".".join(module.split(".")[:2]) if module.startswith("khmer_assets.") else module.split(".")[0]


def imports(file: Path) -> set[str]:
    """The project's modules that a file imports, at any depth of its code."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            whole = {f"{node.module}.{alias.name}" for alias in node.names} & FILES.keys()
            names |= whole or {node.module}
    return (names & FILES.keys()) - {"khmer_assets", name_of(file)}


def test_imports_run_down_to_the_ground():
    for module, file in FILES.items():
        if module != "khmer_assets":
            allowed = ROOMS[: ROOMS.index(room_of(module)) + 1]
            astray = {name for name in imports(file) if room_of(name) not in allowed}
            assert not astray, f"{module} imports {astray}"


def test_no_two_modules_name_each_other():
    TopologicalSorter({module: imports(file) for module, file in FILES.items()}).prepare()  # raises for a circle


def test_no_module_is_too_long_and_no_room_too_large():
    lines = {module: len(file.read_text().splitlines()) for module, file in FILES.items()}
    assert not {module: count for module, count in lines.items() if count > MAX_LINES}
    rooms = {room: sum(count for module, count in lines.items() if room_of(module) == room) for room in ROOMS}
    assert max(rooms.values()) <= LARGEST_SHARE * sum(rooms.values())


def test_plain_modules_of_a_stage_know_nothing_of_the_graph():
    stages = {file.parent for file in FILES.values() if file.name == "assets.py"}
    for module, file in FILES.items():
        if file.parent in stages and file.name != "assets.py":
            assert "import dagster" not in file.read_text(), f"{module} imports dagster"
            assert not any(name.endswith(".assets") for name in imports(file)), module


@pytest.mark.parametrize("kind", KINDS)
def test_the_folder_of_kinds_holds_kinds_and_nothing_else(kind):
    module = importlib.import_module(f"khmer_assets.sources.kinds.{kind}")
    assert callable(module.fingerprint)
    assert hasattr(module, "read") != hasattr(module, "collect")


def test_tests_mirror_the_tree():
    for file in (PROJECT / "tests").rglob("test_*.py"):
        place = file.relative_to(PROJECT / "tests")
        if place.parts[0] != "e2e" and len(place.parts) > 1:
            name = file.stem.removeprefix("test_")
            tested = [PROJECT / root / place.parent / name for root in ("khmer_assets", "")]
            found = [entry for path in tested for entry in (path, *path.parent.glob(f"{name}.*")) if entry.exists()]
            assert found or name == place.parts[0], f"{place}: there is no module {name}"


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("khmer_assets.definitions", HEAVY),
        ("khmer_assets.server.gateway", HEAVY | {"dagster", "polars"}),
        ("khmer_assets.server.supervisor", HEAVY | {"dagster", "polars"}),
    ],
)
def test_what_must_start_at_once_loads_no_heavy_library(module, unwanted):
    script = f"import sys, {module}; print(sorted({unwanted} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", script], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"
