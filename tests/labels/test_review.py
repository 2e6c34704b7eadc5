"""A person sees documents of each label, where the model differs first, and no text can act on the page."""

import json
from html.parser import HTMLParser

import numpy as np
import polars as pl

from khmer_assets.labels import review
from khmer_assets.labels.categories import heads
from khmer_assets.labels.corrections import read_corrections
from khmer_assets.labels.train import targets_of
from tests.labels.conftest import labelled_documents

HOSTILE = '<script>alert(1)</script><img src="https://example.org/x.png" onerror=alert(2)>\x00\u202e| ![](x)'


def shown(categories, count=90):
    rows = labelled_documents("<b>news", count).with_columns(
        text=pl.when(pl.int_range(pl.len()) == 1).then(pl.lit(HOSTILE)).otherwise("text")
    )
    asked = heads(categories)
    targets = targets_of(rows, asked)
    place, given, verdicts = 0, {}, {}
    for head in asked:
        said = targets[:, place : place + len(head.labels)] == 1
        said = np.roll(said, 1, axis=0) if head.name == "topics" else said  # the model is wrong about topics
        place += len(head.labels)
        given[head.name] = np.where(said, 0.9, 0.05)
        verdicts[head.name] = [
            [label for label, is_said in zip(head.labels, row, strict=True) if is_said] for row in said
        ]
    return review.chosen(rows, asked, targets, given, verdicts)


def test_there_are_at_most_twenty_documents_a_label_and_differences_come_first(categories):
    found = shown(categories)
    groups = {(one["question"], one["label"]) for one in found}
    assert {("topics", "health"), ("validity", "truth"), ("good_quality", "good_quality")} <= groups
    for group in groups:
        own = [one for one in found if (one["question"], one["label"]) == group]
        assert len(own) <= 20
        assert [one["differs"] for one in own] == sorted((one["differs"] for one in own), reverse=True)
        assert all(one["differs"] for one in own) == (group[0] == "topics")
    truth = [one for one in found if one["label"] == "truth"]
    assert len(truth) == 20


class Page(HTMLParser):
    def __init__(self, page: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_no_text_acts_on_the_page(categories, tmp_path):
    review.write(shown(categories), categories, tmp_path)
    page = Page((tmp_path / "labels.html").read_text())
    used = {tag for tag, _ in page.tags}
    assert used <= {"html", "meta", "title", "style", "h1", "h2", "p", "table", "tr", "th", "td", "div"}
    assert "<script>alert(1)" in page.text
    assert "\x00" not in page.text and "\u202e" not in page.text
    assert ("meta", {"http-equiv": "Content-Security-Policy", "content": review.POLICY}) in page.tags
    table = review.markdown(shown(categories))
    assert "<script" not in table and "](" not in table


def test_the_lines_to_edit_are_corrections_that_can_be_read(categories, tmp_path):
    found = shown(categories)
    review.write(found, categories, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "review.jsonl").read_text().splitlines()]
    assert {(line["source"], line["id"]) for line in lines} == {(one["source"], one["id"]) for one in found}
    assert read_corrections(tmp_path / "review.jsonl", categories)["rule"].null_count() == len(lines)


def test_nothing_to_show_is_a_page_too(categories, tmp_path):
    review.write([], categories, tmp_path)
    assert "Nothing was labelled." in (tmp_path / "labels.html").read_text()
    assert review.markdown([]) == "Nothing was labelled."
