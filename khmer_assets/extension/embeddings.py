"""Gives an open model a row of its embeddings, and of its head, for each token that its tokenizer was extended by.

A new row begins as the mean of the rows of the old tokens that the new one is made of, which then says nearly what they
said together, while English is predicted as before; random rows take probability from all others. (Yamaguchi et al.
2024, "How Can We Effectively Expand the Vocabulary of LLMs with 0.01GB of Target Language Text?", compare such
beginnings.) Every other weight stays bit for bit; the rows of pruned tokens go.
"""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from khmer_assets.extension.merges import FIGURES, UNPRUNED
from khmer_assets.extension.pruning import parts_of
from khmer_assets.training import held_out
from khmer_assets.training.models import device, load_model
from resources.payload import PayloadRun, Refusal

if TYPE_CHECKING:
    import torch

LOGGED = {"before": "before the extension", "after": "after it", "unpruned": "before its tokens were pruned"}
ROWS_MULTIPLE = 128  # matrix kernels and tensor-parallel engines want the head's rows to be a multiple of it
OLD_TOKENIZER = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt")
WINDOW = 512  # tokens that the models see at a time while they are measured


class Spec(BaseModel):
    """Folders of the base model, of extended_tokenizer and of training_mixture; how much held-out text is scored."""

    base: Path
    tokenizer: Path
    mixture: Path
    max_documents: int


def main(spec: Spec, run: PayloadRun) -> dict[str, Any]:
    """Write the extended model with its tokenizer as a transformers folder; add its figures to `extension.json`.

    Measured are bits a character of the held-out text by language, of the base and of the extended model; where tokens
    were pruned also of the model that still has them, and how many bytes of weights that saves. Raises `Refusal` when
    the tokenizer was not made of this base's, or transformers would not read text by it.
    """
    extend(spec.base, spec.tokenizer, run.output)
    _refuse_other_ids(run.output, spec.mixture)
    figures = json.loads((spec.tokenizer / FIGURES).read_text())
    figures["rows"] = json.loads((run.output / "config.json").read_text())["vocab_size"]
    measured = {"before": spec.base, "after": run.output}
    if (spec.tokenizer / UNPRUNED).exists():
        measured["unpruned"] = run.state / UNPRUNED
        measured["unpruned"].mkdir(exist_ok=True)
        extend(spec.base, spec.tokenizer / UNPRUNED, measured["unpruned"])
        with_all, without = (
            sum(file.stat().st_size for file in folder.glob("*.safetensors"))
            for folder in (measured["unpruned"], run.output)
        )
        figures["bytes_saved"] = with_all - without
    for name, folder in measured.items():
        run.log(f"scoring held-out text with the model {LOGGED[name]}")
        quality, not_scored = held_out.measured(lambda folder=folder: _quality(folder, spec))  # type: ignore[misc]
        if not_scored:
            figures["not_scored"] = not_scored
        for language, measures in (quality or {}).items():
            for measure in ("bits_per_character", "tokens_per_character"):
                figures[f"{measure}_{language}_{name}"] = measures[measure]
    (run.output / FIGURES).write_text(json.dumps(figures, ensure_ascii=False, indent=1))
    return {key: value for key, value in figures.items() if not isinstance(value, list)}


def _refuse_other_ids(folder: Path, mixture: Path) -> None:
    """Beside a model's configuration, transformers may cut text by the pattern of its class instead of the file's."""
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    loaded, own = AutoTokenizer.from_pretrained(folder), Tokenizer.from_file(str(folder / "tokenizer.json"))
    for texts in held_out.validation_texts(mixture, max_documents=100).values():
        if loaded(texts)["input_ids"] != [encoded.ids for encoded in own.encode_batch(texts)]:
            raise Refusal(
                f"transformers reads text with {type(loaded).__name__} in another way than its file says; "
                "take a base of another architecture, or another version of transformers"
            )


def _quality(folder: Path, spec: Spec) -> dict[str, dict[str, float]]:
    from transformers import AutoTokenizer

    model = load_model(folder).to(device()).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    score = held_out.model_scorer(model)
    return held_out.quality_by_language(score, tokenizer, spec.mixture, WINDOW, spec.max_documents)


