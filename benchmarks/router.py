"""What `khmer-auto` gains: held-out chats of a model and of two of its adapters, asked of vLLM through the gateway.

    python -m benchmarks.router --home .khmer

Against asking the model alone (`never`), the adapter that the question is likeliest for every time (`always`), and who
picks the best each time (`oracle`). HOME is one in which `khmer run` has ended. Where it has but one adapter, a second
is trained here, on the clock in words. The router learns from the validation chats, and the test chats are asked.

`ttft_ratio`: seconds to the first token of streams that the model answered, by `khmer-auto` and by `khmer`, in turns on
the same questions; medians. Two ways to decide are compared: on the question, as the gateway does with streams, and on
the first tokens of the model's answer, which would have to be held back until then (the ratio is that of their times).
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import polars as pl

from khmer_assets.evaluation import calibration
from khmer_assets.finetuning import sft
from khmer_assets.foundation.home import home as own_home
from khmer_assets.foundation.tables import markdown_table
from khmer_assets.instructions.chat_dataset import split_chats
from khmer_assets.instructions.chats import CHAT, Split, chats_of, new_chat
from khmer_assets.khmer.numbers import number_to_words, to_khmer_digits
from khmer_assets.recipe import SAMPLE_RECIPE, Recipe
from khmer_assets.release.deployment import model_server
from khmer_assets.router import train
from khmer_assets.router.learning import Asked, scaling_of
from khmer_assets.server.confidence import Scaling, score
from khmer_assets.server.router_file import Router
from khmer_assets.server.routing import instructions_of
from khmer_assets.server.state import AUTO_NAME, MODEL_NAME
from resources.model_server import ModelServer
from resources.payload import PayloadRun
from resources.served_router import load_router
from resources.storage import MissingArtifact, Store, store_root

PREFIXES = (1, 2, 4, 8)  # tokens, for the other way to decide
WAYS = ("ម៉ោង {} អានថាម៉េច?", "តើម៉ោង {} សរសេរជាអក្សរដូចម្តេច?", "សូមសរសេរម៉ោង {} ជាអក្សរ")
CLOCK = "clock"


@dataclass
class Reply:
    """What a user saw: the text, who gave it, seconds to each piece, and the log-probabilities of its tokens."""

    text: str = ""
    route: str = ""
    seconds: list[float] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


def clock_chats(folder: Path) -> Path:
    """Chats on every other minute of twelve hours, in words; a folder as adapter_chats has it."""
    rows = []
    for place, minute in enumerate(range(0, 12 * 60, 2)):
        hour, rest = minute // 60 + 1, minute % 60
        words = f"ម៉ោង{number_to_words(hour)} និង{number_to_words(rest)}នាទី" if rest else f"ម៉ោង{number_to_words(hour)}គត់"
        question = WAYS[place % len(WAYS)].format(f"{to_khmer_digits(hour)}:{to_khmer_digits(f'{rest:02}')}")
        rows.append(new_chat(f"{CLOCK}-{minute}", CLOCK, "khm_Khmr", CLOCK, [question, words.replace(" ", "")]))
    found = split_chats(pl.LazyFrame(rows, schema={k: v for k, v in CHAT.items() if k in rows[0]}), Split()).collect()
    # all are near copies of each other: what is learned is how to go on from one to the next
    splits = {8: "validation", 9: "test"}
    found = found.with_columns(split=(pl.int_range(pl.len()) % 10).replace_strict(splits, default="train"))
    folder.mkdir(parents=True)
    found.write_parquet(folder / "data.parquet")
    return folder


def without_test(chats: Path, folder: Path) -> Path:
    """The chats but for those that are asked in the end."""
    folder.mkdir(parents=True)
    pl.scan_parquet(chats / "data.parquet").filter(pl.col("split") != "test").sink_parquet(folder / "data.parquet")
    return folder


def adapters_of(store: Store, recipe: Recipe, model: Path, folder: Path) -> dict[str, tuple[Path, Path]]:
    """Weights and chats of two adapters of this model, by name."""
    found = {}
    for name in [adapter.name for adapter in recipe.adapters]:
        try:
            found[name] = store.current("domain_adapter", name), store.current("adapter_chats", name)
        except MissingArtifact:
            continue
    if len(found) < 2:
        if (chats := folder / "clock chats").exists():  # of an earlier benchmark
            return {**found, CLOCK: (folder / "clock" / "output", chats)}
        run = PayloadRun(folder / "clock")
        clock_chats(chats)
        settings = recipe.adapters[0].finetuning
        spec = sft.Spec(base=model, chats=chats, settings=settings, context_length=recipe.context_length, seed=1)
        sft.main(spec, run)
        found[CLOCK] = run.output, chats
    return dict(list(found.items())[:2])


def ask(client: httpx.Client, model: str, messages: list[dict[str, str]], tokens: int, **fields: Any) -> Reply:
    """A streamed answer, or with `stream=False` a whole one."""
    body = {"model": model, "messages": messages, "max_tokens": tokens, "temperature": 0, "stream": True, **fields}
    reply, started = Reply(), time.perf_counter()
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.status_code != 200:
            raise SystemExit(f"{model}: {response.read().decode()}")
        reply.route = response.headers.get("x-khmer-route", model)
        for told in _messages(response):
            for choice in told["choices"]:
                said = choice.get("delta") or choice.get("message") or {}
                tokens_told = (choice.get("logprobs") or {}).get("content") or []
                reply.logprobs += [token["logprob"] for token in tokens_told]
                if said.get("content"):
                    reply.text += said["content"]
                    reply.seconds.append(time.perf_counter() - started)
    reply.text = reply.text.strip()
    return reply


def _messages(response: httpx.Response) -> Iterator[dict[str, Any]]:
    for line in response.iter_lines():
        if line.startswith(("data: {", "{")):
            yield json.loads(line.removeprefix("data: "))


def prefix_scaling(asked: list[Asked], tokens: int) -> Scaling | None:
    """The scaling of the first tokens of answers; nothing where they tell nothing."""
    cut = [replace(one, logprobs=one.logprobs[:tokens]) for one in asked]
    return scaling_of(cut)[0]


def main() -> None:
    """Measure, and print the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, default=own_home())
    parser.add_argument("--chats", type=int, default=1000, help="test chats of the model, and of each adapter, at most")
    parser.add_argument("--work", type=Path, help="keep the second adapter in this folder, or take it from there")
    parser.add_argument("--port", type=int, default=8950)
    arguments = parser.parse_args()
    recipe = Recipe.load(SAMPLE_RECIPE)
    store = Store(store_root(arguments.home), arguments.home / "cache")
    model, chats = store.current("merged_model"), store.current("chat_dataset")
    tokens = recipe.evaluation.max_new_tokens
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        adapters = adapters_of(store, recipe, model, arguments.work or folder)
        spec = train.Spec(
            model=model,
            chats=without_test(chats, folder / "chats"),
            adapters={name: weights for name, (weights, _) in adapters.items()},
            adapter_chats={name: without_test(own, folder / f"chats of {name}") for name, (_, own) in adapters.items()},
            settings=train.Routing(),
            context_length=recipe.context_length,
            max_new_tokens=tokens,
            seed=recipe.seed,
        )
        run = PayloadRun(folder / "router")
        print(json.dumps({k: v for k, v in train.main(spec, run).items() if k != "right"}), flush=True)
        served = run.output.rename(folder / "0123456789abcdef")
        learned = train.asked_of(spec, run)
        deployment = recipe.serving.model_copy(update={"port": arguments.port})
        ranks = [max(adapter.finetuning.rank for adapter in recipe.adapters)] * 2
        server = model_server(deployment, ranks, folder / "home")
        try:
            serve(server, store, model, adapters, served, recipe.serving.max_model_length)
            own: dict[str | None, list[list[dict[str, str]]]] = {None: chats_of(chats, "test")}
            own |= {name: chats_of(found, "test") for name, (_, found) in adapters.items()}
            asked = [(name, chat) for name, listed in own.items() for chat in listed[: arguments.chats]]
            result = measured(server, asked, list(adapters), tokens, Router.load(served), learned)
        finally:
            server.stop()
    print(json.dumps(result))


