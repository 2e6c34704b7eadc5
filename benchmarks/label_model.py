"""How well and how fast the label model learns topics of Khmer text, against scikit-learn's TF-IDF of the same
character n-grams with a logistic regression.

The topics are known from where a text stands: five kinds of Khmer text a paragraph at a time (an office suite's help,
an encyclopedia, sentences to be read aloud, a constitution, a declaration of rights), the program that a page of the
help is about, and the same for single short paragraphs of it. `--labelled FILE` measures on lines of JSON instead, with
a `text` and its `topics` (or one `topic`). A fifth of the texts is held out, for both sides the same, three times. F1
is the mean over the topics. Rates count a text from the string to its verdicts, on all cores; real pages are labelled
with all questions of the graph's own categories.
"""

import argparse
import json
import random
import resource
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from khmer_assets.foundation.home import PROJECT
from khmer_assets.foundation.tables import markdown_table
from khmer_assets.foundation.workers import cores
from khmer_assets.foundation.yaml_files import read_yaml
from khmer_assets.labels.calibration import calibration_error, f1_scores, given_labels
from khmer_assets.labels.categories import CATEGORIES, Categories, Head, heads
from khmer_assets.labels.labelled import Keep, Weights, label_batch
from khmer_assets.labels.model import learn
from khmer_assets.labels.train import LabelModelSettings
from khmer_assets.sources.documents import DOCUMENT

Texts = list[tuple[str, list[str]]]  # and the topics of each

CHARACTERS = LabelModelSettings().characters
SEED = 1
SPLITS = 3
HELD_OUT = 0.2
FIGURES = ("f1", "peer_f1", "calibration_error", "processor_seconds", "peer_processor_seconds")
SHORT = (40, 200)  # characters of a short paragraph
OFFICE_PARAGRAPHS = 2_500
LEAST_KHMER = 0.5  # of a page


def main() -> None:
    """Measure each set of topics, print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labelled", action="append", type=Path, metavar="FILE", help="lines of JSON to measure on")
    parser.add_argument("--rate-documents", type=int, default=20_000, help="pages that the rate is measured with")
    parser.add_argument("--without-peer", action="store_true", help="do not measure scikit-learn")
    arguments = parser.parse_args()
    data = PROJECT.parent / "shared" / "data"
    sets: dict[str, Texts] = (
        {file.stem: labelled_lines(file) for file in arguments.labelled}
        if arguments.labelled
        else {
            "five kinds of text": five_kinds(data),
            "programs, pages": programs(data),
            "programs, short paragraphs": short_paragraphs(data),
            "programs, 300 pages": random.Random(SEED).sample(programs(data), 300),
        }
    )
    rows = [measure(name, texts, not arguments.without_peer) for name, texts in sets.items()]
    print(markdown_table(pl.DataFrame(rows)), flush=True)
    rate, processor_rate, megabytes = documents_per_second(
        [text for texts in sets.values() for text, _ in texts], arguments
    )
    print(f"all questions: {rate:,.0f} documents/s on {cores()} cores, {processor_rate:,.0f} a second of one processor")
    print(
        json.dumps(
            {
                "macro_f1": {row["topics"]: row["f1"] for row in rows},
                "peer_macro_f1": {row["topics"]: row["peer_f1"] for row in rows},
                "calibration_error_max": max(row["calibration_error"] for row in rows),
                "training_processor_seconds_max": max(row["processor_seconds"] for row in rows),
                "documents_per_second": round(rate),
                "documents_per_processor_second": round(processor_rate),
                "peak_megabytes": round(megabytes),
            },
            ensure_ascii=False,
        )
    )


def measure(name: str, texts: Texts, with_peer: bool) -> dict[str, Any]:
    """F1, calibration and processor seconds of training of both sides: means over splits, the same for both."""
    labels = tuple(sorted({topic for _, topics in texts for topic in topics}))
    splits = [_measured(texts, labels, seed, with_peer) for seed in range(SPLITS)]
    means = {key: np.mean([split[key] for split in splits]) if key in splits[0] else None for key in FIGURES}
    smallest = min(sum(label in topics for _, topics in texts) for label in labels)
    return {"topics": name, "texts": len(texts), "labels": len(labels), "smallest": smallest} | {
        key: None if value is None else round(float(value), 4) for key, value in means.items()
    }


def _measured(texts: Texts, labels: tuple[str, ...], seed: int, with_peer: bool) -> dict[str, float]:
    texts = random.Random(seed).sample(texts, len(texts))
    strings = [text for text, _ in texts]
    truth = np.array([[label in topics for label in labels] for _, topics in texts])
    held_out = np.arange(len(texts)) < HELD_OUT * len(texts)
    head = Head("topics", "any", labels)
    targets = np.where(truth, 1, -1).astype(np.int8)
    began = time.process_time()
    learned = learn(strings, [head], targets, np.ones(len(texts), dtype=np.float32), held_out, CHARACTERS, SEED)
    seconds = time.process_time() - began
    given = learned.model.calibrated(learned.scores[held_out])["topics"]
    chosen = given_labels(head, given, learned.model.calibrations["topics"])
    found = {
        "f1": mean_f1(truth[held_out], chosen),
        "calibration_error": calibration_error(head, given, truth[held_out]),
        "processor_seconds": seconds,
    }
    if with_peer and (truth.sum(axis=1) == 1).all():
        found["peer_f1"], found["peer_processor_seconds"] = peer_f1(strings, truth, held_out)
    return found


def mean_f1(truth: np.ndarray, chosen: np.ndarray) -> float:
    """Over the labels that some text has."""
    return float(f1_scores(truth, chosen)[truth.any(axis=0)].mean())


def peer_f1(strings: list[str], truth: np.ndarray, held_out: np.ndarray) -> tuple[float, float]:
    """F1 of TfidfVectorizer and LogisticRegression of scikit-learn, and the processor seconds of their training."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    began = time.process_time()
    vectorizer = TfidfVectorizer(analyzer="char", ngram_range=(1, 4), sublinear_tf=True, min_df=2, dtype=np.float32)
    train = vectorizer.fit_transform(
        [text[:CHARACTERS] for text, out in zip(strings, held_out, strict=True) if not out]
    )
    model = LogisticRegression(C=10, class_weight="balanced", max_iter=200).fit(train, truth[~held_out].argmax(axis=1))
    seconds = time.process_time() - began
    test = vectorizer.transform([text[:CHARACTERS] for text, out in zip(strings, held_out, strict=True) if out])
    chosen = np.arange(truth.shape[1]) == model.predict(test)[:, None]
    return mean_f1(truth[held_out], chosen), seconds


