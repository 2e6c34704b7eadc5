"""Trains the router: held-out chats of the model and of its adapters, answered by all of them, and learned from.

An answer is right that says what the chat says, as in the evaluations. All are asked in bfloat16, as they are served.
"""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import BaseModel

from khmer_assets.evaluation.engines import TransformersEngine
from khmer_assets.evaluation.examination import stops_of
from khmer_assets.foundation.files import write_whole
from khmer_assets.foundation.settings import Name, PositiveInt, Ratio, Settings
from khmer_assets.foundation.tables import markdown_table
from khmer_assets.instructions.chats import chats_of
from khmer_assets.router.learning import Asked, TooFew, learn
from khmer_assets.server.routing import instructions_of
from resources.payload import PayloadRun, Refusal

ASKED = "asked.jsonl"  # a line a chat: who was right
HELD_OUT = ("test", "validation")  # which no training has learned from


class Routing(Settings):
    """Who answers as `khmer-auto`.

    `threshold`: the confidence from which on the model's own whole answer is given. `max_chats`: the most held-out
    chats of the model, and of each adapter, that it is trained with. `stronger`: one of the recipe's teachers, who
    answers when a user is not satisfied with model and adapter; users' chats are sent there then.
    """

    threshold: Ratio = 0.8
    max_chats: PositiveInt = 1000
    stronger: Name | None = None


class Spec(BaseModel):
    """Folders of the model and of its chats, and by adapter those of domain_adapter and adapter_chats. `context_length`
    and `max_new_tokens` in tokens."""

    model: Path
    chats: Path
    adapters: dict[str, Path]
    adapter_chats: dict[str, Path]
    settings: Routing
    context_length: int
    max_new_tokens: int
    seed: int


def main(spec: Spec, run: PayloadRun) -> dict[str, Any]:
    """Write `router.json` and `weights.npy` (`khmer_assets/server/router_file.py`), and `asked.jsonl`.

    An adapter of another model is left out. Raises `Refusal` where none is left, or there are too few chats.
    """
    asked = asked_of(spec, run)
    domains = list(asked[0].by_adapter) if asked else []
    try:
        router = learn(asked, domains, spec.model.name, spec.settings.threshold, spec.seed)
    except TooFew as error:
        raise Refusal(str(error)) from None
    router.save(run.output)
    with (run.output / ASKED).open("w") as file:
        for one in asked:
            told = {
                "instructions": one.instructions,
                "question": one.question,
                "own": one.own,
                "model": one.right,
                **one.by_adapter,
            }
            file.write(json.dumps(told, ensure_ascii=False) + "\n")
    rows = []
    for name in (None, *domains):
        own = [one for one in asked if one.own == name]
        rows.append({"chats of": name or "the model", "held out": len(own), **_shares(own)})
    return {**router.about.figures, "right": markdown_table(pl.DataFrame(rows))}


def _shares(asked: list[Asked]) -> dict[str, float | None]:
    """By who answers, the share that is right."""
    names = asked[0].by_adapter if asked else {}
    right = {"model": [one.right for one in asked]} | {name: [one.by_adapter[name] for one in asked] for name in names}
    return {name: round(sum(found) / len(found), 3) for name, found in right.items() if found}


def asked_of(spec: Spec, run: PayloadRun) -> list[Asked]:
    """The held-out chats, answered by the model and by each adapter; what a killed run has asked is not asked again."""
    adapters = {name: folder for name, folder in sorted(spec.adapters.items()) if name in spec.adapter_chats}
    for name, folder in list(adapters.items()):
        base = json.loads((folder / "training.json").read_text())["base"]
        if base != spec.model.name:
            run.log(f"the adapter {name} was trained on {base}, not on {spec.model.name}, and is left out")
            del adapters[name]
    if not adapters:
        raise Refusal("no adapter was trained on this model; materialize domain_adapter, and then the router")
    chats: list[tuple[str | None, list[dict[str, str]]]] = []
    for whose, listed in ((None, spec.chats), *((name, spec.adapter_chats[name]) for name in adapters)):
        own = [chat for split in HELD_OUT for chat in chats_of(listed, split) if len(chat) > 1]
        chats += [(whose, chat) for chat in own[: spec.settings.max_chats]]
    questions = [chat[:-1] for _, chat in chats]
    loaded: list[_Answerers] = []  # when it is needed

    def answered_by(name: str | None) -> list[dict[str, Any]]:
        file = run.state / f"{name or 'the model'}.json"
        if not file.exists():
            run.log(f"{len(chats)} held-out chats, asked of {name or 'the model'}")
            if not loaded:
                loaded.append(_Answerers(spec, adapters))
            write_whole(file, json.dumps(loaded[0].answers(name, questions), ensure_ascii=False))
        return list(json.loads(file.read_text()))

    model = answered_by(None)
    by_adapter = {name: answered_by(name) for name in adapters}
    return [
        Asked(
            question=chat[-2]["content"],
            own=whose,
            right=model[place]["text"] == chat[-1]["content"].strip(),
            by_adapter={name: by_adapter[name][place]["text"] == chat[-1]["content"].strip() for name in adapters},
            logprobs=model[place]["logprobs"],
            instructions=instructions_of((message["role"], message["content"]) for message in chat),
        )
        for place, (whose, chat) in enumerate(chats)
    ]


class _Answerers:
    """The model with all its adapters."""

    def __init__(self, spec: Spec, adapters: dict[str, Path]):
        import torch
        from peft import PeftModel
        from transformers import AutoTokenizer

        from khmer_assets.training import models

        self.tokenizer = AutoTokenizer.from_pretrained(spec.model)
        base = models.load_model(spec.model, torch.bfloat16).to(models.device())
        self.stops = stops_of(base, self.tokenizer)
        (first, folder), *others = adapters.items()
        self.model = PeftModel.from_pretrained(base, folder, adapter_name=first).eval()
        for name, folder in others:
            self.model.load_adapter(folder, adapter_name=name)
        self.engine = TransformersEngine(self.model, spec.context_length)
        self.max_new_tokens = spec.max_new_tokens

    def answers(self, name: str | None, chats: list[list[dict[str, str]]]) -> list[dict[str, Any]]:
        """Text and log-probabilities of each answer of an adapter or, without a name, of the model alone."""
        prompts = [self._ids(messages) for messages in chats]
        if name is not None:
            self.model.set_adapter(name)
        with self.model.disable_adapter() if name is None else nullcontext():
            found = self.engine.generate(prompts, self.stops, self.max_new_tokens)
        return [
            {
                "text": self.tokenizer.decode(one.ids, skip_special_tokens=True).strip(),
                "logprobs": [-nats for nats in one.nats],
            }
            for one in found
        ]

    def _ids(self, messages: list[dict[str, str]]) -> list[int]:
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
