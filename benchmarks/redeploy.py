"""What users notice of redeployments, broken releases and killed processes, while they stream answers.

    python -m benchmarks.redeploy

The models are as large as the recipe's and have random weights; one of the broken ones is cut short, the other's
weights are no numbers. How long it takes is how long vLLM needs to start. `failed` are requests that got nothing,
`cut_streams` answers that began and did not end; of the kills they are told apart.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.gateway import Load, gateway_process, load_with, random_model, started_server
from khmer_assets.recipe import SAMPLE_RECIPE, Recipe
from khmer_assets.server.engines import Engine
from khmer_assets.server.state import ModelServerError, ServerState
from resources.model_server import ModelServer


def during(server: ModelServer, users: int, least: float, act: Callable[[], None]) -> Load:
    """The load of `users` while `act` runs, at least for so many seconds."""

    async def both() -> Load:
        stop = asyncio.Event()
        load = asyncio.create_task(load_with(server.address, server.api_key(), users, 36_000, stop, think=0.5))
        started = time.monotonic()
        await asyncio.to_thread(act)
        await asyncio.sleep(max(2.0, least - (time.monotonic() - started)))
        stop.set()
        return await load

    return asyncio.run(both())


def broken_models(folder: Path, recipe: Recipe) -> list[Path]:
    """Two models that must not be served."""
    import torch
    from safetensors.torch import load_file, save_file

    cut, spoiled = (random_model(folder / name, recipe) / "model.safetensors" for name in ("cut", "spoiled"))
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    tensors = {name: torch.full_like(tensor, float("nan")) for name, tensor in load_file(spoiled).items()}
    save_file(tensors, spoiled, {"format": "pt"})
    return [cut.parent, spoiled.parent]


def redeploy(server: ModelServer, folder: Path, recipe: Recipe, count: int) -> tuple[int, int]:
    """Deploy good releases and, between them, the broken ones; how many took over, and how many were turned away."""
    length = recipe.serving.max_model_length
    good = [(random_model(folder / f"good{number}", recipe, number + 1), f"{number:x}" * 16) for number in range(count)]
    broken = [(model, digest * 16) for model, digest in zip(broken_models(folder, recipe), "ef", strict=True)]
    order = good[:1] + broken[:1] + good[1:3] + broken[1:] + good[3:]
    served = refused = 0
    for model, digest in order:
        try:
            server.deploy(model, digest, length)
            served += 1
        except ModelServerError as error:
            refused += 1
            print(f"turned away: {str(error).splitlines()[0][:150]}", flush=True)
    return served, refused


def kill_gateway(server: ModelServer, count: int) -> list[float]:
    """Kill the gateway again and again; the seconds until it answers again."""
    back = []
    for _ in range(count):
        time.sleep(3)
        gateway_process(server).kill()
        started = time.monotonic()
        while httpx.get(f"{server.address}/v1/models", trust_env=False, timeout=30).status_code != 401:
            pass
        back.append(time.monotonic() - started)
    return back


def kill_replicas(server: ModelServer, count: int) -> None:
    """Kill one engine after the other, each when both answer."""
    folder = Path(server.home) / "server"
    for number in range(count):
        engines = [Engine(folder, port) for port in ServerState.read(folder).ports]
        while not all(engine.answers_health() for engine in engines):
            time.sleep(1)
        time.sleep(3)
        process = engines[number % 2].process._process()
        assert process is not None, "the engine answers"
        for member in [process, *process.children(recursive=True)]:
            try:
                member.kill()
            except psutil.NoSuchProcess:
                continue
        time.sleep(2)
        print(f"replica kill {number + 1}", flush=True)


def unrecorded(home: Path, load: Load) -> int:
    """How many answers of which users got anything have no audit record."""
    time.sleep(2)
    recorded = {json.loads(file.read_text())["id"] for file in (home / "audit").glob("????-??-??/*.json")}
    return len(set(load.ids) - recorded)


def main() -> None:
    """Measure, and print the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=120, help="of load at least, while releases change")
    parser.add_argument("--redeploys", type=int, default=5)
    parser.add_argument("--gateway-kills", type=int, default=10)
    parser.add_argument("--replica-kills", type=int, default=10)
    parser.add_argument("--port", type=int, default=8900)
    arguments = parser.parse_args()
    recipe = Recipe.load(SAMPLE_RECIPE)
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        server = started_server(home, recipe, arguments.port)
        try:
            if arguments.redeploys:
                counts: list[int] = []
                load = during(
                    server,
                    arguments.users,
                    arguments.seconds,
                    lambda: counts.extend(redeploy(server, home, recipe, arguments.redeploys)),
                )
                result = {
                    "requests": load.answers + load.failed + load.cut,
                    "failed": load.failed,
                    "cut_streams": load.cut,
                    "redeploys": counts[0],
                    "rollbacks": counts[1],
                    "unrecorded": unrecorded(home, load),
                }
                print(json.dumps(result), load.errors[:3], flush=True)
            if arguments.gateway_kills:
                back: list[float] = []
                load = during(
                    server, arguments.users, 0, lambda: back.extend(kill_gateway(server, arguments.gateway_kills))
                )
                result["gateway_kills"] = {
                    "answered": len(load.ids),
                    "unrecorded": unrecorded(home, load),
                    "back_seconds_median": round(statistics.median(back), 2),
                    "back_seconds_most": round(max(back), 2),
                    "failed": load.failed,
                    "cut": load.cut,
                }
                print(json.dumps(result["gateway_kills"]), flush=True)
            if arguments.replica_kills:
                two = server.model_copy(update={"replicas": 2})
                state = ServerState.read(home / "server")
                assert state.release is not None, "something is served"
                kept = home / "server" / "models" / state.release.digest
                two.deploy(kept, state.release.digest, state.release.max_model_length)
                load = during(two, arguments.users, 0, lambda: kill_replicas(two, arguments.replica_kills))
                result["replica_kills"] = {"answered": load.answers, "failed": load.failed, "cut": load.cut}
        finally:
            server.stop()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
