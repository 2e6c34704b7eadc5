"""The rules of the house that a machine can keep: imports run one way, and the graph loads without heavy libraries."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from resources.home import PROJECT

STAGES = {path.parent.name for path in (PROJECT / "khmer_assets").glob("*/assets.py")}
HEAVY = [
    "torch",
    "transformers",
    "mlflow",
    "llmcompressor",
    "lancedb",
    "numba",
    "ray",
    "scrapy",
    "trafilatura",
    "matplotlib",
    "peft",
]


def imports(file: Path) -> set[str]:
    """Names of the project's modules that a file imports, at any depth of its code."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in names if name.split(".")[0] in ("khmer_assets", "resources", "jobs", "sensors")}


def files(folder: str) -> list[Path]:
    return sorted((PROJECT / folder).rglob("*.py"))


def test_every_stage_stands_in_its_folder():
    assert {
        "corpus", "tokenizer", "pretraining", "instructions", "finetuning", "compression", "evaluation", "serving"
    } == STAGES  # fmt: skip


@pytest.mark.parametrize(
    ("folder", "may_import"),
    [
        ("khmer_assets/khmer", ("khmer_assets.khmer",)),
        ("resources", ("resources",)),
        ("jobs", ("jobs", "resources")),
        ("sensors", ("sensors", "resources", "jobs")),
    ],
)
def test_imports_run_one_way(folder, may_import):
    for file in files(folder):
        astray = {name for name in imports(file) if not name.startswith(may_import)}
        assert not astray, f"{file.relative_to(PROJECT)} imports {astray}"


def test_plain_modules_of_a_stage_know_nothing_of_the_graph():
    for stage in STAGES:
        for file in files(f"khmer_assets/{stage}"):
            if file.name != "assets.py":
                text = file.read_text()
                assert "import dagster" not in text, f"{file.relative_to(PROJECT)} imports dagster"
                assert not any(name.endswith(".assets") for name in imports(file))


def test_the_graph_loads_without_heavy_libraries():
    script = f"import sys, khmer_assets.definitions; print([m for m in {HEAVY} if m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", script], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"
