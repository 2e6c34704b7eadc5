"""How fast an open model is finetuned on chats, beside TRL's SFTTrainer on the same chats, and how well.

    python -m benchmarks.finetuning

SmolLM2-135M-Instruct, held in bfloat16, gets a LoRA adapter of rank 16 from chats about the pages of a help (JSON
lines with the field `en`), most of some hundred tokens and none of more than 1,024. Project and TRL train by one
recipe: the same chats in each step and their order, the same loss a token, AdamW's settings, learning rate in each
step, bounds of the gradient and random beginning, so that their losses must be equal but for rounding. What differs
is how: TRL's defaults pad each batch and compute activations twice to save memory.

Each runs in a process of its own, on one thread (on a processor where other work runs, two that wait for each other
measure that work). Tokens are those of the chats, without padding, a second of processor time (of time on a GPU) from
the first step to the end of the last; the same by the clock is told beside it. Memory is the process's peak. The loss
is measured on the same held-out chats, by the same function.

`--packing` adds TRL with its packing, and with packing and without the second computation. Its batches are then rows
of 1,024 tokens, not chats: other steps, so that their losses compare with nothing.
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
from khmer_assets.foundation.processes import how_it_ended
from khmer_assets.foundation.tables import markdown_table
from khmer_assets.instructions.chats import chats_of

CONTEXT = 1024  # TRL's default
BATCH = 8  # chats; TRL's default
IN_MEMORY = 2  # chats at a time, here: the same step in less memory
PACKED_ROWS = 3  # of 1,024 tokens: about so many chats fit in; TRL counts its batches in rows where it packs
RANK, ALPHA, LEARNING_RATE = 16, 32, 2e-4
HELD_OUT = 32
SEED = 1
OWN, PEER = "this project", "TRL"
Seconds = tuple[float, float]  # of processor time, and by the clock
PACKED: dict[str, dict[str, Any]] = {
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


def recipe() -> Any:
    """What both train by."""
    from khmer_assets.finetuning import sft

    return sft.Finetuning(
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


def train_own(work: Path, output: Path) -> tuple[Seconds, list[float]]:
    """Train with this project's payload; the seconds of the training itself, and the loss of each step."""
    from khmer_assets.finetuning import sft
    from khmer_assets.training import loop
    from resources.payload import PayloadRun

    spec = sft.Spec(base=work / "base", chats=work / "chats", settings=recipe(), context_length=CONTEXT, seed=SEED)
    run, seconds, train = PayloadRun(output), (0.0, 0.0), loop.train

    def timed(*arguments: Any) -> Any:
        nonlocal seconds
        seconds, result = clocked(lambda: train(*arguments))
        return result

    setattr(loop, "train", timed)  # noqa: B010 (mypy) the payload looks it up when it runs; loading and encoding are not counted
    sft.main(spec, run)
    curve = json.loads((run.output / "training.json").read_text())["curve"]
    return seconds, [point["loss"] for point in curve]


def train_peer(work: Path, output: Path, **options: Any) -> tuple[Seconds, list[float]]:
    """Train with TRL; the seconds of the training itself, and the loss of each step."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    from khmer_assets.finetuning.packing import chats_of_epoch
    from khmer_assets.training.loop import Schedule
    from khmer_assets.training.optimizers import BETAS

    class InOneRecipe(SFTTrainer):  # type: ignore[misc]  # it has no types
        """With this project's learning rate in each step."""

        def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
            schedule, steps = Schedule(recipe(), num_training_steps), num_training_steps + 1
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
                optimizer or self.optimizer, lambda done: schedule.learning_rate_at((done + 1) / steps) / LEARNING_RATE
            )
            return self.lr_scheduler

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
    rows = PACKED_ROWS if options.get("packing") else BATCH
    order = chats_of_epoch(len(chats), BATCH, (SEED, 0)).flatten()
    trainer = InOneRecipe(
        model=str(work / "base"),
        args=SFTConfig(
            output_dir=str(output / "trainer"),
            num_train_epochs=1,
            learning_rate=LEARNING_RATE,
            adam_beta1=BETAS[0],
            adam_beta2=BETAS[1],
            seed=SEED,
            train_sampling_strategy="sequential",
            per_device_train_batch_size=rows,
            logging_steps=1,
            assistant_only_loss=True,
            use_cpu=not torch.cuda.is_available(),
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            **options,
        ),
        train_dataset=Dataset.from_dict({"messages": [chats[i] for i in order]}),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    seconds, _ = clocked(trainer.train)
    trainer.model.save_pretrained(output / "output")
    return seconds, [float(told["loss"]) for told in trainer.state.log_history if "loss" in told]


def clocked(work: Callable[[], Any]) -> tuple[Seconds, Any]:
    """How long `work` takes, and what it gives."""
    processor, clock = time.process_time(), time.monotonic()
    result = work()
    return (time.process_time() - processor, time.monotonic() - clock), result


def contend(name: str, work: Path) -> dict[str, Any]:
    """Train as the contender `name`; seconds, the loss of each step, and the process's peak memory in MB."""
    import torch

    output = work / name
    output.mkdir()
    seconds, losses = train_own(work, output) if name == OWN else train_peer(work, output, **PACKED.get(name, {}))
    status = dict(row.split(":", 1) for row in Path("/proc/self/status").read_text().splitlines())
    figures = {"seconds": seconds, "losses": losses, "peak_memory_mb": int(status["VmHWM"].split()[0]) // 1024}
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
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{name} {how_it_ended(done.returncode)}: {done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Train each contender, print the table and the JSON line."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=Path, default=PROJECT.parent / "shared" / "data" / "office_help.jsonl")
    parser.add_argument("--steps", type=int, default=12, help=f"of {BATCH} chats each")
    parser.add_argument("--packing", action="store_true", help="also TRL with its packing")
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
        rows, curves = [], []
        for name in (OWN, PEER, *(PACKED if arguments.packing else ())):
            found = in_process_of_its_own(name, work)
            processor, clock = found["seconds"]
            curves.append(found["losses"])
            rows.append(
                {
                    "": name,
                    "tokens_per_second": tokens / (clock if torch.cuda.is_available() else processor),
                    "tokens_per_second_by_the_clock": tokens / clock,
                    "loss": held_out_loss(work, work / name / "output"),
                    "peak_memory_mb": found["peak_memory_mb"],
                }
            )
            print(json.dumps(rows[-1], ensure_ascii=False), flush=True)
    finally:
        shutil.rmtree(work)
    print(markdown_table(pl.DataFrame(rows)))
    print(f"the steps' losses differ by at most {max(abs(a - b) for a, b in zip(*curves[:2], strict=True)):.4f}")
    own, peer = rows[:2]
    ratio = own["tokens_per_second"] / peer["tokens_per_second"]
    figures = ("tokens_per_second", "loss", "peak_memory_mb")
    told = {name: own[name] for name in figures} | {f"peer_{name}": peer[name] for name in figures} | {"ratio": ratio}
    order = ("tokens_per_second", "peer_tokens_per_second", "ratio", "loss", "peer_loss", "peak_memory_mb",
             "peer_peak_memory_mb")  # fmt: skip
    print(json.dumps({name: round(told[name], 4) for name in order}))


if __name__ == "__main__":
    main()
