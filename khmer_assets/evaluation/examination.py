"""Asks a model in words: items with choices, and chats to be answered, many at a time. Greedy, whatever the model's
own generation settings are. A model behind a server is asked in `remote.py`."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from khmer_assets.evaluation.engines import Engine, Question
from khmer_assets.evaluation.items import Item

Messages = Sequence[dict[str, str]]


@dataclass(frozen=True)
class Answer:
    """What a chat was answered: `tokens` generated, and the mean of their log-likelihoods (nats; 0 without any).
    `too_long`: the prompt left no room for an answer."""

    text: str
    tokens: int
    mean_likelihood: float
    too_long: bool


class Examiner(ABC):
    """Whoever can be asked. `can_score`: whether the likelihood of what it has not said is told."""

    can_score = True

    @abstractmethod
    def answers(self, chats: Sequence[Messages]) -> list[Answer]:
        """The answer to the last message of each chat."""

    @abstractmethod
    def picks(self, items: Sequence[Item]) -> tuple[list[list[float]], int]:
        """The log-likelihood of each choice of the items, and how many items did not fit into the context."""

    def asked(self, prompts: Sequence[str]) -> list[Answer]:
        """The answers to prompts of a user."""
        return self.answers([[{"role": "user", "content": prompt}] for prompt in prompts])

    def mistakes(self, chats: Sequence[Messages]) -> list[dict[str, str]]:
        """Prompt, expected and given answer of the chats whose last message is not given exactly."""
        return [
            {"prompt": chat[-2]["content"], "expected": chat[-1]["content"], "answer": given.text}
            for chat, given in zip(chats, self.answers([chat[:-1] for chat in chats]), strict=True)
            if given.text != chat[-1]["content"].strip()
        ]


class Examination(Examiner):
    """Asks an engine. `stops` are the ids that end an answer; by default the tokenizer's end of a turn."""

    def __init__(self, engine: Engine, tokenizer: Any, max_new_tokens: int, stops: set[int] | None = None):
        self.engine = engine
        self.tokenizer = tokenizer
        self.max_new_tokens = max_new_tokens
        self.stops = stops_of(None, tokenizer) if stops is None else stops

    def answers(self, chats: Sequence[Messages]) -> list[Answer]:
        prompts = [self._prompt(messages) for messages in chats]
        found = self.engine.generate(prompts, self.stops, self.max_new_tokens)
        return [
            Answer(
                str(self.tokenizer.decode(one.ids, skip_special_tokens=True)).strip(),
                len(one.ids),
                -sum(one.nats) / len(one.nats) if one.nats else 0.0,
                len(prompt) >= self.engine.context_length,
            )
            for prompt, one in zip(prompts, found, strict=True)
        ]

    def picks(self, items: Sequence[Item]) -> tuple[list[list[float]], int]:
        questions = self.questions(items)
        truncated = sum(self.engine.is_truncated(question) for question in questions)
        return self.engine.likelihoods(questions), truncated

    def questions(self, items: Sequence[Item]) -> list[Question]:
        """The items as token ids. Where a choice ends and begins is told by encoding both together, as EleutherAI's
        harness does."""
        pairs = [(item.prompt, f" {choice}") for item in items for choice in item.choices]
        contexts = dict.fromkeys(context for context, _ in pairs)
        ids = dict(zip(contexts, self._encoded(list(contexts)), strict=True))
        whole = self._encoded([context + choice for context, choice in pairs])
        choices = iter(
            together[len(ids[context]) :] or self._encoded([choice])[0]
            for (context, choice), together in zip(pairs, whole, strict=True)
        )
        return [Question(ids[item.prompt], [next(choices) for _ in item.choices]) for item in items]

    def _encoded(self, texts: list[str]) -> list[list[int]]:
        found: list[list[int]] = self.tokenizer(texts)["input_ids"] if texts else []
        return found

    def _prompt(self, messages: Messages) -> list[int]:
        if self.tokenizer.chat_template:
            text = self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
            ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            return ids
        return self._encoded(["\n".join(message["content"] for message in messages) + "\n"])[0]


def stops_of(model: Any, tokenizer: Any) -> set[int]:
    """The ids with which a model ends an answer: the tokenizer's and, of one in transformers, its configuration's; none
    where nothing names any, and answers are as long as they may be."""
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    listed = named if isinstance(named, list) else [named]
    return {int(identity) for identity in [tokenizer.eos_token_id, *listed] if identity is not None}
