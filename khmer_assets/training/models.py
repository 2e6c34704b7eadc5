"""What all training and measuring needs of a model: loading it, device and precision, the token that ends a text."""

import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from khmer_assets.tokenizer.chat_template import END_OF_TEXT

if TYPE_CHECKING:
    import torch

BASE_RECORD = "base.json"  # what is known of an open model; stays beside whatever is made of it
IGNORED = -100  # the label of a token that is not learned
SHORT = 256  # tokens, in attention
BYTES_A_SCORE = 12  # in float32 and twice in bfloat16, with what is between
MAX_SCORE_BYTES = 1e9
Precision = Literal["auto", "bfloat16", "float32"]
CONV1D_ARCHITECTURES = ("gpt2",)  # whose layers are not torch's Linear


def load_model(folder: str | Path, dtype: "torch.dtype | None" = None) -> Any:
    """A saved decoder in `dtype` (default float32). Remote code is never run."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype or torch.float32)


def device() -> "torch.device":
    """The accelerator where there is one, else the processor. Of processes that train together, each has its own."""
    import torch

    own = int(os.environ.get("LOCAL_RANK", "0"))
    return torch.device("cuda", own) if torch.cuda.is_available() else torch.device("cpu")


def compute_dtype(precision: Precision) -> "torch.dtype":
    """What matrices are multiplied in; "auto" is bfloat16 where the hardware computes in it."""
    import torch

    if precision == "auto":
        if torch.cuda.is_available():
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        precision = "bfloat16" if fast else "float32"
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def autocast(precision: Precision) -> AbstractContextManager[Any]:
    """The context that a training step runs in."""
    import torch

    enabled = compute_dtype(precision) == torch.bfloat16
    return torch.autocast(device().type, dtype=torch.bfloat16, enabled=enabled)


def choose_attention(model: Any, rows: int, length: int, precision: Precision) -> None:
    """Have a model's attention written out where that trains faster: on a CPU that computes in bfloat16, torch's own
    takes twice as long for `rows` of up to 256 tokens (measured on Zen 4, torch 2.13). Not where all that is kept for
    the gradients would be large.
    """
    import torch

    config = model.config.get_text_config()
    kept = config.num_hidden_layers * rows * config.num_attention_heads * length**2 * BYTES_A_SCORE
    on_cpu = model.device.type == "cpu" and compute_dtype(precision) == torch.bfloat16
    if on_cpu and length <= SHORT and kept <= MAX_SCORE_BYTES:
        model.set_attn_implementation("eager")


def end_of_text_id(tokenizer: Any) -> int:
    """The id that follows every document; the end-of-sequence token where a tokenizer has no end-of-text."""
    identity = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    return int(tokenizer.eos_token_id if identity in (None, tokenizer.unk_token_id) else identity)


def saved_parameters(model: Path) -> int:
    """The weights of the model, counted in its files; a packed tensor counts what its saved shape tells."""
    from math import prod

    from safetensors import safe_open

    total = 0
    for file in model.glob("*.safetensors"):
        with safe_open(file, "np") as tensors:
            for name in tensors.keys():  # noqa: SIM118  # not a dict: it cannot be iterated
                if name.endswith("weight_shape"):
                    total += prod(tensors.get_tensor(name).tolist())
                elif not name.endswith(("weight_packed", "weight_scale", "weight_zero_point")):
                    total += prod(tensors.get_slice(name).get_shape())
    return total
