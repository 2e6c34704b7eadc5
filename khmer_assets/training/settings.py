"""The settings of every training. Pretraining and finetuning each add their own to them, in their own modules."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from khmer_assets.foundation.settings import PositiveFloat, PositiveInt, Ratio, Settings
from khmer_assets.training.models import Precision


class TrainingSettings(Settings):
    """How a model is trained, whatever it learns.

    A step is `batch_size` sequences (or chats), over all processes. `micro_batch_size` of them are in memory at a time,
    null for a process's whole share: batch_size / micro_batch_size is what others call accumulation steps times
    processes. The learning rate rises over `warmup_ratio` of the steps and then follows `schedule`: straight or along
    a cosine to zero, or constant with a straight fall to zero over the last fifth. Longer gradients than
    `max_gradient_norm` are shortened to it. `gradient_checkpointing` keeps a layer's input alone and computes the rest
    again: less memory, a third more work.

    A checkpoint is written every `checkpoint_every` steps, and the validation loss is measured every `evaluate_every`,
    null for never. The best weights are kept; after `patience` evaluations without a better one, training stops.
    `sharding`: zero2 spreads gradients and the optimizer's state over the processes, zero3 the weights too.
    """

    precision: Precision = "auto"
    learning_rate: PositiveFloat
    schedule: Literal["linear", "cosine", "constant_then_decay"] = "linear"
    warmup_ratio: Ratio
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    batch_size: PositiveInt
    micro_batch_size: PositiveInt | None = None
    max_gradient_norm: PositiveFloat = 1.0
    gradient_checkpointing: bool = False
    checkpoint_every: PositiveInt
    evaluate_every: PositiveInt | None = None
    patience: PositiveInt | None = None
    sharding: Literal["none", "zero2", "zero3"] = "none"

    @model_validator(mode="after")
    def _patience_has_evaluations(self) -> "TrainingSettings":
        if self.patience is not None and self.evaluate_every is None:
            raise ValueError(f"patience ({self.patience}) counts evaluations; set evaluate_every")
        return self
