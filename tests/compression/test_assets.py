"""The compression assets, the bundle of what they make, and their checks, run by Dagster on a tiny model.

Pruning and AWQ take long even on a tiny model; their payloads have tests of their own.
"""

import json
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from khmer_assets.definitions import assets_by_stage
from khmer_assets.recipe import SAMPLE_RECIPE, Recipe
from resources.compute import Compute
from resources.storage import FoldersIOManager

BLOCKING = {"awq_saves_memory", "gguf_reads_text_alike", "bundle_is_bit_identical"}


def recipe(variant: str = "merged") -> Recipe:
    sample = Recipe.load(SAMPLE_RECIPE)
    release = sample.release.model_copy(update={"variant": variant})
    small = {"calibration_samples": 6, "calibration_length": 32}
    variants = [*sample.compression.variants, "ctranslate2", "onnx"]
    compression = sample.compression.model_copy(update=small | {"variants": variants})
    return sample.model_copy(update={"compression": compression, "release": release})


def parts(variant: str = "merged") -> list[Any]:
    stages = assets_by_stage(recipe(variant))
    bundle, bundle_check = stages["release"][:2]
    return [*stages["compression"], bundle, bundle_check]


def checks() -> dict[str, dg.AssetChecksDefinition]:
    found = [part for part in parts() if isinstance(part, dg.AssetChecksDefinition)]
    return {key.name: part for part in found for key in part.check_keys}


def test_what_guards_the_release_is_blocking():
    for name, check in checks().items():
        assert all(spec.blocking == (name in BLOCKING) for spec in check.check_specs)


@pytest.mark.parametrize(
    ("name", "file", "good", "bad"),
    [
        (
            "pruning_is_two_of_four",
            "pruning.json",
            {"zeros_min": 0.5, "zeros_max": 0.5, "groups_broken": 0, "sparsity_config": False},
            {"zeros_min": 0.5, "zeros_max": 0.5, "groups_broken": 3, "sparsity_config": False},
        ),
        ("awq_saves_memory", "awq.json", {"linear_bytes_ratio": 0.26}, {"linear_bytes_ratio": 0.41}),
        (
            "gguf_reads_text_alike",
            "gguf.json",
            {"texts": 9, "texts_with_equal_ids": 9},
            {"texts": 9, "texts_with_equal_ids": 8},
        ),
        (
            "ctranslate2_predicts_alike",
            "ctranslate2.json",
            {"top1_agreement": 0.99, "logits_error": 0.01, "tokens_renamed": 0},
            {"top1_agreement": 0.99, "logits_error": 0.01, "tokens_renamed": 1},
        ),
        (
            "onnx_predicts_alike",
            "onnx.json",
            {"top1_agreement": 0.99, "logits_error": 0.01},
            {"top1_agreement": 0.99, "logits_error": 0.06},
        ),
        ("bundle_is_bit_identical", "bundle.json", {"bit_identical": True}, {"bit_identical": False}),
    ],
)
def test_a_check_passes_on_good_figures_only(tmp_path, name, file, good, bad):
    for figures, passes in ((good, True), (bad, False)):
        (tmp_path / file).write_text(json.dumps(figures))
        result = checks()[name](tmp_path)
        assert isinstance(result, dg.AssetCheckResult)
        assert result.passed is passes
        assert set(result.metadata) == set(figures)


@pytest.mark.slow
def test_a_merged_model_is_exported_and_bundled_and_so_is_one_partition_of_the_gguf_model(
    model, mixture, chats, tmp_path
):
    def upstream(name: str, folder: Path) -> dg.AssetsDefinition:
        @dg.asset(name=name, io_manager_key="copies")
        def given() -> Path:
            return folder

        return given

    class Given(dg.IOManager):
        def handle_output(self, context, obj):
            pass

        def load_input(self, context):
            folders = {"merged_model": model, "training_mixture": mixture, "chat_dataset": chats}
            folders["benchmark_report"] = tmp_path / "report"
            return folders[context.asset_key.to_python_identifier()]

    (tmp_path / "report").mkdir()
    given = [
        upstream("merged_model", model),
        upstream("training_mixture", mixture),
        upstream("chat_dataset", chats),
        upstream("benchmark_report", tmp_path / "report"),
    ]
    assets = [*given, *parts()]
    released_gguf = [*given, *parts("gguf Q8_0")]
    folders = FoldersIOManager(root=str(tmp_path / "store"), cache=str(tmp_path / "cache"))
    resources = {"compute": Compute(home=str(tmp_path)), "folders": folders, "copies": Given()}
    # partitioned and unpartitioned assets cannot be in one run
    results = [
        dg.materialize(assets, selection="gguf_model", partition_key="Q8_0", resources=resources),
        dg.materialize(assets, selection="release_bundle", resources=resources),
    ]
    bundle = folders.store.current("release_bundle")
    results.append(dg.materialize(released_gguf, selection="release_bundle", resources=resources))
    gguf_bundle = folders.store.current("release_bundle")

    passed = [check.check_name for r in results for check in r.get_asset_check_evaluations() if check.passed]
    assert passed == ["gguf_reads_text_alike", "bundle_is_bit_identical", "bundle_is_bit_identical"]
    assert (folders.store.current("gguf_model", "Q8_0") / "Q8_0.gguf").exists()
    assert (bundle / "sample-merged.tar.zst").exists()
    assert (gguf_bundle / "sample-gguf-Q8_0.tar.zst").exists()
    card = (gguf_bundle / "README.md").read_text()
    assert "llama-server --model Q8_0.gguf --ctx-size 256" in card
    assert "| weights | Q8_0 in GGUF |" in card
