"""The decoder that a recipe describes, as a transformers model, and the precision that this machine trains it in."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from khmer_assets.recipe import Pretraining
from resources.payload import Refusal

if TYPE_CHECKING:
    import torch


def new_model(settings: Pretraining, tokenizer: Any, seed: int) -> Any:
    """A randomly initialized decoder with tied embeddings and one row a token of `tokenizer`."""
    import torch
    from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen2Config, Qwen3Config

    common: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if settings.architecture == "gpt2":
        config: Any = GPT2Config(
            n_embd=settings.hidden_size,
            n_inner=settings.intermediate_size,
            n_layer=settings.layers,
            n_head=settings.attention_heads,
            n_positions=settings.context_length,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            **common,
        )
    else:
        kinds = {"qwen3": Qwen3Config, "qwen2": Qwen2Config, "llama": LlamaConfig}
        config = kinds[settings.architecture](
            hidden_size=settings.hidden_size,
            intermediate_size=settings.intermediate_size,
            num_hidden_layers=settings.layers,
            num_attention_heads=settings.attention_heads,
            num_key_value_heads=settings.key_value_heads,
            head_dim=settings.hidden_size // settings.attention_heads,
            max_position_embeddings=settings.context_length,
            **common,
        )
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def load_model(folder: str | Path, dtype: "torch.dtype | None" = None) -> Any:
    """A saved decoder in `dtype` (default float32). Remote code is never run."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype or torch.float32)


def starting_model(settings: Pretraining, tokenizer: Any, seed: int) -> Any:
    """A new model, or the recipe's initial checkpoint, which must have been made with the same tokenizer."""
    if settings.initial_checkpoint is None:
        return new_model(settings, tokenizer, seed)
    from transformers import AutoTokenizer

    try:
        known = AutoTokenizer.from_pretrained(settings.initial_checkpoint).get_vocab()
        model = load_model(settings.initial_checkpoint)
    except (OSError, ValueError) as error:
        raise Refusal(
            f"pretraining.initial_checkpoint: {settings.initial_checkpoint!r} cannot be loaded: {error}"
        ) from None
    if known != tokenizer.get_vocab():
        raise Refusal(
            f"pretraining.initial_checkpoint: {settings.initial_checkpoint!r} was made with another tokenizer; "
            f"set tokenizer.existing to it as well"
        )
    return model


def device() -> "torch.device":
    """The accelerator where there is one, else the processor."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast(precision: str) -> AbstractContextManager[Any]:
    """The context that a training step runs in; "auto" is bfloat16 where the hardware computes in it."""
    import torch

    if precision == "auto":
        if torch.cuda.is_available():
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        precision = "bfloat16" if fast else "float32"
    return torch.autocast(device().type, dtype=torch.bfloat16, enabled=precision == "bfloat16")
