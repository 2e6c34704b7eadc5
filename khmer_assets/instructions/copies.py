"""Chats that are nearly the same, and prompts that ask the same in other words.

Texts are compared as the corpus's are: by MinHash over runs of five characters, then by the exact Jaccard similarity.
Three things are different with chats, which are short and made of forms:

- A sentence that more than `FORM` chats have word for word (an instruction, "Can I help you?") is a form and says
  nothing of the chat; it is left out of the comparison.
- What is left must be long enough for the similarity to mean something. A word of five characters changes nine runs
  of a text, so one word makes a prompt of fewer than 81 characters another one at 0.8, and a chat of fewer than 162,
  where it stands in the question and in the answer. Shorter ones are copies when they are equal.
- Texts whose numbers differ are no copies: they are another sum.
"""

import re
from collections import Counter
from collections.abc import Sequence

import polars as pl

from khmer_assets.corpus.near_copies import NGRAM, PERMUTATIONS
from khmer_assets.khmer.numbers import to_latin_digits
from khmer_assets.khmer.sentences import sentences

SIMILAR = 0.8  # Jaccard similarity, as the corpus's default
FORM = 20  # chats
SHORTEST_CHAT, SHORTEST_PROMPT = 162, 81  # characters, white space aside
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


def own_words(texts: Sequence[str]) -> list[str]:
    """Each text without the sentences that are forms (of more than `FORM` texts)."""
    split = [list(sentences(text)) for text in texts]
    shared = Counter(sentence for text in split for sentence in set(text))
    return [" ".join(sentence for sentence in text if shared[sentence] <= FORM) for text in split]


def similar_pairs(texts: Sequence[str], shortest: int) -> list[tuple[int, int, float]]:
    """Places of the texts that are at least `SIMILAR` in their own words, the lower place first, and how similar."""
    if sum(_size(text) >= shortest for text in texts) < 2:
        return []
    from khmer_assets.corpus.minhash import candidate_pairs
    from khmer_assets.corpus.ngrams import Texts, jaccards, signatures

    own = [(place, text) for place, text in enumerate(own_words(texts)) if _size(text) >= shortest]
    compared = Texts.of(pl.Series([text for _, text in own], dtype=pl.String))
    first, second = candidate_pairs(signatures(compared, NGRAM, PERMUTATIONS), SIMILAR)
    found = zip(first.tolist(), second.tolist(), jaccards(compared, first, second, NGRAM).tolist(), strict=True)
    return [
        (own[one][0], own[other][0], similarity)
        for one, other, similarity in found
        if similarity >= SIMILAR and _numbers(own[one][1]) == _numbers(own[other][1])
    ]


def copies_of(texts: Sequence[str]) -> dict[int, tuple[int, float]]:
    """Chats that are copies: the place of each, with that of the chat which stays for it, and their similarity.

    The first of similar chats stays, and a chat is a copy of one that stays alone: no chain of copies loses what is
    not alike.
    """
    near: dict[int, list[tuple[float, int]]] = {}
    for first, second, similarity in similar_pairs(texts, SHORTEST_CHAT):
        near.setdefault(second, []).append((similarity, first))
    copies: dict[int, tuple[int, float]] = {}
    for place in sorted(near):
        staying = [(similarity, -other) for similarity, other in near[place] if other not in copies]
        if staying:
            similarity, other = max(staying)
            copies[place] = (-other, similarity)
    return copies


def clusters(prompts: Sequence[str]) -> list[int]:
    """For each prompt a number that it shares with those that ask the same: equal ones, and similar long ones."""
    cluster = list(range(len(prompts)))

    def root(place: int) -> int:
        while cluster[place] != place:
            cluster[place] = cluster[cluster[place]]
            place = cluster[place]
        return place

    first: dict[str, int] = {}
    for place, prompt in enumerate(prompts):
        cluster[place] = first.setdefault(prompt, place)
    for one, other, _ in similar_pairs(prompts, SHORTEST_PROMPT):
        low, high = sorted((root(one), root(other)))
        cluster[high] = low
    return [root(place) for place in range(len(prompts))]


def _size(text: str) -> int:
    return len("".join(text.split()))


def _numbers(text: str) -> list[str]:
    return _NUMBER.findall(to_latin_digits(text))
