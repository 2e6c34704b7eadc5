"""Writes a model as a GGUF file for llama.cpp, quantized, and measures that llama.cpp reads text as transformers does.

The float16 file and the importance matrix are written here; the quantization itself is llama.cpp's.
"""

import ctypes
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from khmer_assets.compression.calibration import MERGED_MODEL, CalibrationSpec, calibration_samples
from khmer_assets.tokenizer.bpe import GPT2_PATTERN, KHMER_PATTERN, QWEN2_PATTERN
from khmer_assets.training.models import CONV1D_ARCHITECTURES, device, load_model
from resources.llama_cpp import llama_cpp
from resources.payload import PayloadRun, Refusal

if TYPE_CHECKING:
    import numpy as np

Quantization = Literal["Q4_K_M", "Q5_K_M", "Q8_0"]

ARCHITECTURES = ("qwen2", "qwen3", "llama", "gpt2")
FIGURES = "gguf.json"
NEW_TOKENS = 8
K_QUANT_BLOCK = 256  # weights that a K-quant packs together; llama.cpp takes another type where a row is no multiple

LLAMA3_PATTERN = QWEN2_PATTERN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
PRE_TOKENIZERS = {
    KHMER_PATTERN: "qwen35",
    QWEN2_PATTERN: "qwen2",
    LLAMA3_PATTERN: "llama-bpe",
    GPT2_PATTERN: "gpt-2",
}
SMOLLM = "smollm"  # GPT-2's, after each digit was parted


class Spec(CalibrationSpec):
    """The calibration texts give the importance matrix, and are the texts on which token ids are compared."""

    quantization: Quantization = Field(description="llama.cpp's name for the mixture of types")


def main(spec: Spec, run: PayloadRun) -> dict[str, Any]:
    """Write `<quantization>.gguf` and `gguf.json` with the figures that are returned.

    `texts_with_equal_ids` counts the texts of `texts` for which llama.cpp and transformers give the same token ids.
    `fallback_tensors` counts those whose rows K-quants cannot pack. Raises `Refusal` when llama.cpp has no
    counterpart of the model's architecture, rotary embedding or tokenizer.
    """
    from gguf import GGUFReader
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(spec.model)
    texts = calibration_samples(spec, tokenizer)
    plain = run.state / "float16.gguf"
    write_float16(spec.model, plain)
    run.log(f"measuring the importance of each input on {len(texts)} texts")
    matrix = importance_matrix(spec.model, texts, spec.length)
    file = run.output / f"{spec.quantization}.gguf"
    quantize(plain, file, spec.quantization, matrix)

    agreeing, answer = read_again(file, tokenizer, texts)
    run.log(f"llama.cpp continues {texts[0][:60]!r} with {answer!r}")
    tensors = GGUFReader(file).tensors
    types: dict[str, int] = {}
    for tensor in tensors:
        types[tensor.tensor_type.name] = types.get(tensor.tensor_type.name, 0) + 1
    figures: dict[str, Any] = {
        MERGED_MODEL: spec.model.name,
        "texts": len(texts),
        "texts_with_equal_ids": agreeing,
        "tensor_types": ", ".join(f"{count} {name}" for name, count in sorted(types.items())),
        "fallback_tensors": sum(
            len(t.shape) == 2 and int(t.shape[0]) % K_QUANT_BLOCK != 0 for t in tensors if "_K" in spec.quantization
        ),
        "float16_bytes": plain.stat().st_size,
        "gguf_bytes": file.stat().st_size,
    }
    (run.output / FIGURES).write_text(json.dumps(figures, indent=1))
    return figures


