"""The extension's assets, run by Dagster on a small base, and their checks."""

import json
from typing import Any

import dagster as dg
import pytest

from khmer_assets.extension.assets import extension_assets
from khmer_assets.extension.merges import Extension
from resources.compute import Compute
from resources.storage import FoldersIOManager

BLOCKING = {"tokenizer_is_lossless"}
BITS = {"bits_per_character_eng_before": 1, "bits_per_character_eng_after": 1.005}
IDS = {"english_lines_changed": 0, "code_ids_equal": True, "chat_template_ids_equal": True}


def parts() -> list[Any]:
    return extension_assets(Extension(merges=40), max_documents=2)


def checks() -> dict[str, dg.AssetChecksDefinition]:
    found = [part for part in parts() if isinstance(part, dg.AssetChecksDefinition)]
    return {key.name: part for part in found for key in part.check_keys}


def test_what_may_not_go_on_is_blocking():
    assert {name for name, check in checks().items() if any(spec.blocking for spec in check.check_specs)} == BLOCKING


@pytest.mark.parametrize(
    ("name", "file", "good", "bad"),
    [
        ("english_keeps_its_ids", "extension.json", IDS, IDS | {"english_lines_changed": 3}),
        ("english_keeps_its_ids", "extension.json", IDS, IDS | {"code_ids_equal": False}),
        ("english_is_predicted_as_before", "extension.json", BITS, BITS | {"bits_per_character_eng_after": 1.5}),
        ("english_is_predicted_as_before", "extension.json", BITS, {"not_scored": "no memory was left"}),
        ("tokenizer_is_lossless", "report.json", {"round_trip_failures": 0}, {"round_trip_failures": 1}),
        (
            "new_tokens_are_used",
            "report.json",
            {"unused_new_tokens": 0.4, "held_out_characters": 9},
            {"unused_new_tokens": 0.41, "held_out_characters": 9},
        ),
    ],
)
def test_a_check_passes_on_good_figures_only(tmp_path, name, file, good, bad):
    for figures, passes in ((good, True), (bad, False)):
        (tmp_path / file).write_text(json.dumps(figures))
        result = checks()[name](tmp_path)
        assert isinstance(result, dg.AssetCheckResult)
        assert result.passed is passes


@pytest.mark.slow
def test_a_base_is_extended_and_reported(qwen, mixture, tmp_path):
    given = {"base_model": qwen, "training_mixture": mixture}

    class Given(dg.IOManager):
        def handle_output(self, context, obj):
            pass

        def load_input(self, context):
            return given[context.asset_key.to_python_identifier()]

    upstream = [dg.AssetSpec(name).with_io_manager_key("given") for name in given]
    folders = FoldersIOManager(root=str(tmp_path / "store"), cache=str(tmp_path / "cache"))
    result = dg.materialize(
        [*upstream, *parts()],
        resources={"compute": Compute(home=str(tmp_path)), "folders": folders, "given": Given()},
    )
    verdicts = {check.check_name: check.passed for check in result.get_asset_check_evaluations()}
    assert verdicts.keys() == checks().keys()
    assert all(verdicts[name] for name in (*BLOCKING, "english_keeps_its_ids"))
    model = folders.store.current("extended_model")
    figures = json.loads((model / "extension.json").read_text())
    assert figures["llama_cpp_pre_tokenizer"] == "qwen35"
    assert figures["bits_per_character_khm_after"] < figures["bits_per_character_khm_before"]
    assert (model / "base.json").exists()
    assert (folders.store.current("tokenizer_report") / "report.md").exists()
