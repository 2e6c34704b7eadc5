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


def score(logprobs: Sequence[float]) -> float | None:
    """What is scaled, of the log-probabilities of an answer's tokens (nats, each for what came before it): their sum
    over the root of their number. None without a token, or with one that is no number.

    The sum, which is of the whole answer, falls with its length, and the mean forgets that one wrong token is enough.
    On 918 chats of the sample, of which 70 % were right, the Brier scores of sum, mean and this were 0.090, 0.092 and
    0.089.
    """
    if not logprobs or not all(math.isfinite(one) for one in logprobs):
        return None
    return min(sum(logprobs), 0.0) / math.sqrt(len(logprobs))


class Scaling(BaseModel):
    """Platt's scaling of the score's logit; a temperature is its inverse as `slope`, without an `offset`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    slope: float = Field(ge=0)
    offset: float

    def confidence(self, logprobs: Sequence[float]) -> float | None:
        """The chance that an answer is right whose tokens had these log-probabilities; None where `score` is.

        >>> Scaling(slope=1, offset=0).confidence([math.log(0.8)])
        0.8
        """
        found = score(logprobs)
        return None if found is None else self.of_score(found)

    def of_score(self, found: float) -> float:
        """The same of an answer's score, which is below 0."""
        likelihood = min(max(math.exp(found), NEARLY), 1 - NEARLY)
        logit = self.slope * math.log(likelihood / (1 - likelihood)) + self.offset
        return round(1 / (1 + math.exp(-min(max(logit, -MOST), MOST))), 6)
