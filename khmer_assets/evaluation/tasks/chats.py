"""The held-out chats: the last answer of each, against what was expected. Words are those of `khmer/words.py`, for
Khmer writes no spaces between them."""

from collections.abc import Mapping, Sequence
from typing import Any

from khmer_assets.evaluation.engines import Engine, Question
from khmer_assets.evaluation.examination import Answer
from khmer_assets.evaluation.measures import Measure, mean_of
from khmer_assets.evaluation.tasks import translation
from khmer_assets.finetuning.encoding import encode_chats
from khmer_assets.khmer.utterances import hash_of_conversation
from khmer_assets.training.models import IGNORED

TASK = "chats"
LONGEST = 2_000  # words of a text that are compared; the time grows with the square

Chat = list[dict[str, str]]


def identity_of(chat: Chat) -> str:
    """The same for the same chat in whatever order they come."""
    return hash_of_conversation((message["role"], message["content"]) for message in chat)[:12]


def measures(chats: Mapping[str, Chat], answers: Mapping[str, Answer]) -> list[Measure]:
    """chrF++, ROUGE-L and exact match, for chats and answers by id. A chat that was too long has an empty answer."""
    from khmer_assets.khmer.words import words  # brings numba

    said = {identity: answer.text for identity, answer in answers.items()}
    wanted = {identity: chat[-1]["content"].strip() for identity, chat in chats.items()}
    rouge = {identity: rouge_l(words(said[identity]), words(wanted[identity])) for identity in said}
    exact = {identity: float(said[identity] == wanted[identity]) for identity in said}
    return [
        translation.chrf(TASK, said, wanted),
        mean_of(TASK, "ROUGE-L", rouge, scale=100, note="F1 over Khmer words"),
        mean_of(TASK, "exact match", exact, scale=100),
    ]


def loss(engine: Engine, tokenizer: Any, chats: Mapping[str, Chat]) -> tuple[Measure | None, int]:
    """Nats a token of the last answers, its end included, and how many chats are longer than the context (those are
    left out); nothing where the tokenizer has no chat template, or no chat is left."""
    if not tokenizer.chat_template:
        return None, 0
    encoded = encode_chats(tokenizer, list(chats.values()), engine.context_length)
    aside = {one.number for one in encoded.set_aside}
    identities = [identity for number, identity in enumerate(chats) if number not in aside]
    questions = []
    for ids, labels in encoded.examples:
        end = max(place for place, label in enumerate(labels) if label != IGNORED) + 1
        start = end
        while start and labels[start - 1] != IGNORED:
            start -= 1
        questions.append(Question(ids[:start], [ids[start:end]]))
    sums = {
        identity: [-likelihood, float(len(question.choices[0]))]
        for identity, question, (likelihood,) in zip(identities, questions, engine.likelihoods(questions), strict=True)
    }
    too_long = sum(one.rule == "too_long" for one in encoded.set_aside)
    return (Measure(TASK, "loss a token", "ratio", sums, higher_is_better=False) if sums else None), too_long


def rouge_l(said: Sequence[str], wanted: Sequence[str]) -> float:
    """F1 of the longest common subsequence (Lin 2004). Two texts without a word are alike."""
    said, wanted = said[:LONGEST], wanted[:LONGEST]
    if not said or not wanted:
        return float(not said and not wanted)
    lengths = [0] * (len(wanted) + 1)
    for word in said:
        before = 0
        for place, other in enumerate(wanted, 1):
            above = lengths[place]
            lengths[place] = before + 1 if word == other else max(above, lengths[place - 1])
            before = above
    return 2 * lengths[-1] / (len(said) + len(wanted))
