"""The decoder that a recipe describes, as a new transformers model."""

from typing import Any, Literal

from pydantic import model_validator

from khmer_assets.foundation.settings import PositiveInt, Settings


class Decoder(Settings):
    """The architecture and sizes of a decoder that is trained from scratch."""

    architecture: Literal["qwen3", "qwen2", "llama", "gpt2"]
    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    layers: PositiveInt
    attention_heads: PositiveInt
    key_value_heads: PositiveInt

    @model_validator(mode="after")
    def _heads_divide(self) -> "Decoder":
        if self.hidden_size % self.attention_heads:
            raise ValueError(f"hidden_size ({self.hidden_size}) must be a multiple of attention_heads")
        if self.attention_heads % self.key_value_heads:
            raise ValueError(f"attention_heads ({self.attention_heads}) must be a multiple of key_value_heads")
        return self


def config_of(settings: Decoder, context_length: int, vocabulary_size: int, **tokens: Any) -> Any:
    """transformers' configuration of the decoder with tied embeddings; `tokens` are ids of tokens with a role."""
    from transformers import GPT2Config, LlamaConfig, Qwen2Config, Qwen3Config

    common: dict[str, Any] = {"vocab_size": vocabulary_size, "tie_word_embeddings": True, **tokens}
    if settings.architecture == "gpt2":
        return GPT2Config(
            n_embd=settings.hidden_size,
            n_inner=settings.intermediate_size,
            n_layer=settings.layers,
            n_head=settings.attention_heads,
            n_positions=context_length,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            **common,
        )
    kinds = {"qwen3": Qwen3Config, "qwen2": Qwen2Config, "llama": LlamaConfig}
    return kinds[settings.architecture](
        hidden_size=settings.hidden_size,
        intermediate_size=settings.intermediate_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.attention_heads,
        num_key_value_heads=settings.key_value_heads,
        head_dim=settings.hidden_size // settings.attention_heads,
        max_position_embeddings=context_length,
        **common,
    )


def new_model(settings: Decoder, context_length: int, tokenizer: Any, seed: int) -> Any:
    """A randomly initialized decoder with tied embeddings and one row a token of `tokenizer`, in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    tokens = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = config_of(settings, context_length, len(tokenizer), **tokens)
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)
