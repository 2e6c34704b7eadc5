"""`khmer plan` tells what the recipe's trainings take."""

import argparse

import pytest

from khmer_assets.commands import plan
from khmer_assets.foundation.home import HOME_VARIABLE
from khmer_assets.foundation.settings import validated
from khmer_assets.instructions.chat_sources import Instructions
from khmer_assets.khmer.normalization import Normalization
from khmer_assets.recipe import RECIPE_VARIABLE


@pytest.mark.parametrize(
    ("recipe", "told"),
    [
        ("sample", ["| pretraining | 4.2 M | 4.2 M | 420 |", "| finetuning | 5.9 M | 1.7 M |"]),
        ("gpt2_500m", ["| pretraining | 608.9 M |", "9,500", "left out: awq"]),
        ("qwen2_5_3b_lora", ["| finetuning | 3,145.8 M | 59.9 M |"]),  # 3.09 billion, and the adapter
        ("llama_3_2_3b_qlora", ["| finetuning | 3,310.0 M | 97.3 M |"]),  # 3.21 billion
        ("qwen2_5_3b_khmer", ["| pretraining | 3,085.9 M | 3,085.9 M | 4,000 |"]),
    ],
)
def test_a_line_for_each_training(recipe, told, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    text = f"extends: {recipe}\n"
    if recipe == "gpt2_500m":
        text += "compression: {variants: [awq, gguf Q8_0]}\n"
    (tmp_path / "recipe.yaml").write_text(text)
    monkeypatch.setenv(RECIPE_VARIABLE, str(tmp_path / "recipe.yaml"))
    assert plan.main(argparse.Namespace()) == 0
    shown = capsys.readouterr().out
    assert "time on this machine | time on one H100" in shown
    for text in told:
        assert text in shown


def test_a_base_that_nobody_here_knows_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    (tmp_path / "recipe.yaml").write_text("extends: qwen2_5_3b_lora\nbase: {model: someone/else}\n")
    monkeypatch.setenv(RECIPE_VARIABLE, str(tmp_path / "recipe.yaml"))
    assert plan.main(argparse.Namespace()) == 0
    assert "The shape of someone/else is not known before base_model is materialized" in capsys.readouterr().out


def test_the_chats_of_all_sources_are_counted(tmp_path):
    (tmp_path / "chats.jsonl").write_text('{"instruction": "a", "output": "b"}\n' * 3)
    sources = [
        {"kind": "chat_files", "settings": {"path": "chats.jsonl"}},
        {"kind": "tutor_tasks", "settings": {"count": 40}},
        {"kind": "questions_and_answers", "settings": {"topics": ["a", "b"], "documents": 10, "each": 2}},
        {"kind": "dialogues", "settings": {"documents": 5}},
        {"kind": "embedded", "settings": {"generated_chats": 100}},
    ]
    entries = [{"name": f"s{number}", "license": "x", **source} for number, source in enumerate(sources)]
    values = {"generated_chats": 20, "files": ["chats.jsonl"], "sources": entries}
    instructions = validated(Instructions, values, tmp_path / "recipe.yaml")
    assert plan._chats(instructions, Normalization()) == 20 + 3 + 3 + 40 + 24 + 5 + 100
