"""The frozen base and the LoRA adapter on it: how both are held in memory, and what makes them unfit for each other.

What they learn does not belong here (`encoding.py`), nor how (`training/`).
"""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from khmer_assets.foundation.settings import PositiveInt, Ratio, Settings
from khmer_assets.training import models
from khmer_assets.training.models import BASE_RECORD, Precision
from resources.payload import Refusal

Quantization = Literal["none", "nf4"]


class Lora(Settings):
    """A low-rank adapter (Hu et al., 2021): to each weight of `target_modules`, `alpha / rank` times a product of two
    matrices of that rank is added.

    `target_modules` are the last parts of layers' names (q_proj ...), or all linear layers but the output head.
    `quantization`: nf4 holds the base in 4 bits with double quantization and computes in bfloat16 (QLoRA; Dettmers et
    al., 2023). `train_embeddings` trains the embeddings and the output head too, whole.
    """

    rank: Annotated[int, Field(ge=1, le=512)]
    alpha: PositiveInt
    dropout: Ratio
    target_modules: Literal["all-linear"] | Annotated[list[str], Field(min_length=1)] = "all-linear"
    quantization: Quantization = "none"
    train_embeddings: bool = False


def chat_marks_are_new(base: Path) -> bool:
    """Whether the model has never seen the marks of a chat: it was pretrained here, or the marks were added to it."""
    return bool(base_record(base).get("chat_marks_are_new", True))


def base_record(base: Path) -> dict[str, Any]:
    """What is known of a model that was not pretrained here (`base.json`); nothing for one that was."""
    file = base / BASE_RECORD
    record: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    return record


def load_base(base: Path, quantization: Quantization, precision: Precision) -> Any:
    """The base on its device: in 4 bits if so quantized; else in bfloat16 where that is what is computed in; in
    float32 where it is not, and where the model was pretrained here, for that is how it was trained.

    Raises `Refusal` for a folder that holds no such model.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

    dtype = models.compute_dtype(precision) if base_record(base) else torch.float32
    try:
        config = AutoConfig.from_pretrained(base)
        if getattr(config, "quantization_config", None):
            raise Refusal(
                f"{base} is quantized ({config.quantization_config.get('quant_method')}), so nothing can be merged "
                f"into it; bring the model in 16 bits and set finetuning.quantization to nf4"
            )
        if quantization == "none":
            return models.load_model(base, dtype).to(models.device())
        four_bits = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
        return AutoModelForCausalLM.from_pretrained(
            base, dtype=torch.bfloat16, quantization_config=four_bits, device_map={"": models.device()}
        )
    except (OSError, ValueError, KeyError) as error:
        raise Refusal(f"{base} cannot be loaded as a causal language model: {error}") from None


def adapted(base: Any, settings: Lora, new_tokens: list[int] | None) -> Any:
    """The base with a new adapter (in float32) on it. The embeddings of `new_tokens` are trained too: as they were
    made at random, no adapter of the layers could make the end of a turn likely.

    Raises `Refusal` when the settings do not fit the base.
    """
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora import LoraLayer

    names = {id(module): name.rpartition(".")[2] for name, module in base.named_modules()}
    tied = bool(base.config.get_text_config().tie_word_embeddings)
    embeddings = [base.get_input_embeddings(), *([] if tied else [base.get_output_embeddings()])]
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=settings.target_modules,
        modules_to_save=[names[id(module)] for module in embeddings] if settings.train_embeddings else None,
        ensure_weight_tying=settings.train_embeddings and tied,
        trainable_token_indices=None if settings.train_embeddings else new_tokens,
        task_type="CAUSAL_LM",
    )
    try:
        model = get_peft_model(base, config)
    except ValueError as error:
        linear = sorted({names[id(m)] for m in base.modules() if "Linear" in type(m).__name__} - {"lm_head"})
        raise Refusal(
            f"finetuning.target_modules: {settings.target_modules} does not fit the base, whose linear layers are "
            f"{', '.join(linear)}: {error}"
        ) from None
    layers = [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
    width = min(min(layer.in_features, layer.out_features) for layer in layers)
    if settings.rank > width:
        raise Refusal(
            f"finetuning.rank is {settings.rank}, the narrowest adapted layer is {width} wide; lower the rank to "
            f"{width} at most, or choose wider layers with finetuning.target_modules"
        )
    for parameter in model.parameters():
        if parameter.requires_grad:  # embeddings that are trained are held as the base is; they would hardly move
            parameter.data = parameter.data.float()
    return model
