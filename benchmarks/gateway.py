"""What the gateway costs: throughput and time to the first token through it and direct, in turns, on one engine.

    python -m benchmarks.gateway --users 32

The model is as large as the recipe's and has random weights; each user streams answers of 64 tokens to Khmer prompts,
one after the other. Rounds alternate, so that both see the same machine; figures are medians of the rounds. The
processor time that the gateway takes for an answer says more than the ratio, which changes with the machine.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import polars as pl
import psutil

from khmer_assets.foundation.tables import markdown_table
from khmer_assets.recipe import SAMPLE_RECIPE, Recipe
from khmer_assets.release.deployment import model_server
from khmer_assets.server.events import Events
from khmer_assets.server.keys import engine_key
from khmer_assets.server.state import ServerState
from resources.model_server import ModelServer

ANSWER_TOKENS = 64
TTFT_USERS = 8
SAMPLE_TEXTS = SAMPLE_RECIPE.parent.parent / "sample"


@dataclass
class Load:
    """What users saw: whole answers, those that failed before and after their first piece, and times in seconds."""

    answers: int = 0
    failed: int = 0
    cut: int = 0
    first_token: list[float] = field(default_factory=list)
    seconds: float = 0.0
    ids: list[str] = field(default_factory=list)  # of answers of which anything came
    errors: list[str] = field(default_factory=list)


def prompts() -> list[str]:
    """Khmer titles of the sample's facts, as questions."""
    lines = (SAMPLE_TEXTS / "facts.jsonl").read_text().splitlines()
    return [f"តើ{json.loads(line)['title']}ជាអ្វី?" for line in lines]


def random_model(folder: Path, recipe: Recipe, seed: int = 0) -> Path:
    """Save a model of the recipe's size with random weights."""
    import torch

    from khmer_assets.pretraining.decoder import new_model
    from khmer_assets.tokenizer.bpe import train_bpe
    from khmer_assets.tokenizer.chat_template import wrap

    texts = [file.read_text() for file in sorted(SAMPLE_TEXTS.glob("*.*l"))]
    tokenizer = wrap(train_bpe((line for text in texts for line in text.splitlines()), 2048))
    settings = recipe.pretraining
    assert settings is not None and settings.decoder is not None  # the sample's
    new_model(settings.decoder, settings.context_length, tokenizer, seed).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


async def one_answer(session: aiohttp.ClientSession, address: str, key: str, prompt: str, load: Load) -> None:
    """Stream one answer and note how it went."""
    body = {"model": "khmer", "messages": [{"role": "user", "content": prompt}], "stream": True}
    body |= {"max_tokens": ANSWER_TOKENS, "ignore_eos": True, "temperature": 0.7}
    started, begun, events = time.monotonic(), False, Events(with_usage=True)
    try:
        headers = {"Authorization": f"Bearer {key}"}
        async with session.post(f"{address}/v1/chat/completions", json=body, headers=headers) as response:
            if response.status != 200:
                load.failed += 1
                load.errors.append(f"{response.status}: {(await response.text())[:200]}")
                return
            async for piece in response.content.iter_any():
                if not begun:
                    begun = True
                    load.first_token.append(time.monotonic() - started)
                    load.ids.append(response.headers.get("x-request-id", ""))
                events.whole(piece)
    except aiohttp.ClientError as error:
        load.errors.append(repr(error))
    if events.failure is not None:
        load.errors.append(events.failure)
    if events.ended:
        load.answers += 1
    elif begun:
        load.cut += 1
    else:
        load.failed += 1


async def load_with(
    address: str, key: str, users: int, seconds: float, stop: asyncio.Event | None = None, think: float = 0.0
) -> Load:
    """Users who ask one question after the other for some seconds, or until `stop`; `think`: pauses between."""
    load, asked = Load(), prompts()
    started = time.monotonic()

    async def user(number: int) -> None:
        turn = 0
        while time.monotonic() - started < seconds and not (stop and stop.is_set()):
            await one_answer(session, address, key, asked[(number * 31 + turn) % len(asked)], load)
            turn += 1
            await asyncio.sleep(think)

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=30)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
        await asyncio.gather(*(user(number) for number in range(users)))
    load.seconds = time.monotonic() - started
    return load


