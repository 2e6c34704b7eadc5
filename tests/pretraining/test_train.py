"""A trained model is kept, whatever happens while it is scored."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import dagster as dg

from khmer_assets.definitions import assets_by_stage
from khmer_assets.foundation.files import digest_of_folder
from khmer_assets.foundation.home import PROJECT
from khmer_assets.pretraining import packing, train
from khmer_assets.pretraining.decoder import Decoder
from khmer_assets.pretraining.train import Pretraining
from khmer_assets.recipe import SAMPLE_RECIPE, Recipe
from khmer_assets.training import held_out
from resources.payload import PayloadRun
from tests.tiny_model import save_tiny_mixture, save_tiny_model

SETTINGS = Pretraining(
    decoder=Decoder(
        architecture="qwen3", hidden_size=32, intermediate_size=64, layers=1, attention_heads=4, key_value_heads=2
    ),
    context_length=64,
    learning_rate=0.01,
    warmup_ratio=0.1,
    batch_size=1,
    steps=8,
    checkpoint_every=8,
)


class OutOfMemory(PayloadRun):
    """Leaves less memory for scoring than the logits of all windows at once would take."""

    def log(self, text: str) -> None:
        if text.startswith("scoring"):
            status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
            size = int(status["VmSize"].split()[0]) * 1024 + 100_000_000
            resource.setrlimit(resource.RLIMIT_AS, (size, resource.RLIM_INFINITY))
            held_out.WINDOWS_A_BATCH = 10_000
            held_out.LOGITS_AT_ONCE = 1 << 40


def train_without_memory_to_score(folder: Path) -> None:
    """The pretraining payload on a tiny model, whose held-out text is long, with no memory left at its end."""
    import polars as pl

    tokenizer, mixture = save_tiny_model(folder / "tokenizer"), save_tiny_mixture(folder / "mixture")
    rows = pl.read_parquet(mixture / "data.parquet")
    longer = pl.when(split="validation").then(pl.concat_str(pl.col("text").repeat_by(4_000).list.join(" ")))
    rows.with_columns(text=longer.otherwise("text")).write_parquet(mixture / "data.parquet")
    packed = PayloadRun(folder / "packed")
    packing.main(packing.Spec(mixture=mixture, tokenizer=tokenizer, context_length=64, seed=1), packed)
    spec = train.Spec(packed=packed.output, tokenizer=tokenizer, mixture=mixture, settings=SETTINGS, seed=1,
                      max_documents=10)  # fmt: skip
    train.main(spec, OutOfMemory(folder / "work"))


def test_a_model_that_could_not_be_scored_is_kept_and_says_why(tmp_path):
    script = "import sys; from pathlib import Path; from tests.pretraining import test_train as t;"
    script += "t.train_without_memory_to_score(Path(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    output = tmp_path / "work" / "output"
    training = json.loads((output / "training.json").read_text())
    assert len(training["curve"]) == 8 and (output / "model.safetensors").exists()
    assert training["quality"] == {} and "memory" in training["not_scored"]

    parts = assets_by_stage(Recipe.load(SAMPLE_RECIPE))["pretraining"]
    checks = {part.check_key.name: part for part in parts if isinstance(part, dg.AssetChecksDefinition)}
    training["curve"] = [{"loss": 2.0}, {"loss": 1.0}]
    (output / "training.json").write_text(json.dumps(training))
    verdict = checks["training_converged"](output)
    assert not verdict.passed and verdict.severity == dg.AssetCheckSeverity.WARN and "memory" in verdict.description


def test_the_same_training_writes_the_same_files(tmp_path):
    tokenizer, mixture = save_tiny_model(tmp_path / "tokenizer"), save_tiny_mixture(tmp_path / "mixture")
    packed = PayloadRun(tmp_path / "packed")
    packing.main(packing.Spec(mixture=mixture, tokenizer=tokenizer, context_length=64, seed=1), packed)
    spec = train.Spec(packed=packed.output, tokenizer=tokenizer, mixture=mixture, settings=SETTINGS, seed=1,
                      max_documents=10)  # fmt: skip
    digests = set()
    for name in ("first", "second"):
        run = PayloadRun(tmp_path / name)
        train.main(spec, run)
        digests.add(digest_of_folder(run.output))
    assert len(digests) == 1
