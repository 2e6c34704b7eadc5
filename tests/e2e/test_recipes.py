"""The recipes that ship, whole, with fewer layers and steps: a file that `extends` each of them says how few."""

import importlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import pytest
import yaml

from khmer_assets.definitions import build_definitions
from khmer_assets.recipe import Recipe
from resources.compute import Compute
from resources.instance import ON_DEMAND
from resources.payload import PayloadRun
from tests.tiny_model import ENGLISH_TEXTS, KHMER_TEXTS, save_tiny_model

pytestmark = pytest.mark.slow

SMALL = """
instructions: {files: [chats.jsonl], generated_chats: null}
finetuning: {context_length: 128, rank: 8, epochs: 1, checkpoint_every: 20, precision: auto}
compression: {calibration_samples: 8, calibration_length: 64}
evaluation: {max_documents: 5, max_new_tokens: 8, prompts: [សួស្តី]}
release: {max_bits_per_character: 100}
"""
OF_TEXT = """
catalogue: sources.yaml
filters: {short_texts: keep}
deduplication: {embedder: null}
mixture: {validation_ratio: 0.2}
"""
REDUCED = {
    "qwen2_5_3b_lora": "base: {model: ./qwen2}",
    "llama_3_2_3b_qlora": "base: {model: ./llama}",
    "qwen2_5_3b_khmer": OF_TEXT
    + """
base: {model: ./qwen2}
extension: {merges: 60}
pretraining: {context_length: 128, batch_size: 4, steps: 10, checkpoint_every: 10, pilot: null, precision: auto}
""",
    "gpt2_500m": OF_TEXT
    + """
tokenizer: {vocabulary_size: 512}
pretraining:
  decoder: {hidden_size: 256, intermediate_size: 256, layers: 2, attention_heads: 4, key_value_heads: 4}
  context_length: 128
  batch_size: 4
  micro_batch_size: 2
  steps: 20
  checkpoint_every: 10
  pilot: 0.5
  precision: auto
  sharding: null
""",
}


class Here(Compute):
    """Payloads run in the process of the test: what a process of their own adds is shown by the tests of Compute."""

    @contextmanager
    def run(self, context, payload, spec, env=None) -> Iterator[Path]:
        module = importlib.import_module(payload)
        run = PayloadRun(Path(self.home) / "work" / context.asset_key.to_python_identifier() / context.run_id)
        context.add_output_metadata(module.main(spec, run), output_name="result")
        yield run.output


@pytest.fixture
def project(tmp_path) -> Path:
    """A folder with chats, texts and a catalogue of them, and a tiny model of each base's kind."""
    sums = [(a, b) for a in range(1, 9) for b in range(1, 8)]
    chats = [[("user", f"តើ {a} បូក {b} ស្មើប៉ុន្មាន?"), ("assistant", f"ស្មើនឹង {a + b}។")] for a, b in sums]
    lines = [{"messages": [{"role": role, "content": content} for role, content in chat]} for chat in chats]
    (tmp_path / "chats.jsonl").write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines))
    texts = [f"{one} {another}" for one in KHMER_TEXTS for another in (*KHMER_TEXTS, *ENGLISH_TEXTS) if one != another]
    (tmp_path / "text.txt").write_text("\n".join(texts))
    source = {"name": "text", "kind": "files", "license": "CC0", "settings": {"path": "text.txt", "split": "line"}}
    (tmp_path / "sources.yaml").write_text(yaml.safe_dump({"sources": [source]}))
    save_tiny_model(tmp_path / "qwen2", architecture="qwen2")
    save_tiny_model(tmp_path / "llama", architecture="llama")
    return tmp_path


@pytest.mark.parametrize("name", REDUCED)
def test_a_recipe_leads_to_its_release(name, project):
    (project / "recipe.yaml").write_text(f"extends: {name}\n{SMALL}\n{REDUCED[name]}")
    recipe = Recipe.load(project / "recipe.yaml")
    defs = build_definitions(recipe, project / "home", {"compute": Here(home=str(project / "home"))})
    graph = defs.resolve_asset_graph()
    needed = [key for key in graph.toposorted_asset_keys if graph.get(key).is_materializable]
    with dg.DagsterInstance.local_temp(str(project)) as instance:
        for key in needed[: needed.index(dg.AssetKey("release")) + 1]:
            if ON_DEMAND.items() <= graph.get(key).tags.items():
                continue
            partitions = graph.get(key).partitions_def
            for partition in partitions.get_partition_keys() if partitions else [None]:
                job = defs.resolve_implicit_job_def_def_for_assets([key])
                assert job is not None
                job.execute_in_process(asset_selection=[key], partition_key=partition, instance=instance)
    release = defs.resources["folders"].store.current("release")
    assert json.loads((release / "release.json").read_text())["variant"] == "merged"
    assert (release / "model" / "model.safetensors").exists()
