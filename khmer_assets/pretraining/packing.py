"""Packs the mixture's documents into one stream of token ids, from which training cuts its sequences.

Every document is followed by the end-of-text token, so that the model learns where texts end. Documents are encoded in
the mixture's order and then shuffled on disk, so that the memory is some 50 bytes a document.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from pydantic import BaseModel

from khmer_assets.foundation.workers import chunks
from khmer_assets.training.models import end_of_text_id
from resources.payload import PayloadRun, Refusal

DOCUMENTS_A_BATCH = 1_000


class Spec(BaseModel):
    """Folders of training_mixture and tokenizer; the order of the documents is shuffled by `seed`."""

    mixture: Path
    tokenizer: Path
    context_length: int
    seed: int


def main(spec: Spec, run: PayloadRun) -> dict[str, Any]:
    """Write `train.bin` (little-endian uint32 token ids) and `packed.json` with the counts by language."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(spec.tokenizer)
    end = end_of_text_id(tokenizer)
    documents = pl.scan_parquet(spec.mixture / "data.parquet").filter(pl.col("split") == "train")
    parts = documents.select("text", "language", "copies").collect_batches(
        chunk_size=DOCUMENTS_A_BATCH, maintain_order=True
    )
    lengths, languages, copies = [np.empty(0, np.int64)], [pl.Series(dtype=pl.String)], [np.empty(0, np.int64)]
    in_order, seen = run.state / "tokens.bin", 0
    with in_order.open("wb") as stream:
        for batch in parts:
            for texts in chunks(batch["text"], DOCUMENTS_A_BATCH, len):
                encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
                lengths.append(np.array([len(ids) + 1 for ids in encoded]))
                stream.write(np.concatenate([np.asarray([*ids, end], dtype="<u4") for ids in encoded]).tobytes())
            languages.append(batch["language"])
            copies.append(batch["copies"].to_numpy().astype(np.int64))
            seen += batch.height
            run.log(f"encoded {seen:,} documents")
    length, language = np.concatenate(lengths), pl.concat(languages)
    begins = np.cumsum(length) - length
    # each document as often as the mixture repeats it, the copies apart from one another
    places = pl.DataFrame({"place": np.repeat(np.arange(length.size), np.concatenate(copies))})
    shuffled = places.sample(fraction=1, shuffle=True, seed=spec.seed)["place"]
    tokens: dict[str, int] = {}
    with in_order.open("rb") as encoded_documents, (run.output / "train.bin").open("wb") as stream:
        for place in shuffled:
            stream.write(os.pread(encoded_documents.fileno(), 4 * length[place], 4 * begins[place]))
            tokens[language[place]] = tokens.get(language[place], 0) + int(length[place])
    in_order.unlink()
    total = sum(tokens.values())
    if total < spec.context_length:
        raise Refusal(
            f"the training text has {total} tokens, not even one sequence of {spec.context_length}; add text to the "
            "catalogue or lower pretraining.context_length"
        )
    figures = {"tokens": total, "sequences": total // spec.context_length, "documents": len(shuffled)}
    (run.output / "packed.json").write_text(json.dumps({**figures, "tokens_by_language": tokens}))
    return {**figures, **{f"tokens_{language}": count for language, count in sorted(tokens.items())}}


class PackedSequences:
    """The training sequences in a shuffled order that depends on the seed and the epoch alone.

    So batch `step` is the same however often training was stopped before it.
    """

    def __init__(self, stream: np.ndarray, context_length: int, batch_size: int, seed: int):
        self.stream = stream
        self.context_length = context_length
        self.batch_size = batch_size
        self.seed = seed
        self.sequences = len(stream) // context_length
        self._epoch = -1
        self._order = np.empty(0, dtype=np.int64)

    def batch(self, step: int) -> np.ndarray:
        """Token ids of shape (batch_size, context_length); transformers shifts the labels by itself."""
        rows = []
        for position in range(step * self.batch_size, (step + 1) * self.batch_size):
            epoch, index = divmod(position, self.sequences)
            if epoch != self._epoch:
                self._epoch = epoch
                self._order = np.random.default_rng((self.seed, epoch)).permutation(self.sequences)
            start = self._order[index] * self.context_length
            rows.append(self.stream[start : start + self.context_length])
        return np.stack(rows).astype(np.int64)


def open_stream(packed: Path) -> np.ndarray:
    """The token stream of a packed dataset, mapped into memory."""
    return np.memmap(packed / "train.bin", dtype="<u4", mode="r")
