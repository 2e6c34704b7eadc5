"""Brings an open model in: its files are fetched, looked at, and completed with the chat template that it may lack.

Weights are taken from safetensors alone and no code that comes with a model is run, so that a stranger's model can do
nothing but compute.
"""

import json
import shutil
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ValidationInfo

from khmer_assets.foundation.files import link_file
from khmer_assets.foundation.settings import Settings, folder_of_file
from khmer_assets.tokenizer.chat_template import CHAT_TEMPLATE, OF_NO_CODE, TURN_END, TURN_START
from khmer_assets.training.models import BASE_RECORD, saved_parameters
from resources.payload import PayloadRun, Refusal

UNKNOWN_LICENSE = "unknown"
FILES = ["*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", "README.md", "LICENSE*"]
TOKENIZER_FILES = ["tokenizer*", "vocab*", "merges.txt", "*.model", "*token*.json", "chat_template*"]
FREE_SHARE = 1.1  # of the download's bytes, that must be free


def folder_or_name(model: Any, about: ValidationInfo) -> Any:
    """A hub's name as it is, or a folder, relative to the recipe, as a whole path. Raises `ValueError` for others."""
    if not isinstance(model, str):
        return model
    if model.startswith((".", "/", "~")):
        return str((folder_of_file(model, about) / Path(model).expanduser()).resolve())
    if model.count("/") != 1 or not all(model.split("/")):
        raise ValueError("expected a hub's name such as Qwen/Qwen2.5-3B-Instruct, or a folder that begins with ./ or /")
    return model


class Base(Settings):
    """`model`: a name on the Hugging Face hub, or a folder (relative to the recipe) that begins with ./, / or ~.
    `revision`: the hub's commit, tag or branch; the commit is written down either way."""

    model: Annotated[str, BeforeValidator(folder_or_name)]
    revision: str | None = None


class Spec(BaseModel):
    """As `Base`."""

    model: str
    revision: str | None


def main(spec: Spec, run: PayloadRun) -> dict[str, Any]:
    """Write a transformers folder (safetensors, a tokenizer with a chat template) and `base.json` with the figures.

    Raises `Refusal` for a model that cannot be had, is no decoder, has no safetensors, wants its own code to run, is
    quantized already, or whose tokenizer does not belong to it.
    """
    if spec.model.startswith("/"):
        folder, commit = Path(spec.model), None
        if not folder.is_dir():
            raise Refusal(f"base.model: {spec.model} is no folder; name a folder with a model, or a hub's name")
    else:
        folder, commit = _download(spec, run)
    config = _read_config(folder, spec.model)
    for file in sorted(path for pattern in FILES for path in folder.glob(pattern)):
        if commit:
            link_file(file, run.output / file.name)
        else:  # a folder of somebody's, who may write into its files
            shutil.copy2(file, run.output / file.name)
    tokenizer, new_marks = _tokenizer(folder, spec.model)
    rows = _embedding_rows(folder, config)
    highest = max(tokenizer.get_vocab().values())
    if highest - new_marks >= rows:
        raise Refusal(
            f"base.model: the tokenizer of {spec.model} has ids up to {highest}, the model {rows:,} embeddings; they "
            "do not belong together: put the tokenizer's files of this very model into the folder"
        )
    if new_marks:
        run.log(f"{spec.model} has no chat template; it gets this project's, whose marks are new to it")
        _give_rows_to_marks(run.output, len(tokenizer), rows)
    tokenizer.save_pretrained(run.output)
    figures = {
        "model": spec.model,
        "revision": commit or "",
        "license": license_of(folder),
        "architecture": config["model_type"],
        "parameters": saved_parameters(run.output),
        "vocabulary": len(tokenizer),
        "chat_marks_are_new": bool(new_marks),
    }
    (run.output / BASE_RECORD).write_text(json.dumps(figures, indent=1))
    return figures


