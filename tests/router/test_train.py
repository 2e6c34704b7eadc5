"""A router is trained from what a model and its adapter really answer, and a killed run asks nothing twice."""

import json

import polars as pl
import pytest

from khmer_assets.evaluation.engines import TransformersEngine
from khmer_assets.router import train
from khmer_assets.router.train import Routing, Spec
from khmer_assets.server.router_file import Router
from resources.payload import PayloadRun, Refusal
from tests.tiny_model import save_tiny_adapter, save_tiny_model


def save_chats(folder, pairs):
    rows = [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}], "split": split}
        for q, a, split in pairs
    ]
    folder.mkdir()
    pl.DataFrame(rows).write_parquet(folder / "data.parquet")
    return folder


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    """Chats whose answers are what a random model, and a random adapter of it, say: who is right is known."""
    folder = tmp_path_factory.mktemp("router")
    model = save_tiny_model(folder / "0123456789abcdef")
    adapter = save_tiny_adapter(model, folder / "adapter", 1, 8)
    (adapter / "training.json").write_text(json.dumps({"base": model.name}))
    asked = [(f"តើ{word}{number}ជាអ្វី?", f"លេខ {number} អានថា?") for word in ("ស្រូវ", "ត្រី") for number in range(20)]
    empty = save_chats(folder / "empty", [(q, "", "test") for q, _ in asked])
    numbers = save_chats(folder / "numbers", [(q, "", "validation") for _, q in asked[:20]])
    common = {"settings": Routing(max_chats=40), "context_length": 128, "max_new_tokens": 6, "seed": 1}
    wanted = Spec(model=model, chats=empty, adapters={"numbers": adapter}, adapter_chats={"numbers": numbers}, **common)
    answerers = train._Answerers(wanted, wanted.adapters)

    def said(name, questions):
        chats = [[{"role": "user", "content": question}] for question in questions]
        return [one["text"] for one in answerers.answers(name, chats)]

    questions = [q for q, _ in asked]
    chats = save_chats(folder / "chats", list(zip(questions, said(None, questions), ["test"] * 40, strict=True)))
    hers = [q for _, q in asked[:20]]
    own = save_chats(folder / "own", list(zip(hers, said("numbers", hers), ["validation"] * 20, strict=True)))
    return wanted.model_copy(update={"chats": chats, "adapter_chats": {"numbers": own}})


@pytest.mark.slow
def test_who_was_right_is_learned_and_nothing_is_asked_twice(spec, tmp_path, monkeypatch):
    run = PayloadRun(tmp_path)
    figures = train.main(spec, run)
    assert figures["chats"] == 60 and figures["never"] > 0.6 and figures["oracle"] > 0.9  # bfloat16
    assert figures["router"] > figures["never"] and "| numbers | 20 |" in figures["right"]
    router = Router.load(run.output)
    assert router.about.domains == ("numbers",) and router.about.base == spec.model.name
    assert router.domain("", "លេខ 7 អានថា?") == "numbers" and router.domain("", "តើស្រូវ7ជាអ្វី?") is None
    lines = [json.loads(line) for line in (run.output / train.ASKED).read_text().splitlines()]
    assert sum(line["model"] for line in lines if line["own"] is None) > 36

    monkeypatch.setattr(TransformersEngine, "generate", None)  # a killed run's successor
    again = PayloadRun(tmp_path)
    assert train.main(spec, again) == figures
    (again.state / "numbers.json").unlink()
    with pytest.raises(TypeError):
        train.main(spec, PayloadRun(tmp_path))


def test_an_adapter_of_another_model_is_left_out(tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "training.json").write_text(json.dumps({"base": "f" * 16}))
    folders = {"model": tmp_path / "model", "chats": tmp_path, "adapters": {"numbers": other}}
    settings = {"settings": Routing(), "context_length": 128, "max_new_tokens": 6, "seed": 1}
    with pytest.raises(Refusal, match="no adapter was trained on this model"):
        train.main(Spec(**folders, adapter_chats={"numbers": tmp_path}, **settings), PayloadRun(tmp_path / "run"))
