"""What every training is told."""

import pytest
from pydantic import ValidationError

from khmer_assets.training.settings import TrainingSettings


def test_patience_counts_evaluations():
    with pytest.raises(ValidationError, match=r"patience \(3\) counts evaluations; set evaluate_every"):
        TrainingSettings(learning_rate=0.1, warmup_ratio=0, batch_size=1, checkpoint_every=1, patience=3)