def gateway_process(server: ModelServer) -> psutil.Process:
    """The gateway, as the supervisor has started it last."""
    supervisor = server._gateway(server.gateway).process._process()
    assert supervisor is not None, "the supervisor runs"
    return supervisor.children()[0]


def started_server(home: Path, recipe: Recipe, port: int, **settings: object) -> ModelServer:
    """A served random model."""
    server = model_server(recipe.serving, recipe.adapter_ranks, home).model_copy(update={"port": port, **settings})
    server.deploy(random_model(home / "model", recipe), "a" * 16, recipe.serving.max_model_length)
    return server


async def measure(server: ModelServer, users: int, rounds: int, seconds: float) -> dict[str, dict[str, float]]:
    """Medians of the rounds, `direct` and `gateway`."""
    folder = Path(server.home) / "server"
    ways = {
        "direct": (f"http://127.0.0.1:{ServerState.read(folder).ports[0]}", engine_key(folder)),
        "gateway": (server.address, server.api_key()),
    }
    seen: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    gateway = gateway_process(server)
    for number in range(rounds + 1):
        for way, (address, key) in ways.items():
            before = sum(gateway.cpu_times()[:2])
            load = await load_with(address, key, users, seconds)
            computed = sum(gateway.cpu_times()[:2]) - before
            if number:  # the first round warms up
                figures = {
                    "answers_per_second": load.answers / load.seconds,
                    "tokens_per_second": load.answers * ANSWER_TOKENS / load.seconds,
                    "ttft_ms": 1000 * statistics.median(load.first_token),
                    "gateway_cpu_ms_an_answer": 1000 * computed / max(1, load.answers),
                    "failed": load.failed + load.cut,
                }
                seen[way].append(figures)
    return {
        way: {name: statistics.median(figures[name] for figures in found) for name in found[0]}
        for way, found in seen.items()
    }


def main() -> None:
    """Measure, print a table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8, help="of a round")
    parser.add_argument("--requests", type=int, default=0, help="then ask so often, and tell how the memory grew")
    parser.add_argument("--port", type=int, default=8800)
    arguments = parser.parse_args()
    recipe = Recipe.load(SAMPLE_RECIPE)
    with tempfile.TemporaryDirectory() as home:
        server = started_server(Path(home), recipe, arguments.port)
        try:
            many = asyncio.run(measure(server, arguments.users, arguments.rounds, arguments.seconds))
            few = asyncio.run(measure(server, TTFT_USERS, arguments.rounds, arguments.seconds))
            result = {
                "throughput_ratio": round(
                    many["gateway"]["tokens_per_second"] / many["direct"]["tokens_per_second"], 3
                ),
                "ttft_added_ms": round(few["gateway"]["ttft_ms"] - few["direct"]["ttft_ms"], 2),
                "gateway_cpu_ms_an_answer": round(many["gateway"]["gateway_cpu_ms_an_answer"], 2),
                "failed": int(many["gateway"]["failed"] + few["gateway"]["failed"]),
            }
            if arguments.requests:
                before, answers, failed = gateway_process(server).memory_info().rss, 0, 0
                while answers < arguments.requests:
                    load = asyncio.run(load_with(server.address, server.api_key(), arguments.users, 20))
                    answers, failed = answers + load.answers, failed + load.failed + load.cut
                grown = (gateway_process(server).memory_info().rss - before) / 1e6
                result |= {"requests": answers, "memory_grown_mb": round(grown, 1), "failed": result["failed"] + failed}
        finally:
            server.stop()
    rows = [
        {"users": users, "way": way, **figures}
        for users, measured in ((arguments.users, many), (TTFT_USERS, few))
        for way, figures in measured.items()
    ]
    print(markdown_table(pl.DataFrame(rows)))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
