"""An adapter as the recipe describes it."""

from pydantic import model_validator

from khmer_assets.finetuning.sft import Finetuning
from khmer_assets.foundation.settings import FileBeside, Name, PositiveInt, Ratio, Settings
from khmer_assets.instructions.embedded_tutor import EmbeddedTutor


class TrainedAdapter(Settings):
    """A LoRA adapter that is trained on the merged model and served beside it.

    `min_answer_accuracy`: the gate, a share of the held-out chats that must be answered exactly, in `max_new_tokens`
    at most (null: the evaluation's). `question` is what it is asked when it is served.
    """

    question: str
    min_answer_accuracy: Ratio
    max_new_tokens: PositiveInt | None = None
    finetuning: Finetuning


class Adapter(TrainedAdapter):
    """An adapter for one domain, served as `khmer-<name>`. `on_demand`: `khmer run` leaves it out.

    `chats`: a JSONL file, relative to the recipe; a line is {"messages": [{"role": ..., "content": ...}, ...]}. Or
    `source`: what makes its chats.
    """

    name: Name
    chats: FileBeside | None = None
    source: EmbeddedTutor | None = None
    on_demand: bool = False

    @model_validator(mode="after")
    def _has_chats(self) -> "Adapter":
        if (self.chats is None) == (self.source is None):
            raise ValueError("expected either chats (a file) or source (what makes them)")
        return self
