"""How fast and how well near-duplicates are found, on a corpus whose duplicates are known.

    python -m benchmarks.deduplication --docs 20000 --seed 1

`neardup.py` makes the corpus and scores what was kept. Measured is the way from its file of JSON lines to the file of
the ids that stay, with signatures, candidates, exact similarities and the index written; then the same again after one
more percent of documents came. Each repetition is a process of its own, whose start and compiling are not counted.
The peer is datasketch's MinHash and MinHashLSH on one core with the same n-grams, permutations and bands, on the first
2,000 documents.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import xxhash

from khmer_assets.corpus.deduplication import find_duplicates, sign_batch
from khmer_assets.corpus.minhash import bands_and_rows
from khmer_assets.foundation.home import PROJECT
from khmer_assets.foundation.tables import markdown_table
from khmer_assets.recipe import SAMPLE_RECIPE, Recipe
from resources.batches import Batches
from resources.storage import ROW_GROUP

SETTINGS = Recipe.load(SAMPLE_RECIPE).deduplication.model_copy(update={"embedder": None})
REPETITIONS = 3
PEER_DOCUMENTS = 2_000
ADDED = 0.01


def deduplicate(lines: Path, folder: Path, home: Path) -> float:
    """From a file of JSON lines (id, text) to `kept.txt` and `index.parquet`; return the seconds it took."""
    start = time.perf_counter()
    rows = pl.scan_ndjson(lines)
    aside = folder / "documents.parquet"
    # stands for the content hash that the graph has computed before
    hashed = pl.col("text").map_batches(_hashes, return_dtype=pl.String, is_elementwise=True)
    rows.with_columns(source=pl.lit("docs"), language=pl.lit("khm"), content_hash=hashed).sink_parquet(
        aside, row_group_size=ROW_GROUP, compression="lz4"
    )
    documents = pl.scan_parquet(aside)
    sign = partial(sign_batch, settings=SETTINGS)
    signed = Batches(home=str(home)).map("signatures", "1", sign, documents, workers="threads")
    index = find_duplicates(documents, signed, ["docs"], SETTINGS, home, None).collect()
    index.write_parquet(folder / "index.parquet")
    kept = index.filter(pl.col("duplicate_rule").is_null())["id"]
    (folder / "kept.txt").write_text("\n".join(kept))
    return time.perf_counter() - start


def _hashes(texts: pl.Series) -> pl.Series:
    return pl.Series([xxhash.xxh3_128_hexdigest(text.encode()) for text in texts], dtype=pl.String)


def measure(lines: Path, folder: Path) -> dict[str, float]:
    """One repetition: the whole corpus, the same with 1 % more, and the most memory that the process had."""
    few = folder / "few.jsonl"
    more = folder / "more.jsonl"
    with lines.open() as all_lines, few.open("w") as compiling, more.open("w") as grown:
        for number, line in enumerate(all_lines):
            if number < 2 * PEER_DOCUMENTS:
                compiling.write(line)
            grown.write(line)
        count = number + 1
        with lines.open() as again:
            for number in range(int(count * ADDED)):
                row = json.loads(next(again))
                grown.write(json.dumps({"id": f"new{number}", "text": f"{number} {row['text'][::-1]}"}) + "\n")
    deduplicate(few, folder, folder / "compiled")
    seconds = deduplicate(lines, folder, folder / "home")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    kept = (folder / "kept.txt").read_text()
    refresh = deduplicate(more, folder, folder / "home")
    (folder / "kept.txt").write_text(kept)
    return {"seconds": seconds, "refresh_seconds": refresh, "peak_memory_mb": peak, "documents": count}


def peer_seconds(lines: Path) -> float:
    """The seconds that datasketch takes for the first documents."""
    from datasketch import MinHash, MinHashLSH

    texts = pl.read_ndjson(lines, n_rows=PEER_DOCUMENTS)["text"].to_list()
    minhashes: dict[int, Any] = {}
    start = time.perf_counter()
    index = MinHashLSH(num_perm=SETTINGS.permutations, params=bands_and_rows(SETTINGS.permutations, SETTINGS.jaccard))
    for number, text in enumerate(texts):
        plain = "".join(text.split())
        minhash = MinHash(num_perm=SETTINGS.permutations, hashfunc=xxhash.xxh32_intdigest)
        ngrams = {plain[place : place + SETTINGS.ngram] for place in range(len(plain) - SETTINGS.ngram + 1)}
        minhash.update_batch([ngram.encode() for ngram in ngrams])
        if not any(minhash.jaccard(minhashes[other]) >= SETTINGS.jaccard for other in index.query(minhash)):
            index.insert(number, minhash)
            minhashes[number] = minhash
    return time.perf_counter() - start


def main() -> None:
    """Make the corpus, run the repetitions, print the table and the line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--shared", type=Path, default=PROJECT.parent / "shared", help="holds tools/ and data/")
    parser.add_argument("--measure", nargs=2, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(*arguments.measure)))
        return
    tool = arguments.shared / "tools" / "neardup.py"
    if not tool.exists():
        sys.exit(f"{tool}: no such file; name the folder that holds tools/neardup.py and data/ with --shared")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = arguments.shared / "data" / "office_help.jsonl"
        make = ["make", "--text", text, "--field", "km", "--docs", arguments.docs, "--seed", arguments.seed]
        _run(tool, *make, "--out", folder)
        runs = []
        for number in range(REPETITIONS):
            own = folder / str(number)
            own.mkdir()
            runs.append(json.loads(_run("-m", __spec__.name, "--measure", folder / "docs.jsonl", own)))
            print(f"repetition {number + 1} of {REPETITIONS}: {runs[-1]['seconds']:.2f} s", file=sys.stderr)
        scores = json.loads(_run(tool, "score", "--truth", folder / "truth.json", "--kept", own / "kept.txt"))
        peer = min(PEER_DOCUMENTS, arguments.docs) / peer_seconds(folder / "docs.jsonl")
    seconds = statistics.median(run["seconds"] for run in runs)
    rate = arguments.docs / seconds
    table = pl.DataFrame(
        {
            "what": ["this project", f"datasketch, {min(PEER_DOCUMENTS, arguments.docs):,} documents, one core"],
            "documents a second": [rate, peer],
            "times the peer": [rate / peer, 1.0],
        }
    )
    print(markdown_table(table))
    print(
        json.dumps(
            {
                "documents_per_second": round(rate),
                "recall": scores["recall"],
                "false_removals": scores["false_removals"],
                "copies_left": scores["copies_left"],
                "peak_memory_mb": round(max(run["peak_memory_mb"] for run in runs)),
                "refresh_share": round(statistics.median(run["refresh_seconds"] for run in runs) / seconds, 4),
                "peer_documents_per_second": round(peer),
            }
        )
    )


def _run(*command: Any) -> str:
    return subprocess.run(
        [sys.executable, *map(str, command)], check=True, stdout=subprocess.PIPE, text=True, cwd=PROJECT
    ).stdout


if __name__ == "__main__":
    main()
