"""The decoder that a recipe describes, as a transformers model: new, or continued from an existing one."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from khmer_assets.foundation.settings import PositiveInt, Settings
from khmer_assets.training.models import load_model
from resources.payload import Refusal


class Decoder(Settings):
    """The decoder's architecture and sizes. `context_length` is in tokens; `initial_checkpoint` is a folder or hub
    name to continue from, null to begin from scratch."""

    architecture: Literal["qwen3", "qwen2", "llama", "gpt2"]
    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    layers: PositiveInt
    attention_heads: PositiveInt
    key_value_heads: PositiveInt
    context_length: Annotated[int, Field(ge=16)]
    initial_checkpoint: str | None = None

    @model_validator(mode="after")
    def _heads_divide(self) -> "Decoder":
        if self.hidden_size % self.attention_heads:
            raise ValueError(f"hidden_size ({self.hidden_size}) must be a multiple of attention_heads")
        if self.attention_heads % self.key_value_heads:
            raise ValueError(f"attention_heads ({self.attention_heads}) must be a multiple of key_value_heads")
        return self


def new_model(settings: Decoder, tokenizer: Any, seed: int) -> Any:
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


def starting_model(settings: Decoder, tokenizer: Any, seed: int) -> Any:
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
