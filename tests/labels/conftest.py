"""Documents of three topics whose words are their own, a teacher that knows them, and what it says."""

import json
from random import Random
from typing import Any

import polars as pl
import pytest

from khmer_assets.foundation.yaml_files import read_yaml
from khmer_assets.labels.categories import CATEGORIES, LABELLED, Categories, quality
from khmer_assets.sources.documents import DOCUMENT, content_hash
from tests.teachers.hosts import Request, Response, completion

WORDS = {
    "agriculture": "ស្រូវ កសិករ ភ្ជួរ ដំណាំ ស្រែ ចម្ការ ជី ពូជ ប្រមូលផល ទឹកភ្លៀង គោ នង្គ័ល",
    "health": "គ្រូពេទ្យ ជំងឺ ថ្នាំ មន្ទីរពេទ្យ ឈឺក្បាល វ៉ាក់សាំង អ្នកជំងឺ គ្រុន សុខភាព ព្យាបាល ឈាម បេះដូង",
    "sports": "បាល់ទាត់ កីឡាករ ប្រកួត ក្រុម ឈ្នះ ពិន្ទុ ប្រដាល់ មេដាយ ទីលាន អ្នកទស្សនា រត់ ហែលទឹក",
}
OPENINGS = ("នៅថ្ងៃនេះ", "តាមដំណឹង", "យើងដឹងថា", "លោកយាយនិយាយថា", "ក្នុងខេត្តនេះ")
BAD = "ឆ្កួត"  # makes a document unsafe
POOR = "ៗៗៗ"  # makes it a poor one


def text_of(number: int) -> tuple[str, str]:
    """A document's text and topic."""
    random = Random(number)
    topic = list(WORDS)[number % 3]
    words = " ".join(random.choices(WORDS[topic].split(), k=8))
    end = f" {BAD}" if number % 7 == 0 else ""
    end += f" {POOR}" if number % 4 == 0 else ""
    return f"{random.choice(OPENINGS)} {words} លេខ {number}{end}។", topic


def verdict(text: str) -> dict[str, Any]:
    """What a teacher says of it."""
    topics = [topic for topic, words in WORDS.items() if any(word in text for word in words.split())]
    poor = POOR in text
    return {
        "validity": "invalid" if poor else "truth",
        "claim": "unknown",
        "toxicity": ["insult"] if BAD in text else [],
        "topics": topics[:3] or ["culture"],
        **({"accuracy": 1, "completeness": 0, "coherence": 1, "helpfulness": 0} if poor else
           {"accuracy": 3, "completeness": 2, "coherence": 2, "helpfulness": 2}),
    }  # fmt: skip


def judge(request: Request) -> Response:
    """A teacher's server."""
    values = [verdict(text) for text in request.texts]
    content = values[0] if len(values) == 1 else {str(n): value for n, value in enumerate(values, 1)}
    return completion(json.dumps(content), tokens=(900, 60 * len(values)))


def documents(source: str, count: int) -> pl.DataFrame:
    rows = []
    for number in range(count):
        text, _ = text_of(number)
        rows.append({"id": f"{source}-{number}", "source": source, "text": text, "language": "khm",
                     "content_hash": content_hash(text)})  # fmt: skip
    return pl.DataFrame(rows, schema=DOCUMENT)


def labelled_documents(source: str, count: int) -> pl.DataFrame:
    """With the teacher's verdicts, as `LABELLED`."""
    rows = [
        {**row, "teacher": "sage", **verdict(row["text"])}
        for row in documents(source, count).select("id", "source", "language", "text", "content_hash").to_dicts()
    ]
    return pl.DataFrame(rows, schema=LABELLED).with_columns(quality=quality())


@pytest.fixture(scope="session")
def categories() -> Categories:
    return Categories.model_validate(read_yaml(CATEGORIES))