def write_float16(model: Path, file: Path) -> None:
    """Write the transformers folder `model` as one GGUF file: matrices in float16, vectors in float32.

    Raises `Refusal` when llama.cpp has no counterpart of the model; see `main`.
    """
    from gguf import MODEL_ARCH, GGUFWriter, LlamaFileType, get_tensor_name_map
    from transformers import AutoConfig, AutoTokenizer

    config = AutoConfig.from_pretrained(model)
    if config.model_type not in ARCHITECTURES:
        raise Refusal(f"a {config.model_type!r} model cannot be written as GGUF; use {', '.join(ARCHITECTURES)}")
    if any(kind != "full_attention" for kind in getattr(config, "layer_types", None) or []):
        raise Refusal("a model with sliding-window layers cannot be written as GGUF; turn use_sliding_window off")
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer = GGUFWriter(file, config.model_type)
    writer.add_file_type(LlamaFileType.MOSTLY_F16)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    if config.model_type in CONV1D_ARCHITECTURES:
        writer.add_feed_forward_length(config.n_inner or 4 * config.n_embd)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    else:
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_key_length(head_size)
        writer.add_value_length(head_size)
        writer.add_rope_dimension_count(head_size)
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    _add_vocabulary(writer, AutoTokenizer.from_pretrained(model), config.vocab_size)

    names = get_tensor_name_map(MODEL_ARCH[config.model_type.upper()], config.num_hidden_layers)

    def tensors() -> Iterator[tuple[str, "np.ndarray[Any, Any]"]]:
        factors = None if config.model_type in CONV1D_ARCHITECTURES else rotary_factors(config, head_size)
        if factors is not None:
            yield "rope_freqs.weight", factors
        for name, array in _weights(model):
            known = names.get_name(name, try_suffixes=(".weight", ".bias"))
            if known is None:
                raise Refusal(f"{model}: llama.cpp has no counterpart of the tensor {name!r}")
            if config.model_type == "llama" and ".q_proj." in name:
                array = _interleaved(array, config.num_attention_heads)
            if config.model_type == "llama" and ".k_proj." in name:
                array = _interleaved(array, config.num_key_value_heads)
            if config.model_type in CONV1D_ARCHITECTURES and array.ndim == 2 and ".h." in name:
                array = array.T.copy()  # Conv1D keeps its weights the other way round
            yield known, array.astype("float16" if array.ndim == 2 else "float32")

    # twice over the weights, so that only one of them is in memory at a time
    for name, array in tensors():
        writer.add_tensor_info(name, array.shape, array.dtype, array.nbytes)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, array in tensors():
        writer.write_tensor_data(array)
    writer.close()


def importance_matrix(model: Path, texts: list[str], length: int) -> dict[str, "np.ndarray[Any, Any]"]:
    """The mean square of each input of each Linear or Conv1D layer over the texts, by the tensor's name in GGUF."""
    import torch
    from gguf import MODEL_ARCH, get_tensor_name_map
    from transformers import AutoTokenizer
    from transformers.pytorch_utils import Conv1D

    tokenizer = AutoTokenizer.from_pretrained(model)
    loaded = load_model(model).to(device()).eval()
    names = get_tensor_name_map(MODEL_ARCH[loaded.config.model_type.upper()], loaded.config.num_hidden_layers)
    sums: dict[str, torch.Tensor] = {}

    def observe(name: str) -> Any:
        def hook(_layer: Any, inputs: tuple["torch.Tensor", ...]) -> None:
            squares = inputs[0].float().square().sum(dim=(0, 1))
            sums[name] = sums[name] + squares if name in sums else squares

        return hook

    for name, layer in loaded.named_modules():
        if not isinstance(layer, (torch.nn.Linear, Conv1D)) or name.endswith("lm_head"):
            continue
        layer.register_forward_pre_hook(observe(f"{names.get_name(name)}.weight"))
    tokens = 0
    with torch.inference_mode():
        for text in texts:
            ids = tokenizer(text, truncation=True, max_length=length, return_tensors="pt")["input_ids"].to(device())
            tokens += ids.shape[1]
            loaded(input_ids=ids, logits_to_keep=1)
    return {name: (total / tokens).cpu().numpy() for name, total in sums.items()}


def quantize(
    source: Path, target: Path, quantization: Quantization, importance: dict[str, "np.ndarray[Any, Any]"]
) -> None:
    """Let llama.cpp quantize a float16 GGUF file. Raises `RuntimeError` when it reports a failure."""
    import numpy as np

    library = llama_cpp()

    # its log cuts tokens within a character, which the binding then fails to print
    logging.getLogger("llama-cpp-python").setLevel(logging.ERROR)
    parameters = library.llama_model_quantize_default_params()
    parameters.nthread = os.cpu_count() or 1
    parameters.ftype = getattr(library, f"LLAMA_FTYPE_MOSTLY_{quantization}")
    arrays = {name.encode(): np.ascontiguousarray(a, dtype=np.float32) for name, a in importance.items()}
    entries = (library.llama_model_imatrix_data * (len(arrays) + 1))()  # the entry without a name is the end
    for entry, (name, array) in zip(entries, arrays.items(), strict=False):
        entry.name, entry.size = name, array.size
        entry.data = array.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    parameters.imatrix = entries
    status = library.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(parameters))
    if status != 0:
        raise RuntimeError(f"llama.cpp could not quantize {source} to {quantization} (status {status})")


def read_again(file: Path, tokenizer: Any, texts: list[str]) -> tuple[int, str]:
    """In how many of `texts` llama.cpp gives the token ids of `tokenizer`, and its greedy continuation of the first."""
    llama = llama_cpp().Llama(str(file), n_ctx=0, verbose=False)
    ids = tokenizer(texts)["input_ids"]
    agreeing = sum(llama.tokenize(t.encode(), add_bos=True, special=True) == i for t, i in zip(texts, ids, strict=True))
    prompt = ids[0][: llama.n_ctx() - NEW_TOKENS]
    answer: list[int] = []
    for token, _ in zip(llama.generate(prompt, temp=0.0, repeat_penalty=1.0), range(NEW_TOKENS), strict=False):
        answer.append(token)
    llama.close()
    return agreeing, str(tokenizer.decode(answer))