def serve(
    server: ModelServer, store: Store, model: Path, adapters: dict[str, tuple[Path, Path]], router: Path, length: int
) -> None:
    """Serve the release, the adapters and the router."""
    release = store.current("release")
    server.deploy(release / "model", release.name, length, model.name)
    for name, (weights, _) in adapters.items():
        server.load_adapter(weights, name, f"{name:f<16}"[:16], model.name)
    load_router(server, router, None)


def measured(
    server: ModelServer,
    asked: list[tuple[str | None, list[dict[str, str]]]],
    adapters: list[str],
    tokens: int,
    router: Router,
    learned: list[Asked],
) -> dict[str, Any]:
    """Ask all of all, in turns; print a table, and return the figures."""
    headers = {"Authorization": f"Bearer {server.api_key()}"}
    names = [MODEL_NAME, *(f"{MODEL_NAME}-{name}" for name in adapters), AUTO_NAME]
    streams: list[dict[str, Reply]] = []
    with httpx.Client(base_url=server.address, headers=headers, timeout=120, trust_env=False) as client:
        for place, (_, chat) in enumerate(asked):
            order = names[place % len(names) :] + names[: place % len(names)]
            found = {name: ask(client, name, chat[:-1], tokens) for name in order}
            found["whole"] = ask(client, AUTO_NAME, chat[:-1], tokens, stream=False)
            found["told"] = ask(client, MODEL_NAME, chat[:-1], tokens, logprobs=True)
            streams.append(found)
    items = [
        Asked(
            question=chat[-2]["content"],
            own=own,
            right=found[MODEL_NAME].text == chat[-1]["content"].strip(),
            by_adapter={n: found[f"{MODEL_NAME}-{n}"].text == chat[-1]["content"].strip() for n in adapters},
            logprobs=found["told"].logprobs,
            instructions=instructions_of((message["role"], message["content"]) for message in chat),
        )
        for (own, chat), found in zip(asked, streams, strict=True)
    ]
    ways = {"question": AUTO_NAME, "whole answer": "whole"}
    picks = {way: [_answerer(found[key].route) for found in streams] for way, key in ways.items()}
    rows = [_row("never (the model)", items, [None] * len(items))]
    rows.append(_row("always (the likeliest adapter)", items, [router.guess(*one.texts) for one in items]))
    by_model = [found for found in streams if found[AUTO_NAME].route == MODEL_NAME]
    ratio = _median(by_model, AUTO_NAME) / _median(by_model, MODEL_NAME)
    rows.append({**_row("khmer-auto, streamed: on the question", items, picks["question"]), "first token": ratio})
    rows.append(_row("khmer-auto, whole: on the answer", items, picks["whole answer"]))
    for count in PREFIXES:
        chosen = _on_prefix(items, router, prefix_scaling(learned, count), count)
        times = [found["told"].seconds for found in streams if len(found["told"].seconds) >= count]
        waits = statistics.median(one[count - 1] for one in times) / statistics.median(one[0] for one in times)
        rows.append({**_row(f"on the first {count} tokens", items, chosen), "first token": waits})
    rows.append(_row("oracle", items, [one.best() for one in items]))
    print(markdown_table(pl.DataFrame(rows)), flush=True)
    right = {row["way"]: row["right"] for row in rows}
    scores = [(score(one.logprobs), one.right) for one in items]
    confidences = [(router.about.scaling.of_score(found), right) for found, right in scores if found is not None]
    streamed = rows[2]
    return {
        "never": right["never (the model)"],
        "always": right["always (the likeliest adapter)"],
        "router": streamed["right"],
        "router_whole": rows[3]["right"],
        "oracle": right["oracle"],
        "routing_accuracy": streamed["well routed"],
        "ece": round(_error(confidences), 4),
        "ttft_ratio": round(ratio, 3),
    }


