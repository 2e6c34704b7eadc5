"""A few chats, and what an evaluation says of prompts."""

import json
from pathlib import Path

import polars as pl

from khmer_assets.finetuning.sft import Finetuning
from khmer_assets.instructions.chats import CHAT, hash_of, new_chat

FINETUNING = Finetuning(
    rank=8,
    alpha=16,
    dropout=0,
    learning_rate=0.01,
    warmup_ratio=0,
    batch_size=4,
    epochs=8,
    checkpoint_every=100,
    precision="float32",
)
COLORS = {"មេឃ": "ខៀវ", "ស្មៅ": "បៃតង", "ឈាម": "ក្រហម", "មាស": "លឿង", "ធ្យូង": "ខ្មៅ", "អំបិល": "ស"}
WAYS = ("តើ{}ពណ៌អ្វី?", "{}មានពណ៌អ្វី?", "ប្រាប់ខ្ញុំពីពណ៌{}", "ពណ៌{}ជាអ្វី?", "តើពណ៌របស់{}គឺជាអ្វី?")
SPLITS = ("train", "train", "train", "validation", "test")


def chats() -> pl.DataFrame:
    """Thirty chats about colors: each way of asking is in a split."""
    rows = []
    for thing, color in COLORS.items():
        for way, split in zip(WAYS, SPLITS, strict=True):
            row = new_chat(f"{thing}-{split}-{way}", "colors", "khm", "colors", [way.format(thing), f"ពណ៌{color}។"])
            rows.append({**row, "content_hash": hash_of(row["messages"]), "split": split})
    return pl.DataFrame(rows, schema=CHAT)


def save_chats(folder: Path) -> Path:
    """As chat_dataset."""
    folder.mkdir()
    chats().write_parquet(folder / "data.parquet")
    return folder


def save_evaluation(folder: Path) -> Path:
    """As merged_evaluation: a prompt that was answered rightly, and one that was not."""
    folder.mkdir()
    answers = [
        {"prompt": "សួស្តី", "answer": "សួស្តី!", "failures": []},
        {"prompt": "តើ ៣ បូក ៤ ស្មើប៉ុន្មាន?", "answer": "៨", "failures": ["lacks '៧'"]},
    ]
    (folder / "evaluation.json").write_text(json.dumps({"answers": answers}, ensure_ascii=False))
    return folder