def pre_tokenizer_name(tokenizer: dict[str, Any]) -> str:
    """llama.cpp's name for the way in which a `tokenizer.json` cuts text before BPE.

    Raises `Refusal` for a tokenizer that is no byte-level BPE or that llama.cpp would cut in another way.
    """
    model, pre = tokenizer["model"]["type"], tokenizer["pre_tokenizer"] or {}
    steps = pre.get("pretokenizers", [pre])
    byte_level = steps[-1]
    if model != "BPE" or byte_level.get("type") != "ByteLevel" or byte_level["add_prefix_space"]:
        raise Refusal(f"GGUF needs a byte-level BPE tokenizer without a prefix space, this one is {model} with {pre}")
    normalizer = tokenizer["normalizer"]
    # the texts of this project are in NFC already
    if normalizer and normalizer.get("normalizers") != [] and normalizer["type"] != "NFC":
        raise Refusal(f"llama.cpp does not normalize text, but the tokenizer does: {normalizer}")
    if steps[0] == {"type": "Digits", "individual_digits": True} and len(steps) == 2 and byte_level["use_regex"]:
        return SMOLLM
    if len(steps) == 1 and byte_level["use_regex"]:
        return PRE_TOKENIZERS[GPT2_PATTERN]
    split = steps[0]
    pattern = split.get("pattern", {}).get("Regex")
    if len(steps) != 2 or split.get("behavior") != "Isolated" or split["invert"] or pattern not in PRE_TOKENIZERS:
        raise Refusal(
            f"llama.cpp has no pre-tokenizer like {pre}; it knows {', '.join(PRE_TOKENIZERS.values())}, {SMOLLM}. "
            f"Set extension.pattern to llama_cpp, or train a tokenizer with this project, whose pattern is "
            f"{PRE_TOKENIZERS[KHMER_PATTERN]}"
        )
    return PRE_TOKENIZERS[pattern]


def _add_vocabulary(writer: Any, tokenizer: Any, size: int) -> None:
    from gguf import TokenType

    content = json.loads(tokenizer.backend_tokenizer.to_str())
    pre = pre_tokenizer_name(content)
    if len(tokenizer) > size:
        raise Refusal(f"the tokenizer has {len(tokenizer)} entries, the model {size} rows; they do not belong together")
    # rows of the embedding that no token uses
    tokens = [f"[PAD{place}]" for place in range(size)]
    types = [TokenType.UNUSED] * size
    for token, identity in content["model"]["vocab"].items():
        tokens[identity], types[identity] = token, TokenType.NORMAL
    for added in content["added_tokens"]:
        tokens[added["id"]] = added["content"]
        types[added["id"]] = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in content["model"]["merges"]])
    for kind in ("bos", "eos", "pad"):
        identity = getattr(tokenizer, f"{kind}_token_id")
        if identity is not None:
            getattr(writer, f"add_{kind}_token_id")(identity)
    begins = tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    writer.add_add_bos_token(begins)
    writer.add_add_eos_token(False)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def _weights(model: Path) -> Iterator[tuple[str, "np.ndarray[Any, Any]"]]:
    from safetensors import safe_open

    for file in sorted(model.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in sorted(tensors.keys()):
                yield name, tensors.get_tensor(name).float().numpy()


def _interleaved(array: "np.ndarray[Any, Any]", heads: int) -> "np.ndarray[Any, Any]":
    """Rows of a query or key projection in the order of llama.cpp, which rotates neighbors and not halves."""
    halves = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
    return halves.swapaxes(1, 2).reshape(array.shape)


def rotary_factors(config: Any, head_size: int) -> "np.ndarray[Any, Any] | None":
    """What llama.cpp divides each rotary frequency by, where the model scales them as Llama 3 does."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    parameters = config.rope_parameters
    kind = parameters.get("rope_type", "default")
    if kind == "default":
        return None
    if kind != "llama3" or config.model_type != "llama":
        raise Refusal(f"rotary embeddings of type {kind!r} in a {config.model_type} model cannot be written as GGUF")
    import numpy as np

    scaled, _ = ROPE_INIT_FUNCTIONS[kind](config, None)
    plain = 1 / parameters["rope_theta"] ** (np.arange(0, head_size, 2, dtype=np.float64) / head_size)
    return (plain / scaled.numpy()).astype(np.float32)
