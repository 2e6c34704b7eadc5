"""The trained router as the gateway reads it: `router.json` and `weights.npy`, numbers and names and no code.

What belongs here: the two files, and what they say of a text. What does not: how they are learned
(`khmer_assets/router/`), and what is done with it (`routing.py`). numpy is imported where a file is read: a gateway
without a router does without.
"""

import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from khmer_assets.foundation.settings import mistakes
from khmer_assets.server.confidence import Scaling
from khmer_assets.server.state import ModelServerError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ABOUT = "router.json"
WEIGHTS = "weights.npy"
MOST_BYTES = 64 * 1024 * 1024  # of a file
REMEDY = "materialize the asset router again, and then served_router"

Chance = Annotated[float, Field(ge=0, le=1)]


class About(BaseModel):
    """What stands in `router.json`.

    `base`: the digest of the model that it was trained with. `domains`: the adapters' names. `biases` and
    `of_confidence`: of no domain and of each domain in turn, the part of its logit that is always there, and that of
    the confidence less a half. `dissatisfaction`: the bias of that logit. `threshold`: the confidence from which on the
    model's own answer is given. `figures`: as measured on held-out chats.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    version: Literal[2] = 2
    base: str
    domains: Annotated[tuple[Annotated[str, Field(max_length=64)], ...], Field(min_length=1, max_length=256)]
    biases: tuple[float, ...]
    of_confidence: tuple[float, ...]
    dissatisfaction: float
    threshold: Chance
    scaling: Scaling
    figures: dict[str, float] = {}

    @model_validator(mode="after")
    def _sizes(self) -> "About":
        if not len(self.domains) + 1 == len(self.biases) == len(self.of_confidence):
            raise ValueError("expected a bias and a weight of the confidence for no domain and for each domain")
        if len(set(self.domains)) < len(self.domains):
            raise ValueError("a domain stands there twice")
        return self

    @property
    def gains(self) -> bool:
        """Whether it was right more often than the model alone, and than an adapter every time."""
        router = self.figures.get("router", 0.0)
        return router > self.figures.get("never", 1.0) and router > self.figures.get("always", 1.0)


class Router:
    """`weights` (buckets, columns): of each n-gram, for no domain, each domain, and dissatisfaction."""

    def __init__(self, about: About, weights: "NDArray[np.float32]"):
        self.about = about
        self.weights = weights

    @classmethod
    def load(cls, folder: Path) -> "Router":
        """The router in a folder. Raises `ModelServerError` for files that are not there, or are none of a router."""
        import numpy as np

        from khmer_assets.server.text_features import BUCKETS

        try:
            for name in (ABOUT, WEIGHTS):
                if (folder / name).stat().st_size > MOST_BYTES:
                    raise ValueError(f"{name} has more than {MOST_BYTES:,} bytes")
            about = About.model_validate_json((folder / ABOUT).read_bytes())
            weights = np.load(folder / WEIGHTS, allow_pickle=False)
            expected = (BUCKETS, len(about.domains) + 2)
            if not isinstance(weights, np.ndarray) or weights.shape != expected or weights.dtype != np.float32:
                found = f"{getattr(weights, 'dtype', '')}{getattr(weights, 'shape', '')}"
                raise ValueError(f"{WEIGHTS}: expected float32{expected}, found {found}")
            if not np.isfinite(weights).all():
                raise ValueError(f"{WEIGHTS} has values that are no numbers")
        except Exception as error:  # whatever is wrong with a file, all else is served
            reason = "; ".join(mistakes(error, "", ABOUT)) if isinstance(error, ValidationError) else error
            raise ModelServerError(f"the router in {folder} cannot be read: {reason}; {REMEDY}") from None
        return cls(about, weights)

    def save(self, folder: Path) -> None:
        """Write the two files."""
        import numpy as np

        np.save(folder / WEIGHTS, self.weights, allow_pickle=False)
        (folder / ABOUT).write_text(self.about.model_dump_json(indent=1))

    def chances(self, instructions: str, question: str, confidence: float | None = None) -> list[float]:
        """The chance of no domain, and of each domain, to be the one that answers best a question after instructions;
        `confidence`: in the model's own answer, if there is one."""
        about = self.about
        known = 0.0 if confidence is None else confidence - 0.5
        logits = [
            logit + bias + known * weight
            for logit, bias, weight in zip(
                self._logits(instructions, question)[:-1], about.biases, about.of_confidence, strict=True
            )
        ]
        highest = max(logits)
        odds = [math.exp(logit - highest) for logit in logits]
        return [one / sum(odds) for one in odds]

    def domain(self, instructions: str, question: str, confidence: float | None = None) -> str | None:
        """The adapter whose domain the question is in; None for none."""
        chances = self.chances(instructions, question, confidence)
        best = max(range(len(chances)), key=chances.__getitem__)
        return self.about.domains[best - 1] if best else None

    def guess(self, instructions: str, question: str) -> str:
        """The likeliest adapter, be the question in no domain."""
        chances = self.chances(instructions, question)[1:]
        return self.about.domains[max(range(len(chances)), key=chances.__getitem__)]

    def dissatisfaction(self, turn: str) -> float:
        """The chance that this turn of a user says that the answer before it was not good."""
        logit = self._logits(turn)[-1] + self.about.dissatisfaction
        return 1 / (1 + math.exp(-min(max(logit, -50.0), 50.0)))

    def _logits(self, *texts: str) -> Sequence[float]:
        buckets, values = self._ngrams(*texts)
        found: list[float] = (values @ self.weights[buckets]).tolist()
        return found

    @cached_property
    def _ngrams(self) -> Any:
        from khmer_assets.server.text_features import ngrams

        return ngrams
