"""What answers and scores while a variant is measured: transformers, or llama.cpp for a GGUF file."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from khmer_assets.training import held_out

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


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

        self.llama = Llama(str(file), n_ctx=context_length + 1, n_batch=context_length + 1, verbose=False)

    def score(self, windows: list[list[int]]) -> list[float]:
        return [float(self._token_nats(window).sum()) for window in windows]

    def _token_nats(self, window: list[int]) -> "NDArray[np.float64]":
        """As `held_out.token_nats`. Llama's own `eval` keeps the logits of a whole window, and twice."""
        import numpy as np

        context, batch, vocabulary = self.llama._ctx, self.llama._batch, self.llama.n_vocab()
        part = held_out.positions_at_once(vocabulary)
        self.llama.reset()
        context.kv_cache_clear()
        nats = []
        for at in range(0, len(window) - 1, part):
            targets = window[at + 1 : at + 1 + part]
            batch.set_batch(batch=window[at : at + len(targets)], n_past=at, logits_all=True)
            context.decode(batch)
            shape = (len(targets), vocabulary)
            logits = np.ctypeslib.as_array(context.get_logits(), shape=shape).astype(np.float64)
            nats.append(np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(targets)), targets])
        return np.concatenate(nats)

    def generate(self, prompt: list[int], stop: int, limit: int) -> list[int]:
        answer: list[int] = []
        for identity in self.llama.generate(prompt, temp=0.0, repeat_penalty=1.0):
            if identity == stop or len(answer) == limit:
                break
            answer.append(identity)
        return answer
