"""Asking a teacher about thousands of rows: the rate, the limits, and what kills leave behind.

    python -m benchmarks.teacher --peer-python /path/to/an/environment/with/bespokelabs-curator/bin/python

The teacher is a loopback server that answers after 20 ms (`benchmarks/teacher_server.py`) and keeps its own books; what
is told here is what it has seen.

- Rate: short Khmer rows, a request each, no limits set; the other side is bespokelabs-curator, in an environment of its
  own, on the same server with the same rows, its limits raised out of the way. Rates count from the first arrival at
  the server to the last.
- Limits: three teachers, of which one is limited in requests, one in prompt tokens, one in answer tokens a minute. The
  error is the largest distance from the limit of any window of 60 s that lies within the run.
- Kills: a process that asks about 5,000 rows is killed (-9) twenty times at random moments, and then let to its end.
  Rows are lost that have no answer; requests are paid twice that the server has answered more than once for one row.
"""

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import polars as pl

from benchmarks.teacher_server import LABELS
from khmer_assets.foundation.home import PROJECT
from khmer_assets.foundation.tables import markdown_table
from khmer_assets.teachers.answers import ANSWERED, costs_by_day
from khmer_assets.teachers.asking import Asked, ask
from khmer_assets.teachers.settings import Budget, Teacher, Template

LATENCY = 0.02
AT_A_TIME = 96
WINDOW = 60.0
TEMPLATE = Template(
    text="{text}",
    system="Choose the label of the text.",
    answer_schema={"type": "object", "properties": {"label": {"enum": list(LABELS)}}, "required": ["label"]},
    max_answer_tokens=32,
)

PEER = (
    """
import json, sys, time
from typing import Literal
from bespokelabs import curator
from pydantic import BaseModel

class Answer(BaseModel):
    label: Literal{labels}

class Labeler(curator.LLM):
    response_format = Answer
    def prompt(self, input):
        system = {"role": "system", "content": "Choose the label of the text."}
        return [system, {"role": "user", "content": input["text"]}]
    def parse(self, input, response):
        return {"id": input["id"], "label": response.label}

rows = [json.loads(line) for line in open(sys.argv[2])]
labeler = Labeler(
    model_name="gpt-4o-mini", backend="openai",
    backend_params={"base_url": sys.argv[1], "max_requests_per_minute": 10**9, "max_tokens_per_minute": 10**12,
                    "max_concurrent_requests": %d, "max_retries": 3},
    generation_params={"max_tokens": 32, "temperature": 0},
)
answered = labeler(rows)
answered = getattr(answered, "dataset", answered)
print("answered", len(answered))
""".replace("{labels}", str(list(LABELS)))
    % AT_A_TIME
)


def rows(count: int) -> list[dict[str, str]]:
    """Short Khmer texts, no two alike."""
    return [{"id": str(n), "text": f"ឯកសារទី {n}៖ " + "កសិករច្រូតស្រូវនៅវាលស្រែ។ " * 4} for n in range(count)]