def extend(base: Path, tokenizer: Path, target: Path) -> None:
    """Write the transformers folder `base` with the tokenizer in `tokenizer`, and a row for each of its tokens, to
    `target`. Raises `Refusal` when `base` has no safetensors or another tokenizer.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    pieces, moved = old_pieces(base, tokenizer)
    names = _token_wise(base)
    files = sorted(base.glob("*.safetensors"))
    if not files:
        raise Refusal(f"{base} holds no *.safetensors; save the base model as safetensors")
    rows = 0
    for file in files:
        with safe_open(file, "pt") as stored:
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118  # it is no mapping
            metadata = stored.metadata()
        for name in names & tensors.keys():
            tensors[name] = with_new_rows(tensors[name], pieces, moved)
            rows = len(tensors[name])
        save_file(tensors, target / file.name, metadata)
    for other in base.iterdir():
        if other.is_file() and other.suffix != ".safetensors" and other.name not in OLD_TOKENIZER:
            shutil.copyfile(other, target / other.name)
    for other in (file for file in tokenizer.iterdir() if file.is_file()):
        shutil.copyfile(other, target / other.name)
    config = json.loads((base / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(_moved({**config, "vocab_size": rows}, moved), indent=2))
    if moved is not None and (generation := base / "generation_config.json").exists():
        (target / generation.name).write_text(json.dumps(_moved(json.loads(generation.read_text()), moved), indent=2))


def _moved(config: dict[str, Any], moved: dict[int, int] | None) -> dict[str, Any]:
    """A configuration with the ids that its tokens have now, such as `eos_token_id`, a number or a list of them."""
    if moved is None:
        return config

    def now(ids: Any) -> Any:
        return [moved[one] for one in ids if one in moved] if isinstance(ids, list) else moved.get(ids)

    return {name: now(value) if name.endswith("_token_id") else value for name, value in config.items()}


def old_pieces(base: Path, tokenizer: Path) -> tuple[dict[int, list[int]], dict[int, int] | None]:
    """The ids of the base's tokens that each new token of the extended tokenizer is made of, by its id; and, where
    tokens were pruned, the new ids of the base's that are left, by their old ones.

    Raises `Refusal` when the tokenizer was not made of this base's.
    """
    old, new = (json.loads((folder / "tokenizer.json").read_text()) for folder in (base, tokenizer))
    known = {**old["model"]["vocab"], **{token["content"]: token["id"] for token in old["added_tokens"]}}
    vocabulary, merges = new["model"]["vocab"], list(map(parts_of, new["model"]["merges"]))
    pruned = (tokenizer / UNPRUNED).exists()
    kept = [token for token in sorted(known, key=known.__getitem__) if token in vocabulary or not pruned]
    places = list(range(len(kept))) if pruned else [known[token] for token in kept]
    of_base = [parts for parts in map(parts_of, old["model"]["merges"]) if "".join(parts) in vocabulary]
    if merges[: len(of_base)] != of_base or [vocabulary.get(token) for token in kept] != places:
        raise Refusal(f"the tokenizer in {tokenizer} is no extension of that in {base}; materialize both again")
    pieces = {token: [known[token]] for token in kept}
    for left, right in merges[len(of_base) :]:
        pieces.setdefault(left + right, pieces[left] + pieces[right])
    of_new = {vocabulary[token]: made_of for token, made_of in pieces.items() if token not in known}
    moved = {known[token]: place for token, place in zip(kept, places, strict=True)}
    return of_new, moved if pruned else None


def with_new_rows(
    rows: "torch.Tensor", pieces: dict[int, list[int]], moved: dict[int, int] | None = None
) -> "torch.Tensor":
    """`rows` (one a token) with those of the new tokens, each the mean of its pieces', up to the next `ROWS_MULTIPLE`;
    where tokens were pruned, only those of the others, which `moved` as it says.

    Rows that no token has are the mean of all, so that the head gives them no more than an average token.
    """
    import torch

    kept = rows if moved is None else rows[list(moved)]
    last = max(pieces, default=len(kept) - 1)
    number = max(len(kept), -(-(last + 1) // ROWS_MULTIPLE) * ROWS_MULTIPLE)
    more = rows.float().mean(0, keepdim=True).expand(number - len(kept), *rows.shape[1:])
    extended = torch.cat([kept, more.to(rows.dtype)])
    for identity, made_of in pieces.items():
        extended[identity] = rows[made_of].float().mean(0).to(rows.dtype)
    return extended


def _token_wise(base: Path) -> set[str]:
    """The names of the parameters that have a row, or a number, a token: the embeddings' and the head's."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base))
    of_tokens = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
    return {
        f"{name}.{parameter}"
        for name, module in model.named_modules()
        if id(module) in of_tokens
        for parameter, _ in module.named_parameters()
    }
