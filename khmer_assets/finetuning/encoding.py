"""Chats -> token ids and labels, whatever the model's chat template: what the assistant says is learned, nothing else.

How examples are laid out for the model (rows, padding) does not belong here (`packing.py`).
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from khmer_assets.training.models import IGNORED

SHOWN = 3  # chats of each reason for which some were set aside
GENERATION_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")

TooLong = Literal["set aside", "truncate"]
Chat = list[dict[str, str]]


class Example(NamedTuple):
    """A chat as token ids; a label is the id where the assistant speaks and -100 elsewhere."""

    ids: list[int]
    labels: list[int]


class SetAside(NamedTuple):
    """A chat (by its number) that is not trained on."""

    number: int
    rule: str
    reason: str


@dataclass
class Encoded:
    """The chats that can be trained on, in their order, and what became of the others.

    `truncated`: examples that were cut, so that they have no end. `last_turn_only`: examples whose template shows
    earlier answers in another form than the one in which they are given, so that only the last is learned. `endless`:
    examples whose template ends the assistant's turn with no special token, from which a model hardly learns to stop.
    """

    examples: list[Example] = field(default_factory=list)
    set_aside: list[SetAside] = field(default_factory=list)
    truncated: int = 0
    last_turn_only: int = 0
    endless: int = 0

    def report(self, chats: Sequence[Chat]) -> dict[str, Any]:
        """Counts, and for each rule by which `chats` were set aside their number and the first few of them."""
        rules = {
            rule: {
                "chats": count,
                "examples": [
                    {"reason": aside.reason, "chat": " / ".join(m["content"] or "" for m in chats[aside.number])[:200]}
                    for aside in [aside for aside in self.set_aside if aside.rule == rule][:SHOWN]
                ],
            }
            for rule, count in Counter(aside.rule for aside in self.set_aside).most_common()
        }
        return {
            "chats": len(chats),
            "trained": len(self.examples),
            "truncated": self.truncated,
            "last_turn_only": self.last_turn_only,
            "endless": self.endless,
            "set_aside": rules,
        }


class _Unusable(Exception):
    """A chat that this template cannot be asked for; the message is (rule, reason)."""


def encode_chats(
    tokenizer: Any, chats: Sequence[Chat], context_length: int, too_long: TooLong = "set aside"
) -> Encoded:
    """The chats as `Example`s of at most `context_length` tokens, rendered by the tokenizer's own template.

    An answer's labels go on to the end of its turn, so that the model learns to stop. Answers are found by the
    template's generation marks where it has them, else by rendering the chat up to each answer. Set aside with
    their reason are chats without an answer, those for which the template raises, and those too long.
    """
    encoded = Encoded()
    marked = bool(GENERATION_MARKS.search(tokenizer.chat_template or ""))
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    for number, messages in enumerate(chats):
        try:
            if not any(message["role"] == "assistant" for message in messages):
                raise _Unusable("no_answer", "there is no message by assistant")
            found = _by_marks(tokenizer, messages, special) if marked else _by_prefixes(tokenizer, messages)
            (ids, labels), last_only = found
            learned = sum(label != IGNORED for label in labels)
            if not learned:
                raise _Unusable("no_answer", "the template shows nothing that the assistant says")
            if long := len(ids) > context_length:
                if too_long == "set aside":
                    raise _Unusable("too_long", f"{len(ids)} tokens, more than {context_length}")
                ids, labels = ids[:context_length], labels[:context_length]
                if all(label == IGNORED for label in labels):
                    raise _Unusable("too_long", f"its first answer begins after {context_length} tokens")
        except _Unusable as unusable:
            encoded.set_aside.append(SetAside(number, *unusable.args))
            continue
        encoded.examples.append(Example(ids, labels))
        encoded.truncated += long
        encoded.last_turn_only += last_only
        encoded.endless += not long and not special.intersection([label for label in labels if label != IGNORED][-2:])
    return encoded


def _render(tokenizer: Any, messages: Chat, **options: Any) -> Any:
    try:
        return tokenizer.apply_chat_template(messages, **{"tokenize": False, **options})
    except Exception as error:  # a template raises what it likes
        raise _Unusable("template", f"the chat template raises {type(error).__name__}: {error}"[:300]) from None


def _by_marks(tokenizer: Any, messages: Chat, special: set[int]) -> tuple[Example, bool]:
    rendered = _render(tokenizer, messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    ids, spoken = rendered["input_ids"], list(rendered["assistant_masks"])
    for end in range(1, len(ids)):
        # marks that leave out the end of the turn
        if spoken[end - 1] and not spoken[end] and ids[end] in special and not special.intersection(ids[end - 2 : end]):
            spoken[end] = 1
    return Example(ids, [i if said else IGNORED for i, said in zip(ids, spoken, strict=True)]), False


def _by_prefixes(tokenizer: Any, messages: Chat) -> tuple[Example, bool]:
    text = _render(tokenizer, messages)
    spans, rewritten = [], False
    answers = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
    for place in answers:
        before = _render(tokenizer, messages[:place], add_generation_prompt=True)
        if not text.startswith(before):
            # what opens an answer (empty thoughts, say) may not be what stands before one that was given
            before = text[: _common(before, text)]
            if len(before) < len(_render(tokenizer, messages[:place]).rstrip()):
                rewritten = True
                continue
        after = text if place == len(messages) - 1 else _render(tokenizer, messages[: place + 1])
        if not text.startswith(after := after.rstrip()):
            rewritten = True
            continue
        spans.append((len(before), len(after)))
    if rewritten:
        spans = [span for span in spans if span[1] == len(text.rstrip())]
        if not spans:
            raise _Unusable("template", "the chat template rewrites what stands before the last answer")
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    # a token belongs to what it begins in: the end of a turn may take the line break behind it along
    labels = [
        identity if any(start <= begin < stop for start, stop in spans) else IGNORED
        for identity, (begin, _) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    ]
    return Example(encoded["input_ids"], labels), rewritten


def _common(a: str, b: str) -> int:
    """How many characters are the same at the beginning of both."""
    return next((place for place, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
