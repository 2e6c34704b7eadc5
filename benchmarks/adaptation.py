"""How well an open model learns Khmer with new tokens, against the same training without them.

    python -m benchmarks.adaptation --seconds 600

The model is SmolLM2-135M-Instruct, which knows no Khmer. Both train on the same text (Khmer, and English replay as
training_mixture weighs it) for `--seconds` of processor time each, by `pretraining/continued.py`; learning the merges
is not counted in. Measured are bits a character: of Khmer, on documents of the same kinds that the content's hash keeps
out of training; of other Khmer and of English, on texts of another kind than what is trained on: the Universal
Declaration of Human Rights, where the data folder has it, and the sample's English readings. English ids are compared
on all lines of the held-out English documents, on code and on a chat.
"""

import argparse
import hashlib
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import polars as pl
import torch

from benchmarks import open_model
from khmer_assets.corpus.mixture import Mixture, mix
from khmer_assets.extension import embeddings, merges
from khmer_assets.foundation.home import PROJECT
from khmer_assets.foundation.tables import markdown_table
from khmer_assets.khmer.normalization import Normalization, normalize
from khmer_assets.khmer.script import script_shares
from khmer_assets.pretraining import packing
from khmer_assets.pretraining.continued import Continued, ContinuedOptimizer
from khmer_assets.training.held_out import held_out_quality, model_scorer
from khmer_assets.training.models import autocast, end_of_text_id, load_model
from resources.payload import PayloadRun

DATA = PROJECT.parent / "shared" / "data"
KHMER = ["office_help.jsonl:km", "wikipedia_lines.jsonl:text"]
ENGLISH = ["office_help.jsonl:en"]
OTHER = {
    "english": [PROJECT / "khmer_assets" / "sample" / "english_readings.txt", DATA / "udhr.en.txt"],
    "other_khmer": [DATA / "udhr.km.txt"],
}
REPLAY = 0.15
SEQUENCE, BATCH = 256, 4  # so few tokens a step that a slow processor makes enough steps
LEARNING_RATE, WARMUP = 2e-4, 0.05
CHARACTERS, OF_A_DOCUMENT = 8_000, 600  # held-out text that is scored


def documents(files: list[str], language: str) -> pl.LazyFrame:
    """The different texts of `files` ("path:field" of JSON lines) in the columns of the corpus stage."""
    texts = set()
    for name in files:
        path, _, field = name.rpartition(":")
        if not Path(path).exists():
            sys.exit(f"{path}: no such file; name JSON lines with --khmer and --english PATH:FIELD")
        for text in pl.read_ndjson(path, infer_schema_length=None)[field].drop_nulls():
            text = normalize(text, Normalization())[0] if language == "khm" else text
            if (script_shares(text)[0] > 0.5) == (language == "khm"):
                texts.add(text)
    hashes = {text: hashlib.sha256(text.encode()).hexdigest() for text in texts}
    of_text = list(hashes.values())
    frame = pl.LazyFrame({"id": of_text, "text": list(hashes), "content_hash": of_text})
    return frame.with_columns(source=pl.lit(language), language=pl.lit(language))


def train(folder: Path, packed: Path, first_new: int, seconds: float, seed: int) -> tuple[Any, dict[str, float]]:
    """The model in `folder` after `seconds` of processor time, and what it did in them."""
    model = load_model(folder).train()
    sequences = packing.PackedSequences(packing.open_stream(packed), SEQUENCE, BATCH, seed)
    optimizer = ContinuedOptimizer(model, Continued(), first_new, steps=1)
    started, step = time.process_time(), 0
    while (elapsed := time.process_time() - started) < seconds:
        progress = elapsed / seconds
        optimizer.steps = max(1, round(step / progress)) if step else 1_000_000  # as many as the time will allow
        ids = torch.from_numpy(sequences.batch(step))
        with autocast("auto"):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(LEARNING_RATE * min(progress / WARMUP, (1 - progress) / (1 - WARMUP)))
        step += 1
    optimizer.finish()
    return model.eval(), {"steps": step, "tokens_a_second": step * SEQUENCE * BATCH / elapsed}


