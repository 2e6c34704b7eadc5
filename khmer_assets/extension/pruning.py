"""Takes tokens away that neither language needs: small open models spend a quarter of their weights on a vocabulary.

By leaf frequency (Purason et al. 2025, "Teaching Old Tokenizers New Words"): of the tokens that nothing is built on,
the one that the text needs least goes first, and what it was made of is needed so much more often. Bytes stay, so that
no text is unknown, and so do added tokens and what was learned for Khmer. What is left moves up, in its order.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from heapq import heapify, heappop, heappush
from typing import Any

from khmer_assets.foundation.workers import chunks

TEXTS_AT_ONCE = 256


def needs(content: dict[str, Any], texts: Iterable[str]) -> Counter[str]:
    """How often the texts need each token of a `tokenizer.json`."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(json.dumps(content))
    counts: Counter[int] = Counter()
    for some in chunks(texts, TEXTS_AT_ONCE):
        for encoded in tokenizer.encode_batch(some, add_special_tokens=False):
            counts.update(encoded.ids)
    return Counter({str(tokenizer.id_to_token(identity)): count for identity, count in counts.items()})


def parts_of(merge: str | list[str]) -> list[str]:
    """The two tokens that a merge of a `tokenizer.json` joins, in either way to write it."""
    return merge.split(" ") if isinstance(merge, str) else merge


def prune(content: dict[str, Any], needed: Counter[str], number: int, first_new: int) -> list[str]:
    """Take `number` tokens with an id below `first_new` out of a `tokenizer.json`; those tokens, which are fewer where
    no more can go. `needed`: how often each is."""
    model = content["model"]
    merges = list(map(parts_of, model["merges"]))
    made_of: dict[str, list[list[str]]] = defaultdict(list)
    for parts in merges:
        made_of["".join(parts)].append(parts)
    built_on = Counter(part for parts in merges for part in parts)
    added = {token["content"] for token in content["added_tokens"]}
    counts = Counter(needed)

    def may_go(token: str) -> bool:
        identity = model["vocab"][token]
        return identity < first_new and len(token) > 1 and token not in added and not built_on[token]

    # of those that are needed as often, what the base learned last goes first
    leaves = [(counts[token], -identity, token) for token, identity in model["vocab"].items() if may_go(token)]
    heapify(leaves)
    gone: dict[str, None] = {}
    while leaves and len(gone) < number:
        _, _, token = heappop(leaves)
        gone[token] = None
        for place, parts in enumerate(made_of[token]):
            for part in parts:
                built_on[part] -= 1
                counts[part] += counts[token] if place == 0 else 0
        for part in {part for parts in made_of[token] for part in parts}:
            if may_go(part):
                heappush(leaves, (counts[part], -model["vocab"][part], part))
    model["merges"] = [
        written for written, parts in zip(model["merges"], merges, strict=True) if "".join(parts) not in gone
    ]
    kept = sorted((identity, token) for token, identity in model["vocab"].items() if token not in gone)
    _renumber(content, {token: place for place, (_, token) in enumerate(kept)})
    return list(gone)


def _renumber(content: dict[str, Any], vocabulary: dict[str, int]) -> None:
    """Give the tokens the ids of `vocabulary`, wherever a `tokenizer.json` names ids."""
    content["model"]["vocab"] = vocabulary
    for token in content["added_tokens"]:
        token["id"] = vocabulary[token["content"]]
    steps = (content["post_processor"] or {}).get("processors", [content["post_processor"] or {}])
    for step in steps:
        for special in step.get("special_tokens", {}).values():  # of a template such as Llama 3's
            special["ids"] = [vocabulary[token] for token in special["tokens"]]
