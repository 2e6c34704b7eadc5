"""Measures what the adapter gained: by cluster, how many are right without it and with it.

Two things are asked, none of which was learned from or had a say in what is learned: the failures of the part
`measured`, of which none was right before; and all held-out chats of that part that are nearest to a cluster, right
before or not, so that what the adapter spoils is seen too.
"""

import json
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import BaseModel

from khmer_assets.corpus.semantic import SemanticSearch
from khmer_assets.evaluation.engines import TransformersEngine
from khmer_assets.evaluation.examination import Examination
from khmer_assets.evaluation.tasks import prompts
from khmer_assets.evaluation.tasks.chats import identity_of
from khmer_assets.evaluation.tasks.prompts import Prompt
from khmer_assets.failures.clusters import LEARNED, MEASURED, cluster_of, parts
from khmer_assets.failures.find import FAILURE, failure, held_out_chats
from khmer_assets.foundation import plots
from khmer_assets.foundation.tables import markdown_table
from khmer_assets.instructions.chats import prompt_of
from khmer_assets.instructions.copies import clusters as copies
from resources.payload import PayloadRun

REPORT = "measurement.json"


class Spec(BaseModel):
    """Folders of the model, of the adapter, of failure_clusters and of chat_dataset; the recipe's prompts."""

    model: Path
    adapter: Path
    clusters: Path
    chats: Path
    prompts: list[Prompt]
    embedder: SemanticSearch
    max_held_out: int
    max_new_tokens: int
    context_length: int


def main(spec: Spec, run: PayloadRun) -> dict[str, Any]:
    """Write `measurement.json`: of each cluster, and of all, `asked`, `before` and `after` (shares of right answers),
    of the failures and of all held-out chats near it; and `answers.parquet`, each answer before and after."""
    import torch
    from peft import PeftModel
    from transformers import AutoTokenizer

    from khmer_assets.training import models

    asked = to_ask(spec)
    tokenizer = AutoTokenizer.from_pretrained(spec.model)
    base = models.load_model(spec.model, torch.bfloat16).to(models.device())  # as it is served
    model = PeftModel.from_pretrained(base, spec.adapter).eval()
    examination = Examination(TransformersEngine(model, spec.context_length), tokenizer, spec.max_new_tokens)
    run.log(f"{asked.height:,} questions, with the adapter and without it")
    questions = asked["messages"].to_list()
    after = [answer.text for answer in examination.answers(questions)]
    with model.disable_adapter():
        before = [answer.text for answer in examination.answers(questions)]
    checks = {prompt.prompt: prompt for prompt in spec.prompts}
    rows = asked.with_columns(
        **{
            name: pl.Series([_is_right(row, text, checks) for row, text in zip(asked.to_dicts(), texts, strict=True)],
                            dtype=pl.Boolean)
            for name, texts in (("before", before), ("after", after))
        },
        answer_before=pl.Series(before, dtype=pl.String),
        answer_after=pl.Series(after, dtype=pl.String),
    )  # fmt: skip
    rows.drop("messages").write_parquet(run.output / "answers.parquet")
    measured = {"failures": _shares(rows.filter("failed")), "held_out": _shares(rows)}
    (run.output / REPORT).write_text(json.dumps(measured, ensure_ascii=False, indent=1))
    whole, failed = measured["held_out"][-1], measured["failures"][-1]
    return {
        "right_before": whole["before"],
        "right_after": whole["after"],
        "failures_right_after": failed["after"],
        "all_held_out_by_cluster": markdown_table(pl.DataFrame(measured["held_out"])),
        "failures_by_cluster": markdown_table(pl.DataFrame(measured["failures"])),
        "picture": plots.as_markdown(_picture(measured["held_out"])),
    }


def to_ask(spec: Spec) -> pl.DataFrame:
    """The failures of the part `measured` whose right answer is known, and the held-out chats of that part, each once:
    `FAILURE` with cluster, name and `failed`."""
    clustered = pl.read_parquet(spec.clusters / "data.parquet")
    names = dict(clustered.select("cluster", "name").unique().iter_rows())
    held_out = held_out_chats(spec.chats, spec.max_held_out)
    chats = pl.DataFrame(
        [failure("chats", identity_of(one), one[:-1], None, one[-1]["content"].strip(), "") for one in held_out],
        schema=FAILURE,
    )
    cluster = cluster_of(chats["prompt"].to_list(), clustered, spec.embedder)
    chats = chats.with_columns(
        cluster=pl.Series(cluster, dtype=pl.Int64),
        name=pl.Series([names[one] for one in cluster], dtype=pl.String),
        part=pl.Series(parts(chats), dtype=pl.String),
        failed=pl.lit(False),
    ).filter(pl.Series(_had_no_say(chats, clustered.filter(part=LEARNED)), dtype=pl.Boolean), part=MEASURED)
    known = clustered.filter(pl.col("origin").is_in(["chats", "prompts"]), part=MEASURED)
    columns = ["id", "origin", "prompt", "messages", "expected", "cluster", "name", "failed"]
    together = [known.with_columns(failed=pl.lit(True)).select(columns), chats.select(columns)]
    return pl.concat(together).unique("id", keep="first", maintain_order=True)


def _had_no_say(chats: pl.DataFrame, learned: pl.DataFrame) -> list[bool]:
    """Whether a chat asks something else than the failures that are learned from."""
    prompts = [prompt_of(messages) for rows in (learned, chats) for messages in rows["messages"].to_list()]
    same = copies(prompts)
    with_a_say = set(same[: learned.height])
    return [one not in with_a_say for one in same[learned.height :]]


def _is_right(row: dict[str, Any], answer: str, checks: dict[str, Prompt]) -> bool:
    if row["origin"] == "prompts":
        check = checks.get(row["prompt"])
        return check is not None and not prompts.failures(check, answer)
    return bool(answer == row["expected"])


def _shares(rows: pl.DataFrame) -> list[dict[str, Any]]:
    """A row a cluster: how many were asked, and the shares of right answers; the last is of all together."""
    counted = [pl.len().alias("asked"), pl.col("before").mean(), pl.col("after").mean()]
    by_cluster = rows.group_by("cluster", "name").agg(counted).sort("cluster").to_dicts()
    return [*by_cluster, {"cluster": None, "name": "all", **rows.select(counted).to_dicts()[0]}]


def _picture(shares: list[dict[str, Any]]) -> Any:
    figure = plots.new_figure()
    axes = figure.subplots()
    places = range(len(shares))
    for shift, name in ((-0.2, "before"), (0.2, "after")):
        axes.bar([place + shift for place in places], [100 * (one[name] or 0) for one in shares], 0.4, label=name)
    axes.set_xticks(list(places), [one["name"] for one in shares], rotation=30, ha="right", fontsize=8)
    axes.set(ylabel="% right", title="Held-out chats by cluster of failures")
    axes.legend()
    return figure