def bits(model: Any, tokenizer: Any, texts: dict[str, list[str]]) -> dict[str, float]:
    """Bits a character of the texts, by language, and tokens a character of the Khmer."""
    score, end = model_scorer(model), end_of_text_id(tokenizer)
    quality = {name: held_out_quality(score, tokenizer, end, some, 2 * SEQUENCE) for name, some in texts.items()}
    return {f"{name}_bits": one["bits_per_character"] for name, one in quality.items()} | {
        "tokens_a_character": quality["khmer"]["tokens_per_character"]
    }


def held_out_texts(mixture: Path) -> dict[str, list[str]]:
    """Texts of up to `OF_A_DOCUMENT` characters, `CHARACTERS` in all: the mixture's held-out Khmer, and the others."""
    frame = pl.read_parquet(mixture / "data.parquet").filter(split="validation", language="khm")
    khmer = frame["text"].str.slice(0, OF_A_DOCUMENT).to_list()
    chosen = {"khmer": [text for place, text in enumerate(khmer) if sum(map(len, khmer[:place])) < CHARACTERS]}
    for name, files in OTHER.items():
        whole = normalize("\n\n".join(file.read_text() for file in files if file.exists()), Normalization())[0]
        whole = whole[:CHARACTERS]
        if whole:
            chosen[name] = [whole[at : at + OF_A_DOCUMENT] for at in range(0, len(whole), OF_A_DOCUMENT)]
    return chosen


def main() -> None:
    """Extend the tokenizer and the model, train with and without; print the table and the JSON line."""
    from transformers import AutoTokenizer

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600, help="processor time of each training")
    parser.add_argument("--merges", type=int, default=merges.Extension().merges)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--khmer", action="append", metavar="PATH:FIELD", help="JSON lines to learn from")
    parser.add_argument("--english", action="append", metavar="PATH:FIELD", help="JSON lines to replay")
    arguments = parser.parse_args()
    base = open_model.folder()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        mixture = work / "mixture"
        mixture.mkdir()
        sources = {
            "khm": documents(arguments.khmer or [str(DATA / file) for file in KHMER], "khm"),
            "eng": documents(arguments.english or [str(DATA / file) for file in ENGLISH], "eng"),
        }
        settings = Mixture(weights={"khm": 1 - REPLAY, "eng": REPLAY})
        mix(sources, settings, arguments.seed, work).collect().write_parquet(mixture / "data.parquet")
        held_out = held_out_texts(mixture)

        started = time.process_time()
        tokenizer_run = PayloadRun(work / "tokenizer")
        spec = merges.Spec(base=base, mixture=mixture, settings=merges.Extension(merges=arguments.merges))
        figures = merges.main(spec, tokenizer_run)
        print(
            f"{arguments.merges:,} merges learned in {time.process_time() - started:.0f} s of processor time: {figures}"
        )
        extended = work / "extended"
        extended.mkdir()
        embeddings.extend(base, tokenizer_run.output, extended)

        for contender, folder in (("with new tokens", extended), ("without", base)):
            tokenizer = AutoTokenizer.from_pretrained(folder)
            rows.append({"model": contender, "trained": False, **bits(load_model(folder).eval(), tokenizer, held_out)})
            packed = PayloadRun(work / contender)
            packing.main(
                packing.Spec(mixture=mixture, tokenizer=folder, context_length=SEQUENCE, seed=arguments.seed), packed
            )
            model, did = train(folder, packed.output, figures["first_new_token"], arguments.seconds, arguments.seed)
            rows.append({"model": contender, "trained": True, **bits(model, tokenizer, held_out), **did})
            print(rows[-2:], flush=True)
    print(markdown_table(pl.DataFrame(rows)))
    _, own, plain, control = rows
    print(
        json.dumps(
            {
                "bits_per_character": round(own["khmer_bits"], 4),
                "without_extension": round(control["khmer_bits"], 4),
                "ratio": round(own["khmer_bits"] / control["khmer_bits"], 4),
                "tokens_per_character": round(own["tokens_a_character"], 4),
                "tokens_per_character_before": round(plain["tokens_a_character"], 4),
                "english_bits_before": round(plain["english_bits"], 4),
                "english_bits_after": round(own["english_bits"], 4),
                "english_ids_equal": not figures["english_lines_changed"]
                and figures["code_ids_equal"]
                and figures["chat_template_ids_equal"],
            }
        )
    )


if __name__ == "__main__":
    main()