@contextmanager
def server() -> Iterator[str]:
    """The address of a teacher's server, a process of its own."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [sys.executable, "-m", "benchmarks.teacher_server", str(port), "--latency", str(LATENCY)]
    process = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def books(address: str) -> pl.DataFrame:
    """What the server has seen, a row a request."""
    schema = ["at", "id", "model", "text", "rows", "prompt_tokens", "answer_tokens"]
    return pl.DataFrame(httpx.get(f"{address}/books", timeout=60).json(), schema=schema, orient="row")


def teacher(address: str, **settings: Any) -> Teacher:
    """A teacher behind the server, with prices."""
    common: dict[str, Any] = {"at_a_time": AT_A_TIME, "prompt_price": 0.5, "answer_price": 1.5}
    return Teacher(**{"name": "teacher", "model": "teacher", "address": f"{address}/v1", **common, **settings})


def asked(taught: Teacher, folder: Path, about: list[dict[str, str]]) -> tuple[int, Asked]:
    """How many rows were answered, and the books."""
    answers, told = ask([taught], TEMPLATE, about, folder, Budget(), lambda text: None)
    return sum(answer.value is not None for answer in answers), told


def rate(count: int) -> float:
    """Requests a second as the server has seen them."""
    with server() as address, tempfile.TemporaryDirectory() as folder:
        answered, _ = asked(teacher(address), Path(folder), rows(count))
        assert answered == count, f"{answered} of {count} rows were answered"
        return _rate(books(address))


def peer_rate(python: Path, count: int) -> tuple[float, str]:
    """The same of bespokelabs-curator; 0 and the end of its output where it did not come to its end."""
    with server() as address, tempfile.TemporaryDirectory() as folder:
        about = Path(folder) / "rows.jsonl"
        about.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows(count)))
        env = {**os.environ, "OPENAI_API_KEY": "sk-none", "CURATOR_CACHE_DIR": folder, "CURATOR_DISABLE_CACHE": "1"}
        env |= {"TELEMETRY_ENABLED": "0", "HF_DATASETS_CACHE": folder, "HF_HUB_OFFLINE": "1", "HOME": folder}
        env.pop("PYTHONPATH", None)
        # litellm, which it brings, has the file of tokens that tiktoken would else fetch
        for tokens in python.absolute().parent.parent.glob("lib/*/site-packages/litellm/litellm_core_utils/tokenizers"):
            env["TIKTOKEN_CACHE_DIR"] = str(tokens)
        command = [str(python), "-c", PEER, f"{address}/v1", str(about)]
        done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, timeout=900)
        if f"answered {count}" not in done.stdout:
            return 0.0, (done.stdout + done.stderr)[-2000:]
        return _rate(books(address)), ""


def _rate(seen: pl.DataFrame) -> float:
    """Of the rows alone: the peer asks for limits and tries a schema first."""
    seen = seen.filter(pl.col("text").is_in([zlib.crc32(row["text"].encode()) for row in rows(seen.height)]))
    last, first = float(seen["at"].max()), float(seen["at"].min())  # type: ignore[arg-type]
    return seen.height / (last - first)


def limit_errors(seconds: float) -> dict[str, float]:
    """The largest error of a window of 60 s, as a share of the limit, by what is limited."""
    columns = {
        "requests_a_minute": pl.lit(1),
        "prompt_tokens_a_minute": pl.col("prompt_tokens"),
        "answer_tokens_a_minute": pl.col("answer_tokens"),
    }
    errors = {}
    with server() as address, tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor() as threads:
        asked(teacher(address, name="first"), Path(folder), rows(1))
        sizes = books(address).select(**columns).row(0)
        # so that each teacher gets 6,000 requests a minute
        limits = {name: 6_000 * size for name, size in zip(columns, sizes, strict=True)}
        about = rows(round(6_000 * (seconds + 5) / WINDOW))
        running = [
            threads.submit(
                asked, teacher(address, name=name, model=name, at_a_time=32, **{name: limit}), Path(folder), about
            )
            for name, limit in limits.items()
        ]
        time.sleep(seconds)
        seen = books(address)
        for name, limit in limits.items():
            own = seen.filter(model=name).sort("at").with_columns(took=columns[name])
            errors[name] = largest_error(own["at"].to_list(), own["took"].to_list(), limit)
        for one in running:
            one.result()
    return errors


def largest_error(times: list[float], took: list[int], limit: int) -> float:
    """The largest distance from the limit, as its share, of the windows that begin with a request and lie within."""
    errors, total, last = [0.0], 0, 0
    for first, begin in enumerate(times):
        while last < len(times) and times[last] < begin + WINDOW:
            total += took[last]
            last += 1
        if last == len(times):
            break
        errors.append(abs(total / limit - 1))
        total -= took[first]
    return max(errors)


def killed(kills: int, count: int, seed: int) -> dict[str, Any]:
    """A labelling that is killed again and again; what is lost, paid twice, and how the books agree."""
    pick = random.Random(seed)
    with server() as address, tempfile.TemporaryDirectory() as folder:
        allowed = 0
        for kill in range(kills):
            process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.teacher", "--ask", address, folder, str(count)], cwd=PROJECT
            )
            before = _count(address)
            wanted = before + pick.randrange(1, max(2, (count - before) // (kills - kill + 1) * 2))
            while _count(address) < wanted and process.poll() is None:
                time.sleep(0.003)
            process.send_signal(signal.SIGKILL)
            process.wait()
            allowed += 32
        answered, _ = asked(teacher(address, at_a_time=32), Path(folder), rows(count))
        seen = books(address)
        ours = costs_by_day(Path(folder))
        read = seen.filter(pl.col("id").is_in(list(_request_ids(Path(folder)))))
        return {
            "lost": count - answered,
            "paid_twice": sum(times - 1 for times in Counter(seen["text"].to_list()).values()),
            "under_way_at_kills": allowed,
            "answers_that_nobody_read": seen.height - read.height,
            "tokens_in_our_books": _tokens(ours),
            "tokens_in_its_books": _tokens(read),
            "tokens_that_nobody_read": _tokens(seen) - _tokens(read),
        }


def _tokens(taken: pl.DataFrame) -> int:
    return int(taken.select(pl.col("prompt_tokens").sum() + pl.col("answer_tokens").sum()).item())


def _request_ids(folder: Path) -> set[str]:
    """The ids of the requests that our books have an answer of."""
    import sqlite3

    query = "SELECT o.name || '-' || r.number FROM requests r JOIN owners o ON o.number = r.owner WHERE outcome = ?"
    with sqlite3.connect(folder / "teacher.sqlite") as connection:
        return {identity for (identity,) in connection.execute(query, [ANSWERED])}


def _count(address: str) -> int:
    return int(httpx.get(f"{address}/count").json())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", type=Path, help="of an environment with bespokelabs-curator")
    parser.add_argument("--rows", type=int, default=20_000, help="of the rate")
    parser.add_argument("--peer-rows", type=int, default=4_000)
    parser.add_argument("--limit-seconds", type=float, default=100)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--kill-rows", type=int, default=5_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--ask", nargs=3, metavar=("ADDRESS", "FOLDER", "ROWS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.ask:
        address, folder, count = arguments.ask
        asked(teacher(address, at_a_time=32), Path(folder), rows(int(count)))
        return
    ours = rate(arguments.rows)
    peer, problem = (
        peer_rate(arguments.peer_python, arguments.peer_rows) if arguments.peer_python else (0.0, "not given")
    )
    errors = limit_errors(arguments.limit_seconds) if arguments.limit_seconds > WINDOW else {}
    after = killed(arguments.kills, arguments.kill_rows, arguments.seed)
    if problem:
        print(f"bespokelabs-curator was not measured: {problem}")
    table = [("requests a second", f"{ours:,.0f}", f"{peer:,.0f}" if peer else "")]
    table += [(f"largest error of {name.replace('_', ' ')}", f"{error:.2%}", "") for name, error in errors.items()]
    table += [
        (f"after {arguments.kills} kills: {name.replace('_', ' ')}", f"{value:,}", "") for name, value in after.items()
    ]
    print(markdown_table(pl.DataFrame(table, schema=["measure", "ours", "curator"], orient="row")))
    print(
        json.dumps(
            {
                "requests_per_second": round(ours, 1),
                "peer_requests_per_second": round(peer, 1) or None,
                "limit_error_max": round(max(errors.values()), 5) if errors else None,
                "paid_twice": after["paid_twice"],
                "lost": after["lost"],
                "books_agree": after["tokens_in_our_books"] == after["tokens_in_its_books"],
            }
        )
    )


if __name__ == "__main__":
    main()
