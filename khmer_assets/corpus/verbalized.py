"""Sentences twice, as they are written and as they are spoken: what speech and number-aware models learn from."""

import polars as pl

from khmer_assets.khmer.verbalization import verbalized_sentences
from khmer_assets.sources.documents import SET_ASIDE

# `document`: the id of the document that the sentence is in. `spoken`: the sentence with its numbers in words.
VERBALIZED = pl.Schema({"document": pl.String, "source": pl.String, "written": pl.String, "spoken": pl.String})


def verbalize_batch(batch: pl.DataFrame) -> pl.DataFrame:
    """The Khmer documents' sentences that hold digits, with the columns of `VERBALIZED` and rule, measure and reason.

    Sentences whose numbers have no certain words are set aside by the rules of `khmer_assets.khmer.verbalization`.
    """
    khmer = batch.filter(language="khm")
    rows = [
        (document, source, found.written, found.spoken, found.rule, None, found.reason)
        for document, source, text in khmer.select("id", "source", "text").iter_rows()
        for found in verbalized_sentences(text)
    ]
    return pl.DataFrame(rows, schema={**VERBALIZED, **SET_ASIDE}, orient="row")
