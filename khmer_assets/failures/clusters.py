"""Groups failures by what they are about: k-means (Lloyd 1957, seeded as by Arthur and Vassilvitskii 2007) of their
prompts' embeddings, with the number of clusters by the mean silhouette (Rousseeuw 1987)."""

import hashlib
from collections import Counter
from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from khmer_assets.corpus.semantic import SemanticSearch, embed_documents
from khmer_assets.instructions.chats import prompt_of
from khmer_assets.instructions.copies import clusters as copies

FEWEST, MOST = 4, 10  # clusters
ROUNDS, STARTS = 50, 4  # of k-means
COMPARED = 2_000  # failures, for silhouettes: their time grows with the square
EXAMPLES = 3
NAME_WORDS = 3
LEARNED, MEASURED = "learned", "measured"  # parts

Vectors = NDArray[np.float32]
Labels = NDArray[np.int64]


def clustered(failures: pl.DataFrame, settings: SemanticSearch, seed: int) -> pl.DataFrame:
    """The failures with `cluster` (0 ..), `name`, `closeness` (cosine to the cluster's center) and `part`.

    Half of the failures are `learned` from: they decide what the clusters are and which chats are looked for. The
    others are `measured` with, so that what is gained is told by prompts that had no say; those that ask the same are
    in one part. Raises `ValueError` with fewer than two that are learned from.
    """
    part = parts(failures)
    if part.count(LEARNED) < 2:
        raise ValueError(f"{failures.height} failures are too few to be told apart; evaluate more, or be content")
    vectors = embed_documents(failures["prompt"].to_list(), settings)
    centers = best_centers(vectors[np.array([one == LEARNED for one in part])], seed)
    similar = vectors @ centers.T
    label = similar.argmax(axis=1)
    rows = failures.with_columns(
        cluster=pl.Series(label, dtype=pl.Int64),
        closeness=pl.Series(similar.max(axis=1), dtype=pl.Float64),
        part=pl.Series(part, dtype=pl.String),
    )
    names = names_of(rows)
    return rows.with_columns(name=pl.col("cluster").replace_strict(names, return_dtype=pl.String))


def centers_of(rows: pl.DataFrame, settings: SemanticSearch) -> tuple[list[int], Vectors]:
    """The clusters that something is learned from, and their centers, a row of length 1 a cluster."""
    learned = rows.filter(part=LEARNED)
    vectors, label = embed_documents(learned["prompt"].to_list(), settings), learned["cluster"].to_numpy()
    present = sorted(set(label.tolist()))
    return present, _of_length_one(np.array([vectors[label == one].mean(axis=0) for one in present]))


def _of_length_one(vectors: NDArray[np.floating]) -> Vectors:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(lengths == 0, 1, lengths)).astype(np.float32)


def parts(failures: pl.DataFrame) -> list[str]:
    """The part of each failure, by the hash of what it asks."""
    prompts = [prompt_of(messages) for messages in failures["messages"].to_list()]
    return [
        LEARNED if int(hashlib.sha256(prompts[first].encode()).hexdigest()[:8], 16) % 2 else MEASURED
        for first in copies(prompts)
    ]


def best_centers(vectors: Vectors, seed: int) -> Vectors:
    """The centers of the number of clusters with the largest silhouette; few failures have as many as there can be."""
    generator = np.random.default_rng(seed)
    sample = vectors[generator.permutation(len(vectors))[:COMPARED]]
    different = len(np.unique(vectors, axis=0))
    best: tuple[float, Vectors] | None = None
    for count in range(min(FEWEST, different), min(MOST, different) + 1):
        centers = k_means(vectors, count, generator)
        score = silhouette(sample, (sample @ centers.T).argmax(axis=1))
        if best is None or score > best[0]:
            best = score, centers
    assert best is not None, "there are vectors"
    return best[1]


def k_means(vectors: Vectors, count: int, generator: np.random.Generator) -> Vectors:
    """Centers of length 1 with the largest sum of cosines, of a few starts."""
    found = [_k_means(vectors, count, generator) for _ in range(STARTS)]
    return max(found, key=lambda centers: float((vectors @ centers.T).max(axis=1).sum()))


