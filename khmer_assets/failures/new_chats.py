"""Chats that are about what the model got wrong, from the recipe's sources of chats; none that is held out, or close.

For each failure that is learned from, the nearest chats are taken in turn until its cluster has as many as the recipe
asks for. A chat is set aside as `held_out` whose prompt is that of a held-out chat, of a prompt of the evaluation or
of any failure, or whose similarity to one (Jaccard, of runs of five characters) reaches `SIMILAR`: what measures is
not learned.
"""

from collections.abc import Sequence

import numpy as np
import polars as pl

from khmer_assets.corpus.near_copies import NGRAM, PERMUTATIONS
from khmer_assets.corpus.semantic import SemanticSearch, embed_documents
from khmer_assets.failures.clusters import LEARNED
from khmer_assets.instructions.chats import prompt_of
from khmer_assets.sources.documents import SET_ASIDE

SIMILAR = 0.8
REACH = 200  # candidates that are looked at for a failure


def prompts_of(chats: pl.DataFrame) -> list[str]:
    """What the user says in each chat."""
    return [prompt_of(messages) for messages in chats["messages"].to_list()]


def without_held_out(chats: pl.DataFrame, held_out: Sequence[str]) -> pl.DataFrame:
    """The chats with rule, measure and reason; `held_out` are prompts as `prompt_of` gives them."""
    prompts = prompts_of(chats)
    known = set(held_out)
    close = [1.0 if prompt in known else 0.0 for prompt in prompts]
    for place, similarity in _similar(prompts, list(known)):
        close[place] = max(close[place], similarity)
    aside = [one >= SIMILAR for one in close]
    return chats.with_columns(
        rule=pl.Series(["held_out" if one else None for one in aside], dtype=SET_ASIDE["rule"]),
        measure=pl.Series([size if one else None for one, size in zip(aside, close, strict=True)],
                          dtype=SET_ASIDE["measure"]),
        reason=pl.Series(["its prompt is held out, or nearly so" if one else None for one in aside],
                         dtype=SET_ASIDE["reason"]),
    )  # fmt: skip


def _similar(prompts: list[str], held_out: list[str]) -> list[tuple[int, float]]:
    """Places of the prompts that may be near one of the held-out ones, with their similarity."""
    if not prompts or not held_out:
        return []
    from khmer_assets.corpus.minhash import SignatureIndex
    from khmer_assets.corpus.ngrams import Texts, jaccards, signatures

    held, new = pl.Series(held_out, dtype=pl.String), pl.Series(prompts, dtype=pl.String)
    index = SignatureIndex(signatures(Texts.of(held), NGRAM, PERMUTATIONS), SIMILAR)
    known, places = index.candidates(signatures(Texts.of(new), NGRAM, PERMUTATIONS))
    both = Texts.of(pl.concat([held.gather(known), new.gather(places)]))
    order = np.arange(known.size)
    return list(zip(places.tolist(), jaccards(both, order, order + known.size, NGRAM).tolist(), strict=True))


def nearest_chats(failures: pl.DataFrame, chats: pl.DataFrame, count: int, settings: SemanticSearch) -> pl.DataFrame:
    """`count` of the chats for each cluster, at most, each once, with the `cluster` that it was taken for.

    `failures` as `clusters.clustered` gives them. The failures of a cluster take turns, each its next nearest chat.
    """
    steering = failures.filter(part=LEARNED)
    if steering.is_empty() or chats.is_empty():
        return chats.clear().with_columns(cluster=pl.lit(None, pl.Int64))
    of_chats = embed_documents(prompts_of(chats), settings)
    of_failures = embed_documents(steering["prompt"].to_list(), settings)
    similar = of_failures @ of_chats.T
    order = np.argsort(-similar, axis=1, kind="stable")[:, : max(REACH, count)]
    taken: dict[int, int] = {}  # the cluster by the chat's place
    clusters = steering["cluster"].to_numpy()
    for cluster in np.unique(clusters):
        mine = order[clusters == cluster]
        left = count
        for place in mine.T.ravel():  # the nearest of each failure, then the next of each
            if left and int(place) not in taken:
                taken[int(place)] = int(cluster)
                left -= 1
    places = sorted(taken)
    return chats[places].with_columns(cluster=pl.Series([taken[place] for place in places], dtype=pl.Int64))
