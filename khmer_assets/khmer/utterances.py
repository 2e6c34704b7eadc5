"""What is said, whatever its spelling: utterances that differ in case, spaces and final marks alone are one."""

import hashlib
import json
from collections.abc import Iterable

FINAL_MARKS = " .?!\u17d4"  # U+17D4 ends a Khmer sentence


def bare(text: str) -> str:
    """What makes no difference taken away: case, spaces beside one, and the marks that end an utterance.

    >>> bare("Hello  THERE !")
    'hello there'
    """
    return " ".join(text.casefold().split()).rstrip(FINAL_MARKS)


def hash_of_conversation(said: Iterable[tuple[str, str]]) -> str:
    """SHA-256 of who says what, in turn. Case, spaces and the marks that end an utterance make no difference.

    >>> hash_of_conversation([("user", "Hello !")]) == hash_of_conversation([("user", "hello")])
    True
    """
    turns = [(who, bare(text)) for who, text in said]
    return hashlib.sha256(json.dumps(turns, ensure_ascii=False).encode()).hexdigest()
