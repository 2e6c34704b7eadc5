"""How sure a model is of an answer: what the probabilities of its tokens say, made into the chance that it is right.

What belongs here: the one definition of confidence, for the gateway, which has an engine's log-probabilities, and for
the training of the router, which has a model's own. What does not: how the scaling is fitted
(`khmer_assets/evaluation/calibration.py`).
"""

import math
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field

MOST = 50.0  # of a logit: beyond, a chance cannot be told from 0 or 1
NEARLY = 1e-6


class Scaling(BaseModel):
    """Platt's scaling of the logit of the mean likelihood; a temperature is its inverse as `slope`, without `offset`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    slope: float = Field(ge=0)
    offset: float

    def confidence(self, logprobs: Sequence[float]) -> float | None:
        """The chance that an answer is right whose tokens had these log-probabilities (nats, each for what came before
        it; sampled ones as greedy ones); None without a token, or with one that is no number.

        >>> Scaling(slope=1, offset=0).confidence([math.log(0.8)] * 3)
        0.8
        """
        return self.of_mean(sum(logprobs) / len(logprobs)) if logprobs else None

    def of_mean(self, logprob: float) -> float | None:
        """The same of the mean of the log-probabilities."""
        if not math.isfinite(logprob):
            return None
        likelihood = min(max(math.exp(min(logprob, 0.0)), NEARLY), 1 - NEARLY)
        logit = self.slope * math.log(likelihood / (1 - likelihood)) + self.offset
        return round(1 / (1 + math.exp(-min(max(logit, -MOST), MOST))), 6)
