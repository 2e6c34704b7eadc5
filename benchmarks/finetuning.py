"""How fast an open model is finetuned on chats, beside TRL's SFTTrainer on the same chats, and how well.

    python -m benchmarks.finetuning

SmolLM2-135M-Instruct, held in bfloat16, gets a LoRA adapter of rank 16 from chats about the pages of a help (JSON
lines with the field `en`), most of some hundred tokens and none of more than 1,024. All contenders see each chat once,
in about as many steps, with the same learning rate, falling linearly. Each runs in a process of its own. Tokens are
those of the chats, without padding, a second of processor time (of time on a GPU) from the first step to the end of
the last; memory is the process's peak. The loss is measured on the same held-out chats, by the same function.

TRL's defaults pad each batch and compute activations twice to save memory. Beside them stands TRL with its packing, and
with packing and without that second computation, which comes nearest to what is done here.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from benchmarks.open_model import folder
from khmer_assets.foundation.home import PROJECT
from khmer_assets.foundation.tables import markdown_table
from khmer_assets.instructions.chats import chats_of

CONTEXT = 1024  # TRL's default
BATCH = 8  # chats; TRL's default
IN_MEMORY = 2  # chats at a time, here: the same step in less memory
PACKED_ROWS = 3  # of 1,024 tokens: about so many chats fit in; TRL counts its batches in rows where it packs
RANK, ALPHA, LEARNING_RATE = 16, 32, 2e-4
HELD_OUT = 32
OWN, PEER = "this project", "TRL"
PEERS: dict[str, dict[str, Any]] = {
    PEER: {},
    "TRL, packing": {"packing": True},
    "TRL, packing, no checkpointing": {"packing": True, "gradient_checkpointing": False},
}


def conversations(pages: Path) -> list[list[dict[str, str]]]:
    """A chat a page, or two of them: somebody asks for it by its title, and is told what it says."""
    turns = []
    for text in pl.read_ndjson(pages, infer_schema_length=None)["en"].drop_nulls().unique(maintain_order=True):
        title, _, body = text.partition("\n")
        if body.strip():
            question = {"role": "user", "content": f"What does the help say about “{title.strip()}”?"}
            turns.append([question, {"role": "assistant", "content": body.strip()}])
    chats: list[list[dict[str, str]]] = []
    at = 0
    while at < len(turns):
        size = 2 if len(chats) % 3 == 2 else 1
        chats.append([message for turn in turns[at : at + size] for message in turn])
        at += size
    return chats


def prepare(work: Path, pages: Path, steps: int) -> int:
    """Write the base in bfloat16 and the chats of so many steps; return the number of tokens to be trained on."""
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from khmer_assets.finetuning.encoding import encode_chats

    base = work / "base"
    AutoModelForCausalLM.from_pretrained(folder(), dtype=torch.bfloat16).save_pretrained(base)
    tokenizer = AutoTokenizer.from_pretrained(folder())
    tokenizer.save_pretrained(base)
    (base / "base.json").write_text(json.dumps({"chat_marks_are_new": False}))
    chats = conversations(pages)
    encoded = encode_chats(tokenizer, chats, CONTEXT)
    aside = {fault.number for fault in encoded.set_aside}
    kept = [chat for number, chat in enumerate(chats) if number not in aside]
    order = np.random.default_rng(1).permutation(len(kept))[: HELD_OUT + steps * BATCH].tolist()
    if len(order) < HELD_OUT + steps * BATCH:
        sys.exit(f"{pages} gives {len(kept)} chats, {HELD_OUT + steps * BATCH} are needed; lower --steps")
    (work / "chats").mkdir()
    splits = ["test"] * HELD_OUT + ["train"] * (steps * BATCH)
    pl.DataFrame({"messages": [kept[i] for i in order], "split": splits}).write_parquet(work / "chats" / "data.parquet")
    lengths = [len(encoded.examples[i].ids) for i in order[HELD_OUT:]]
    middle, longest = sorted(lengths)[len(lengths) // 2], max(lengths)
    print(
        f"{len(lengths)} chats, {sum(lengths):,} tokens; half have {middle} or fewer, the longest {longest}", flush=True
    )
    return sum(lengths)


def train_own(work: Path, output: Path) -> float:
    """Train with this project's payload; return the seconds of the training itself."""
    from khmer_assets.finetuning import sft
    from khmer_assets.training import loop
    from resources.payload import PayloadRun

    settings = sft.Finetuning(
        rank=RANK,
        alpha=ALPHA,
        dropout=0.0,
        learning_rate=LEARNING_RATE,
        warmup_ratio=0.0,
        batch_size=BATCH,
        micro_batch_size=IN_MEMORY,
        epochs=1,
        checkpoint_every=1_000_000,
    )
    spec = sft.Spec(base=work / "base", chats=work / "chats", settings=settings, context_length=CONTEXT, seed=1)
    run, seconds, train = PayloadRun(output), 0.0, loop.train

    def timed(*arguments: Any) -> Any:
        nonlocal seconds
        seconds, result = clocked(lambda: train(*arguments))
        return result

    setattr(loop, "train", timed)  # noqa: B010 (mypy) the payload looks it up when it runs; loading and encoding are not counted
    sft.main(spec, run)
    return seconds


