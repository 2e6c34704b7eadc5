"""Held-out texts that were as good as trained on: those that have a near-copy among the training texts.

Whoever splits texts by a hash of their content parts a text from the same one with a word changed. Both sides are
compared by MinHash, with the training texts read a batch at a time, so that the memory is that of the held-out ones.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import polars as pl

from khmer_assets.foundation.workers import cores, in_order

NGRAM = 5  # characters
PERMUTATIONS = 128
ROWS_AT_ONCE = 5_000

COPIES = pl.Schema({"id": pl.String, "copy_of": pl.String, "similarity": pl.Float64})


def near_copies(held_out: pl.LazyFrame, train: pl.LazyFrame, jaccard: float) -> pl.DataFrame:
    """The held-out texts whose character n-grams reach the Jaccard similarity `jaccard` (0 to 1) with those of a
    training text: id, the nearest one's id in `copy_of`, and the similarity. Both frames have id and text."""
    from khmer_assets.corpus.minhash import SignatureIndex
    from khmer_assets.corpus.ngrams import Texts, jaccards, signatures

    held = held_out.select("id", "text").collect()
    index = SignatureIndex(signatures(Texts.of(held["text"]), NGRAM, PERMUTATIONS), jaccard)

    def compare(batch: pl.DataFrame) -> pl.DataFrame:
        known, new = index.candidates(signatures(Texts.of(batch["text"]), NGRAM, PERMUTATIONS))
        pairs = pl.DataFrame({"id": held["id"].gather(known), "copy_of": batch["id"].gather(new)})
        both = Texts.of(pl.concat([held["text"].gather(known), batch["text"].gather(new)]))
        places = np.arange(known.size)
        similarity = jaccards(both, places, places + known.size, NGRAM)
        return pairs.with_columns(similarity=pl.Series(similarity, dtype=pl.Float64)).cast(COPIES)

    batches = train.select("id", "text").collect_batches(chunk_size=ROWS_AT_ONCE)
    with ThreadPoolExecutor(cores()) as threads:
        found = pl.concat([COPIES.to_frame(), *in_order(lambda batch: threads.submit(compare, batch), batches)])
    alike = found.filter(pl.col("similarity") >= jaccard)
    return alike.sort("similarity", "id", "copy_of", descending=[True, False, False]).unique(
        "id", keep="first", maintain_order=True
    )