def _k_means(vectors: Vectors, count: int, generator: np.random.Generator) -> Vectors:
    centers = vectors[[int(generator.integers(len(vectors)))]]
    while len(centers) < count:
        far = np.clip(1 - (vectors @ centers.T).max(axis=1), 0, None) ** 2
        odds = far / far.sum() if far.sum() > 0 else None
        centers = np.vstack([centers, vectors[int(generator.choice(len(vectors), p=odds))]])
    label = np.full(len(vectors), -1)
    for _ in range(ROUNDS):
        former, label = label, (vectors @ centers.T).argmax(axis=1)
        if (former == label).all():
            break
        means = np.array([vectors[label == one].mean(axis=0) if (label == one).any() else centers[one]
                          for one in range(count)])  # fmt: skip
        centers = _of_length_one(means)
    return centers


def silhouette(vectors: Vectors, label: Labels) -> float:
    """The mean of (b - a) / max(a, b): a is the mean cosine distance to the own cluster, b to the nearest other one.

    One that is alone in its cluster counts 0. -1 where all are in one cluster.
    """
    present = np.unique(label)
    if len(present) < 2:
        return -1.0
    distances = 1 - vectors @ vectors.T
    sums = np.stack([distances[:, label == one].sum(axis=1) for one in present], axis=1)
    sizes = np.array([(label == one).sum() for one in present])
    place = np.searchsorted(present, label)
    rows = np.arange(len(vectors))
    alone = sizes[place] == 1
    own = sums[rows, place] / np.maximum(1, sizes[place] - 1)
    others = sums / sizes
    others[rows, place] = np.inf
    nearest = others.min(axis=1)
    scale = np.maximum(own, nearest)
    scores = np.where(alone | (scale <= 0), 0.0, (nearest - own) / np.where(scale <= 0, 1, scale))
    return float(scores.mean())


def names_of(rows: pl.DataFrame) -> dict[int, str]:
    """A name for each cluster: the words that most set its prompts apart from the others'."""
    from khmer_assets.khmer.words import words  # compiles

    said = {
        int(cluster): Counter(
            word for prompt in prompts for word in {w.casefold() for w in words(prompt)} if _is_word(word)
        )
        for cluster, prompts in rows.group_by("cluster").agg("prompt").iter_rows()
    }
    everywhere: Counter[str] = Counter()
    for counted in said.values():
        everywhere.update(counted)
    names = {}
    for cluster, counted in said.items():
        ordered = sorted(counted, key=lambda word: (-(counted[word] ** 2) / everywhere[word], word))
        names[cluster] = " ".join(ordered[:NAME_WORDS]) or f"cluster {cluster}"
    return names


def _is_word(word: str) -> bool:
    return len(word) > 1 and any(character.isalpha() for character in word)


def told(rows: pl.DataFrame) -> pl.DataFrame:
    """A row a cluster, for people: its name, how many failures of which part and origin, and the nearest examples."""
    nearest = rows.sort("closeness", descending=True).group_by("cluster", maintain_order=True)
    examples = nearest.agg(pl.col("prompt").head(EXAMPLES).str.slice(0, 80).str.join(" / ").alias("nearest examples"))
    return (
        rows.group_by("cluster", "name")
        .agg(
            pl.len().alias("failures"),
            (pl.col("part") == LEARNED).sum().alias("learned from"),
            (pl.col("part") == MEASURED).sum().alias("measured with"),
            pl.col("origin").unique().sort().str.join(", ").alias("origins"),
        )
        .join(examples, on="cluster")
        .sort("cluster")
    )


def cluster_of(texts: Sequence[str], rows: pl.DataFrame, settings: SemanticSearch) -> list[int]:
    """The nearest cluster of each text, of those of the clustered failures `rows`."""
    present, centers = centers_of(rows, settings)
    if not texts:
        return []
    return [present[place] for place in (embed_documents(list(texts), settings) @ centers.T).argmax(axis=1)]