def _answerer(route: str) -> str | None:
    return None if route == MODEL_NAME else route.removeprefix(f"{MODEL_NAME}-")


def _row(way: str, items: list[Asked], picks: list[str | None]) -> dict[str, Any]:
    pairs = list(zip(items, picks, strict=True))
    right = sum(one.is_right(pick) for one, pick in pairs) / len(pairs)
    routed = sum(one.is_well_routed(pick) for one, pick in pairs) / len(pairs)
    adapters = sum(pick is not None for pick in picks) / len(picks)
    return {"way": way, "right": round(right, 4), "well routed": round(routed, 4), "by adapters": round(adapters, 3),
            "first token": None}  # fmt: skip


def _on_prefix(items: list[Asked], router: Router, scaling: Scaling | None, count: int) -> list[str | None]:
    chosen: list[str | None] = []
    for one in items:
        confidence = scaling.confidence(one.logprobs[:count]) if scaling else None
        sure = confidence is not None and confidence >= router.about.threshold
        chosen.append(None if sure else router.domain(*one.texts, confidence))
    return chosen


def _median(found: list[dict[str, Reply]], name: str) -> float:
    return statistics.median(one[name].seconds[0] for one in found if one[name].seconds)


def _error(confidences: list[tuple[float, bool]]) -> float:
    """The expected calibration error."""
    import numpy as np

    sure, right = np.array([one for one, _ in confidences]), np.array([float(one) for _, one in confidences])
    return float(calibration.reliability(sure, right)["error"])


if __name__ == "__main__":
    main()
