"""What answers and scores while a variant is measured: transformers, or llama.cpp for a GGUF file."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from khmer_assets.training import held_out


class Engine(ABC):
    """What a variant must be able to do, whichever library runs it."""

    @abstractmethod
    def score(self, windows: list[list[int]]) -> list[float]:
        """See `held_out.Scorer`."""

    @abstractmethod
    def generate(self, prompt: list[int], stop: int, limit: int) -> list[int]:
        """The greedy continuation, up to and without `stop`, of at most `limit` ids."""


class TransformersEngine(Engine):
    """A model in transformers, or with an adapter in peft."""

    def __init__(self, model: Any):
        self.model = model
        self._score = held_out.model_scorer(model)

    def score(self, windows: list[list[int]]) -> list[float]:
        return self._score(windows)

    def generate(self, prompt: list[int], stop: int, limit: int) -> list[int]:
        import torch

        ids = torch.tensor([prompt], device=self.model.device)
        out = self.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=limit, do_sample=False, eos_token_id=stop
        )
        answer = out[0, len(prompt) :].tolist()
        return answer[: answer.index(stop)] if stop in answer else answer


class LlamaCppEngine(Engine):
    """A GGUF file in llama.cpp."""

    def __init__(self, file: Path, context_length: int):
        from llama_cpp import Llama

        self.llama = Llama(
            str(file), n_ctx=context_length + 1, n_batch=context_length + 1, logits_all=True, verbose=False
        )

    def score(self, windows: list[list[int]]) -> list[float]:
        import numpy as np

        totals = []
        for window in windows:
            self.llama.reset()
            self.llama.eval(window[:-1])
            logits = self.llama.scores[: len(window) - 1].astype(np.float64)
            normalizer = np.logaddexp.reduce(logits, axis=1)
            totals.append(float((normalizer - logits[np.arange(len(window) - 1), window[1:]]).sum()))
        return totals

    def generate(self, prompt: list[int], stop: int, limit: int) -> list[int]:
        answer: list[int] = []
        for identity in self.llama.generate(prompt, temp=0.0, repeat_penalty=1.0):
            if identity == stop or len(answer) == limit:
                break
            answer.append(identity)
        return answer