def train_peer(work: Path, output: Path, **options: Any) -> float:
    """Train with TRL; return the seconds of the training itself."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(work / "base")
    said = "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    marked = (
        "{{'<|im_start|>' + message['role'] + '\n'}}{% if message['role'] == 'assistant' %}{% generation %}"
        "{{message['content'] + '<|im_end|>'}}{% endgeneration %}{% else %}{{message['content'] + '<|im_end|>'}}"
        "{% endif %}{{'\n'}}"
    )
    chats = chats_of(work / "chats", "train")
    whole = tokenizer.apply_chat_template(chats[0], tokenize=False)
    tokenizer.chat_template = tokenizer.chat_template.replace(said, marked)
    assert "{% generation %}" in tokenizer.chat_template
    assert whole == tokenizer.apply_chat_template(chats[0], tokenize=False)
    packing = {"per_device_train_batch_size": PACKED_ROWS} if options.get("packing") else {}
    trainer = SFTTrainer(
        model=str(work / "base"),
        args=SFTConfig(
            output_dir=str(output / "trainer"),
            num_train_epochs=1,
            learning_rate=LEARNING_RATE,
            assistant_only_loss=True,
            use_cpu=not torch.cuda.is_available(),
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            **packing,
            **options,
        ),
        train_dataset=Dataset.from_dict({"messages": chats}),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    seconds, _ = clocked(trainer.train)
    trainer.model.save_pretrained(output / "output")
    return seconds


def clocked(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of processor time that `work` takes, or of time where a GPU does it, and what it gives."""
    import torch

    clock = time.monotonic if torch.cuda.is_available() else time.process_time
    started = clock()
    result = work()
    return clock() - started, result


def contend(name: str, work: Path) -> dict[str, Any]:
    """Train as the contender `name`; seconds, and the process's peak memory in MB."""
    import torch

    output = work / name
    output.mkdir()
    seconds = train_own(work, output) if name == OWN else train_peer(work, output, **PEERS[name])
    status = dict(row.split(":", 1) for row in Path("/proc/self/status").read_text().splitlines())
    figures = {"seconds": seconds, "peak_memory_mb": int(status["VmHWM"].split()[0]) // 1024}
    if torch.cuda.is_available():
        figures["peak_memory_mb"] = torch.cuda.max_memory_allocated() // 2**20
    return figures


def held_out_loss(work: Path, adapter: Path | None) -> float:
    """The mean loss of the held-out answers, in nats a token; that of the base where there is no adapter."""
    import torch
    from peft import PeftModel
    from transformers import AutoTokenizer

    from khmer_assets.finetuning.encoding import encode_chats
    from khmer_assets.finetuning.sft import answer_loss
    from khmer_assets.training.models import device, load_model

    model = load_model(work / "base", torch.bfloat16).to(device())
    if adapter:
        model = PeftModel.from_pretrained(model, adapter)
    tokenizer = AutoTokenizer.from_pretrained(work / "base")
    examples = encode_chats(tokenizer, chats_of(work / "chats", "test"), CONTEXT).examples
    return answer_loss(model.eval(), examples, "auto")


def in_process_of_its_own(name: str, work: Path) -> dict[str, Any]:
    """What `contend` gives."""
    command = [sys.executable, "-m", "benchmarks.finetuning", "--contend", name, "--work", str(work)]
    # threads that wait for each other would else take processor time
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{name}: {done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Train each contender, print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=Path, default=PROJECT.parent / "shared" / "data" / "office_help.jsonl")
    parser.add_argument("--steps", type=int, default=12, help=f"of {BATCH} chats each")
    parser.add_argument("--contend", help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contend:
        print(json.dumps(contend(arguments.contend, arguments.work)))
        return
    if not arguments.pages.exists():
        sys.exit(f"{arguments.pages}: no such file; name JSON lines with the field `en` with --pages")
    work = Path(tempfile.mkdtemp())
    try:
        tokens = prepare(work, arguments.pages, arguments.steps)
        print(f"the base's loss: {held_out_loss(work, None):.4f}", flush=True)
        rows = []
        for name in (OWN, *PEERS):
            found = in_process_of_its_own(name, work)
            rows.append(
                {
                    "": name,
                    "tokens_per_second": tokens / found["seconds"],
                    "loss": held_out_loss(work, work / name / "output"),
                    "peak_memory_mb": found["peak_memory_mb"],
                }
            )
            print(json.dumps(rows[-1], ensure_ascii=False), flush=True)
    finally:
        shutil.rmtree(work)
    print(markdown_table(pl.DataFrame(rows)))
    own, peer = rows[:2]
    ratio = own["tokens_per_second"] / peer["tokens_per_second"]
    figures = ("tokens_per_second", "loss", "peak_memory_mb")
    told = {name: own[name] for name in figures} | {f"peer_{name}": peer[name] for name in figures} | {"ratio": ratio}
    order = ("tokens_per_second", "peer_tokens_per_second", "ratio", "loss", "peer_loss", "peak_memory_mb",
             "peer_peak_memory_mb")  # fmt: skip
    print(json.dumps({name: round(told[name], 4) for name in order}))


if __name__ == "__main__":
    main()
