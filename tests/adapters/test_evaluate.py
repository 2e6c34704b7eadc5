"""An adapter is measured on chats that it has not seen, beside its model without it."""

import json

import polars as pl
import pytest

from khmer_assets.adapters import evaluate
from khmer_assets.evaluation.evaluate import Evaluation
from khmer_assets.finetuning import sft
from resources.payload import PayloadRun, Refusal
from tests.failures.small import FINETUNING
from tests.tiny_model import save_tiny_model

WAYS = ("តើមេឃពណ៌អ្វី?", "មេឃមានពណ៌អ្វី?", "ប្រាប់ខ្ញុំពីពណ៌មេឃ", "ពណ៌មេឃ?")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    chats = [
        {"messages": [{"role": "user", "content": way}, {"role": "assistant", "content": "ពណ៌ខៀវ។"}], "split": split}
        for split, repeated in (("train", 4), ("test", 1), ("validation", 1))
        for way in WAYS * repeated
    ]
    (folder / "chats").mkdir()
    pl.DataFrame(chats).write_parquet(folder / "chats" / "data.parquet")
    model = save_tiny_model(folder / "0123456789abcdef", texts=[*WAYS, "ពណ៌ខៀវ។"])
    run = PayloadRun(folder / "training")
    spec = sft.Spec(
        base=model,
        chats=folder / "chats",
        settings=FINETUNING,
        context_length=64,
        seed=1,
    )
    sft.main(spec, run)
    return folder, model, run.output


def evaluated(folder, model, trained, chats):
    spec = evaluate.Spec(
        model=model,
        adapter=trained,
        chats=chats,
        settings=Evaluation(max_documents=1, max_new_tokens=8, prompts=["?"]),
        context_length=64,
    )
    run = PayloadRun(folder)
    figures = evaluate.main(spec, run)
    return figures, json.loads((run.output / "evaluation.json").read_text())


def test_the_adapter_is_compared_with_its_model_alone(folders, tmp_path):
    folder, model, trained = folders
    assert json.loads((trained / "training.json").read_text())["base"] == model.name
    figures, evaluation = evaluated(tmp_path, model, trained, folder / "chats")
    assert evaluation["chats"] == len(WAYS)
    assert evaluation["with"]["loss"] < 1 < evaluation["without"]["loss"]
    assert evaluation["with"]["answer_accuracy"] == 1 > evaluation["without"]["answer_accuracy"]
    assert figures["loss_without"] == evaluation["without"]["loss"]


def test_without_held_out_chats_it_says_what_to_do(folders, tmp_path):
    folder, model, trained = folders
    (tmp_path / "chats").mkdir()
    chats = pl.read_parquet(folder / "chats" / "data.parquet").filter(split="train")
    chats.write_parquet(tmp_path / "chats" / "data.parquet")
    with pytest.raises(Refusal, match=r"no chat with split 'test'.*bring more chats"):
        evaluated(tmp_path, model, trained, tmp_path / "chats")
