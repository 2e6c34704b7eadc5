"""`khmer estimate` tells what an asset would ask of its teachers; nothing is asked, and nothing is written."""

import argparse

import dagster as dg
import polars as pl
import pytest

from khmer_assets import definitions
from khmer_assets.commands import estimate
from khmer_assets.commands.estimate import estimated
from khmer_assets.commands.materialization import MaterializationError
from khmer_assets.foundation.home import HOME_VARIABLE
from khmer_assets.foundation.settings import RecipeError
from khmer_assets.recipe import RECIPE_VARIABLE
from khmer_assets.teachers.asking import ask
from khmer_assets.teachers.settings import Budget
from resources.storage import FramesIOManager, store_root
from resources.teachers import Teachers
from tests.teachers.hosts import TOPICS, host, rows

BATCHES = TOPICS.model_copy(update={"rows_at_once": 10, "max_answer_tokens": 50})
SOURCES = dg.StaticPartitionsDefinition(["news", "poems"])


@dg.asset(io_manager_key="frames", partitions_def=SOURCES)
def corpus(context: dg.AssetExecutionContext) -> pl.LazyFrame:
    return pl.LazyFrame(rows(25 if context.partition_key == "news" else 3))


@dg.asset(io_manager_key="frames", partitions_def=SOURCES, group_name="labels")
def topics(context: dg.AssetExecutionContext, teachers: Teachers, corpus: pl.LazyFrame) -> pl.LazyFrame:
    answers, _ = teachers.ask(context, BATCHES, corpus.collect().to_dicts(), Budget(requests=2))
    return pl.LazyFrame({"id": [answer.id for answer in answers]})


def graph(resources):
    return dg.Definitions([corpus, topics], resources=resources)


@pytest.fixture
def made(tmp_path):
    storage = FramesIOManager(root=store_root(tmp_path), cache=str(tmp_path / "cache"))
    for partition in SOURCES.get_partition_keys():
        dg.materialize([corpus], resources={"frames": storage}, partition_key=partition)
    return tmp_path


@pytest.mark.parametrize("name", ["topics", "labels"])
def test_rows_requests_tokens_and_cost_are_told_before_anything_is_asked(made, name):
    with host() as server:
        teacher = server.teacher(prompt_price=3.0, answer_price=9.0, requests_a_minute=6)
        news, poems = estimated(graph, [teacher], made, name)
    assert not server.seen
    assert not (made / "teachers").exists()
    assert (news[0], poems[0]) == ("topics (news)", "topics (poems)")
    (found,) = news[2]
    assert (found.rows, found.known, found.requests, found.minutes) == (25, 0, 3, 0.5)
    assert found.most_answer_tokens == 25 * 50
    assert found.cost == pytest.approx((found.prompt_tokens * 3 + found.answer_tokens * 9) / 1e6)


def test_after_the_first_answers_they_are_what_counts(made):
    with host() as server:
        teacher = server.teacher()
        ask([teacher], BATCHES, rows(10), made / "teachers", Budget(), lambda text: None, "topics (news)")
        (_, _, (found,)), _ = estimated(graph, [teacher], made, "topics")
        assert (found.known, found.requests, found.measured) == (10, 2, True)
        ask([teacher], BATCHES, rows(25), made / "teachers", Budget(), lambda text: None, "topics (news)")
    assert found.answer_tokens == 15
    assert found.prompt_tokens == pytest.approx(170, rel=0.1)


def test_a_name_that_asks_nothing_and_an_asset_whose_input_is_missing_are_told(made):
    with host() as server:
        with pytest.raises(
            RecipeError, match="'corpus' is no asset of this recipe that asks teachers; these do: topics"
        ):
            estimated(graph, [server.teacher()], made, "corpus")
        with pytest.raises(MaterializationError, match=r"topics: .*corpus"):
            estimated(graph, [server.teacher()], made / "elsewhere", "topics")


def test_a_recipe_without_teachers_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path))
    monkeypatch.delenv(RECIPE_VARIABLE, raising=False)
    with pytest.raises(RecipeError, match="sample: no teacher is set"):
        estimate.main(argparse.Namespace(asset="labels"))


def test_the_table_has_a_line_for_each_asset_and_teacher_and_a_total(made, monkeypatch, capsys):
    monkeypatch.setenv(HOME_VARIABLE, str(made))
    (made / "recipe.yaml").write_text(
        "extends: sample\nteachers: [{name: sage, address: 'http://127.0.0.1:9/v1', model: m, prompt_price: 1}]\n"
    )
    monkeypatch.setenv(RECIPE_VARIABLE, str(made / "recipe.yaml"))
    monkeypatch.setattr(definitions, "build_definitions", lambda recipe, state, resources: graph(resources))
    assert estimate.main(argparse.Namespace(asset="labels")) == 0
    shown = capsys.readouterr().out
    assert "| topics (news) | sage | 25 | 0 | 3 |" in shown
    assert "| topics (poems) | sage | 3 | 0 | 1 |" in shown
    assert "4 requests" in shown and "unknown (no prices)" in shown and "(requests 2)" in shown
