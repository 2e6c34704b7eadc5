"""A Markdown table shows whatever text there is, and nothing in the text is markup."""

import html
import re

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from khmer_assets.foundation.tables import markdown_table


@given(st.lists(st.text(), min_size=1))
def test_a_table_survives_any_text(values):
    table = markdown_table(pl.DataFrame({"text": values}, strict=False))
    lines = table.split("\n")
    assert len(lines) == len(values) + 2
    assert all(line.count("|") == 2 and "<" not in line for line in lines)


@pytest.mark.parametrize(
    "text",
    [
        "![x](https://example.org/seen.png)",
        "[ចុច](https://example.org)",
        "![x][1]",
        "[1]: https://example.org",
        "<img src=https://example.org/seen.png>",
        "<https://example.org>",
        "\\[x](https://example.org) \\![x](y) `z` \\",
    ],
)
def test_text_is_shown_as_it_is_and_asks_for_nothing(text):
    table = markdown_table(pl.DataFrame({text: [text]}))
    page = MarkdownIt("commonmark").enable("table").render(table)
    assert set(re.findall(r"<(\w+)", page)) == {"table", "thead", "tbody", "tr", "th", "td"}
    assert [html.unescape(shown) for shown in re.findall(r"<t[hd]>(.*)</t[hd]>", page)] == [text, text]