def _download(spec: Spec, run: PayloadRun) -> tuple[Path, str]:
    """The folder of the downloaded files, and the commit. What a killed download has fetched is not fetched again."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    named = f"base.model: {spec.model}" + (f" at revision {spec.revision}" if spec.revision else "")
    patterns = [*FILES, *TOKENIZER_FILES]
    target = run.state / "download"
    try:
        found = HfApi().model_info(spec.model, revision=spec.revision, files_metadata=True)
        size = sum(f.size or 0 for f in found.siblings or [] if any(Path(f.rfilename).match(p) for p in patterns))
        target.mkdir(exist_ok=True)
        there = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
        free = shutil.disk_usage(target).free
        if (size - there) * FREE_SHARE > free:
            raise Refusal(f"{named} has {size / 1e9:.1f} GB, but {free / 1e9:.1f} GB are free; make room for it")
        run.log(f"fetching {spec.model} ({size / 1e9:.2f} GB) at {found.sha}")
        snapshot_download(spec.model, revision=found.sha, allow_patterns=patterns, local_dir=target)
    except GatedRepoError:
        raise Refusal(
            f"{named} is gated: accept its terms on the hub, and set HF_TOKEN to a token of that account"
        ) from None
    except RevisionNotFoundError:
        raise Refusal(f"{named}: the hub has no such revision; name a commit, a tag or a branch of it") from None
    except RepositoryNotFoundError:
        raise Refusal(f"{named}: the hub has no such model, or hides it; mind the spelling, or set HF_TOKEN") from None
    except Refusal:
        raise
    except Exception as error:  # whatever the hub's library raises when a hub is away, or answers nonsense
        told = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
        raise Refusal(f"{named} cannot be fetched from the hub: {told}; try again, or name a local folder") from None
    return target, str(found.sha)


def _read_config(folder: Path, named: str) -> dict[str, Any]:
    """The model's configuration. Raises `Refusal` for what cannot be used."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind = config["model_type"]
        custom = [
            file.name
            for file in (folder / "config.json", folder / "tokenizer_config.json")
            if file.exists() and json.loads(file.read_text()).get("auto_map", OF_NO_CODE) != OF_NO_CODE
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Refusal(f"base.model: {named} has no config.json that names a model_type: {error!r:.200}") from None
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise Refusal(f"base.model: {named} is of type {kind!r}, which is no decoder that transformers knows")
    if custom:
        raise Refusal(f"base.model: {named} wants its own code to run ({', '.join(custom)}); this is never done here")
    if "quantization_config" in config:
        raise Refusal(f"base.model: {named} is quantized; name the original weights (finetuning.quantization: nf4)")
    if not any(folder.glob("*.safetensors")):
        other = sorted(path.name for suffix in ("*.bin", "*.pt", "*.gguf") for path in folder.glob(suffix))
        raise Refusal(
            f"base.model: {named} has no weights as .safetensors{f', only {other[0]}' if other else ''}; "
            "convert them with transformers' save_pretrained, on a machine that may run what is in them"
        )
    return config


def _tokenizer(folder: Path, named: str) -> tuple[Any, int]:
    """The tokenizer, with a chat template, and how many marks the template has added to its vocabulary."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # whatever the libraries of the formats raise
        raise Refusal(f"base.model: the tokenizer of {named} cannot be loaded: {error!r:.300}") from None
    if not tokenizer.is_fast:
        raise Refusal(f"base.model: {named} has no tokenizer.json; save its tokenizer with transformers once")
    new_marks = 0
    if tokenizer.chat_template is None:
        new_marks = tokenizer.add_special_tokens({"additional_special_tokens": [TURN_START, TURN_END]})
        tokenizer.eos_token, tokenizer.chat_template = TURN_END, CHAT_TEMPLATE
    else:
        _end_turns(tokenizer, named)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return tokenizer, new_marks


def _end_turns(tokenizer: Any, named: str) -> None:
    """Make the mark with which the template ends the assistant's turn the one at which generation stops."""
    chat = [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}]
    try:
        rest = tokenizer.apply_chat_template(chat, tokenize=False).rpartition("2")[2].strip()
    except Exception as error:  # a template is a program, and may raise anything
        raise Refusal(f"base.model: the chat template of {named} fails on a plain chat: {error!r:.300}") from None
    ends = tokenizer(rest, add_special_tokens=False)["input_ids"]
    if ends and ends[0] in tokenizer.added_tokens_decoder and tokenizer.added_tokens_decoder[ends[0]].special:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(ends[0])


def _give_rows_to_marks(folder: Path, tokens: int, rows: int) -> None:
    """Embeddings for marks that are new: the mean of all others, so that none is likelier than another."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    for file in folder.glob("*.safetensors*"):
        file.unlink()  # linked from the download, which stays as it is
    if tokens > rows:
        model.resize_token_embeddings(tokens, mean_resizing=False)
    with torch.no_grad():
        for table in {id(t): t for t in (model.get_input_embeddings(), model.get_output_embeddings()) if t}.values():
            known = min(rows, tokens - 2)
            table.weight[known:tokens] = table.weight[:known].float().mean(0).to(table.weight.dtype)
    (folder / "config.json").unlink()
    model.save_pretrained(folder)


def _embedding_rows(folder: Path, config: dict[str, Any]) -> int:
    text = config.get("text_config", config)
    try:
        return int(text["vocab_size"])
    except (KeyError, TypeError, ValueError):
        raise Refusal(f"base.model: the config.json in {folder} has no vocab_size") from None


def license_of(folder: Path) -> str:
    """The license that the model's card states in its header, or `unknown`."""
    try:
        header = (folder / "README.md").read_text(encoding="utf-8", errors="replace").split("---\n", 2)[1]
        stated = yaml.safe_load(header)
        name = stated.get("license_name") if stated.get("license") == "other" else stated.get("license")
    except (OSError, IndexError, yaml.YAMLError, AttributeError):
        return UNKNOWN_LICENSE
    return str(name or UNKNOWN_LICENSE)
