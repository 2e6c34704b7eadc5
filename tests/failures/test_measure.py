"""What an adapter gained is told by questions that had no say in what it learned."""

import json

import polars as pl
import pytest

from khmer_assets.corpus.semantic import SemanticSearch
from khmer_assets.evaluation.tasks.chats import identity_of
from khmer_assets.evaluation.tasks.prompts import Prompt
from khmer_assets.failures import clusters, measure
from khmer_assets.failures.clusters import LEARNED, MEASURED
from khmer_assets.failures.find import FAILURE, failure, held_out_chats
from khmer_assets.finetuning import sft
from resources.payload import PayloadRun
from tests.failures.small import COLORS, FINETUNING, WAYS, save_chats
from tests.tiny_model import save_tiny_model

PROMPT = Prompt.model_validate({"prompt": "តើមេឃពណ៌អ្វីដែរ?", "contains": ["ខៀវ"]})


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def spec(tmp_path_factory) -> measure.Spec:
    folder = tmp_path_factory.mktemp("measure")
    chats = save_chats(folder / "chats")
    texts = [*(way.format(thing) for way in WAYS for thing in COLORS), *(f"ពណ៌{color}។" for color in COLORS.values())]
    model = save_tiny_model(folder / "model", texts=texts)
    run = PayloadRun(folder / "training")
    settings = FINETUNING.model_copy(update={"epochs": 60})
    sft.main(sft.Spec(base=model, chats=chats, settings=settings, context_length=64, seed=1), run)
    rows = [
        failure("chats", identity_of(chat), chat[:-1], "?", chat[-1]["content"], "not exactly so")
        for chat in held_out_chats(chats, 100)
    ]
    rows.append(failure("prompts", "p", [{"role": "user", "content": PROMPT.prompt}], "?", None, "lacks"))
    rows.append(failure("unsure", "u", [{"role": "user", "content": "តើខ្ញុំជានរណា?"}], "?", None, "unsure"))
    found = clusters.clustered(pl.DataFrame(rows, schema=FAILURE), SemanticSearch(), seed=1)
    (folder / "clusters").mkdir()
    found.write_parquet(folder / "clusters" / "data.parquet")
    return measure.Spec(
        model=model,
        adapter=run.output,
        clusters=folder / "clusters",
        chats=chats,
        prompts=[PROMPT],
        embedder=SemanticSearch(),
        max_held_out=100,
        max_new_tokens=8,
        context_length=64,
    )


def test_only_what_had_no_say_is_asked(spec):
    found = pl.read_parquet(spec.clusters / "data.parquet")
    asked = measure.to_ask(spec)
    learned = set(found.filter(part=LEARNED)["id"])
    assert not learned & set(asked["id"]) and asked["id"].is_unique().all()
    measured = found.filter(pl.col("origin") != "unsure", part=MEASURED)
    assert set(asked.filter("failed")["id"]) == set(measured["id"]), "of users' questions nobody knows the answer"
    assert asked.filter("failed").height, "there is something to measure with"


def test_shares_are_told_by_cluster_before_and_after(spec, tmp_path):
    run = PayloadRun(tmp_path)
    figures = measure.main(spec, run)
    report = json.loads((run.output / measure.REPORT).read_text())
    answers = pl.read_parquet(run.output / "answers.parquet")
    *by_cluster, whole = report["held_out"]
    assert whole["name"] == "all" and whole["asked"] == sum(one["asked"] for one in by_cluster) == answers.height
    assert figures["right_before"] == whole["before"] == answers["before"].mean() == 0, "a random model"
    assert figures["right_after"] == whole["after"] == answers["after"].mean() > 0, "it has seen colors"
    exact = answers.filter(origin="chats")
    assert (exact["after"] == (exact["answer_after"] == exact["expected"])).all()
