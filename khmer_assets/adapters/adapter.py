"""An adapter as the recipe describes it."""

from khmer_assets.finetuning.sft import Finetuning
from khmer_assets.foundation.settings import FileBeside, Name, Ratio, Settings


class Adapter(Settings):
    """A LoRA adapter for one domain, trained on the merged model and served beside it as `khmer-<name>`.

    `chats`: a JSONL file, relative to the recipe; a line is {"messages": [{"role": ..., "content": ...}, ...]}.
    `min_answer_accuracy`: the gate, a share of the held-out chats that must be answered exactly. `question` is what
    it is asked when it is served.
    """

    name: Name
    chats: FileBeside
    question: str
    min_answer_accuracy: Ratio
    finetuning: Finetuning
