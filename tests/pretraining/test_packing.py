"""Packing: every token once an epoch, in an order that depends on the seed and the epoch alone."""

from itertools import groupby

import numpy as np
import polars as pl
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from khmer_assets.pretraining import packing
from khmer_assets.pretraining.packing import PackedSequences
from khmer_assets.training.models import end_of_text_id
from resources.payload import PayloadRun


@given(tokens=st.integers(8, 300), batch_size=st.integers(1, 5), seed=st.integers(0, 9))
def test_an_epoch_sees_every_sequence_once(tokens, batch_size, seed):
    packed = PackedSequences(np.arange(tokens, dtype=np.uint32), 8, batch_size, seed)
    rows = np.concatenate([packed.batch(step) for step in range(packed.sequences)])  # batch_size epochs
    first_tokens = sorted(rows[:, 0])
    assert first_tokens == sorted([8 * i for i in range(packed.sequences)] * batch_size)


def test_a_batch_is_the_same_whichever_batches_came_before_it():
    stream = np.arange(100, dtype=np.uint32)
    one_after_the_other = PackedSequences(stream, 8, 3, seed=4)
    batches = [one_after_the_other.batch(step) for step in range(10)]
    assert np.array_equal(PackedSequences(stream, 8, 3, seed=4).batch(7), batches[7])
    assert not np.array_equal(PackedSequences(stream, 8, 3, seed=5).batch(7), batches[7])


def test_a_batch_is_made_of_runs_of_the_stream():
    batch = PackedSequences(np.arange(100, dtype=np.uint32), 8, 2, seed=1).batch(0)
    assert batch.shape == (2, 8)
    assert np.array_equal(batch - batch[:, :1], [range(8)] * 2)


def test_documents_are_packed_as_often_as_the_mixture_repeats_them_in_another_order(model, mixture, tmp_path):
    rows = pl.read_parquet(mixture / "data.parquet").filter(split="train").with_columns(copies=pl.lit(3))
    rows.write_parquet(tmp_path / "data.parquet")
    streams = []
    for seed in (1, 1, 2):
        run = PayloadRun(tmp_path / "work")
        figures = packing.main(packing.Spec(mixture=tmp_path, tokenizer=model, context_length=16, seed=seed), run)
        assert figures["documents"] == 3 * rows.height
        streams.append(packing.open_stream(run.output).tolist())
        assert list(run.state.iterdir()) == []
    tokenizer = AutoTokenizer.from_pretrained(model)
    end = end_of_text_id(tokenizer)
    documents = [list(ids) for is_end, ids in groupby(streams[0], lambda identity: identity == end) if not is_end]
    encoded = tokenizer(rows["text"].to_list(), add_special_tokens=False)["input_ids"]
    assert sorted(documents) == sorted(3 * encoded)
    assert streams[0] == streams[1] != streams[2]
