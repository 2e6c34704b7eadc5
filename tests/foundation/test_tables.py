"""A Markdown table shows whatever text there is."""

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from khmer_assets.foundation.tables import markdown_table


@given(st.lists(st.text(), min_size=1))
def test_a_table_survives_any_text(values):
    table = markdown_table(pl.DataFrame({"text": values}, strict=False))
    lines = table.split("\n")
    assert len(lines) == len(values) + 2
    assert all(line.count("|") == 2 and "<" not in line for line in lines)