def documents_per_second(texts: list[str], arguments: argparse.Namespace) -> tuple[float, float, float]:
    """The rate of `label_batch` on documents with all questions of the graph, by the clock and by the processor's time,
    and the process's peak memory (MB)."""
    from khmer_assets.labels.model import LabelModel

    questions = heads(Categories.model_validate(read_yaml(CATEGORIES)))
    generator = np.random.default_rng(SEED)
    some = random.Random(SEED).sample(texts, min(400, len(texts)))
    targets = generator.choice(
        np.array([-1, 1], dtype=np.int8), (len(some), sum(len(head.labels) for head in questions))
    )
    model: LabelModel = learn(
        some, questions, targets, np.ones(len(some), dtype=np.float32), np.arange(len(some)) < 80, CHARACTERS, SEED
    ).model
    pages = [text for text in texts if len(text) > SHORT[1]] or texts
    documents = pl.DataFrame(
        {
            "id": [str(n) for n in range(arguments.rate_documents)],
            "text": random.Random(SEED).choices(pages, k=arguments.rate_documents),
        }
    )
    documents = documents.select(
        pl.col(name) if name in documents.columns else pl.lit(None, kind).alias(name) for name, kind in DOCUMENT.items()
    )
    judge = partial(label_batch, model=model, keep=Keep(), weights=Weights())
    judge(documents.head(8))
    began, processor = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(cores()) as threads:
        done = sum(rows.height for rows in threads.map(judge, documents.iter_slices(512)))
    seconds, processor = time.perf_counter() - began, time.process_time() - processor
    return done / seconds, done / processor, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def labelled_lines(file: Path) -> Texts:
    """Lines with a `text` and `topics` or a `topic`."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [(row["text"], row["topics"] if "topics" in row else [row["topic"]]) for row in rows]


def _pages(data: Path) -> list[tuple[str, str]]:
    rows = map(json.loads, (data / "office_help.jsonl").read_text().splitlines())
    khmer = ((row["id"].split("/"), row["km"]) for row in rows if row["khmer_ratio"] > LEAST_KHMER)
    return [(text, place[1]) for place, text in khmer if len(place) > 2]


def programs(data: Path) -> Texts:
    """Pages of the help with the program that they are about."""
    return [(text, [program]) for text, program in _pages(data)]


def short_paragraphs(data: Path) -> Texts:
    """Short paragraphs of the same."""
    found = [(part, [program]) for text, program in _pages(data) for part in text.split("\n")]
    return random.Random(SEED).sample([one for one in found if SHORT[0] <= len(one[0]) <= SHORT[1]], 4_000)


def five_kinds(data: Path) -> Texts:
    """Paragraphs of five kinds of text."""
    office = [part for text, _ in _pages(data) for part in text.split("\n")]
    office = random.Random(SEED).sample([part for part in office if len(part) >= SHORT[0]], OFFICE_PARAGRAPHS)

    def field(name: str) -> list[str]:
        return [json.loads(line)["text"] for line in (data / name).read_text().splitlines()]

    def paragraphs(name: str) -> list[str]:
        lines = (line.strip() for line in (data / name).read_text().splitlines())
        return [line for line in lines if len(line) >= SHORT[0]]

    kinds = {
        "help": office,
        "encyclopedia": field("wikipedia_lines.jsonl"),
        "read aloud": field("spoken_prompts.jsonl"),
        "constitution": paragraphs("constitution.md"),
        "declaration": paragraphs("udhr.km.txt"),
    }
    return [(text, [kind]) for kind, texts in kinds.items() for text in texts]


if __name__ == "__main__":
    main()
