"""Packs a released model with its model card and checksums into one archive, and unpacks such an archive safely."""

import filecmp
import hashlib
import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import IO, Any

import yaml
from pydantic import BaseModel

from resources.payload import PayloadRun, Refusal
from resources.storage import markdown_table, size_of_folder

COMPRESSION_LEVEL = 10
FIGURES = "bundle.json"
CARD = "README.md"
CHECKSUMS = "SHA256SUMS"
TAR_OVERHEAD = 1 << 20  # headers and padding of the few files of a model stay well below


class Spec(BaseModel):
    """`model` is the released variant's folder, `recipe` the settings it was made with, `sources` the catalogue."""

    model: Path
    variant: str
    recipe: dict[str, Any]
    sources: list[dict[str, Any]]


def main(spec: Spec, run: PayloadRun) -> dict[str, Any]:
    """Write `<recipe>-<variant>.tar.zst`, its README.md and SHA256SUMS, and `bundle.json` with the figures returned.

    `bit_identical` tells whether unpacking the archive gives back each file of the model bit by bit, with the checksums
    that the archive names.
    """
    name = bundle_name(spec)
    (run.output / CARD).write_text(model_card(spec), encoding="utf-8")
    files = {path.relative_to(spec.model).as_posix(): path for path in spec.model.rglob("*") if path.is_file()}
    files[CARD] = run.output / CARD
    sums = {member: _sha256(path) for member, path in sorted(files.items())}
    (run.output / CHECKSUMS).write_text("".join(f"{digest}  {member}\n" for member, digest in sums.items()))
    files[CHECKSUMS] = run.output / CHECKSUMS
    archive = run.output / f"{name}.tar.zst"
    run.log(f"packing {len(files)} files")
    pack(files, archive, name)
    size = sum(path.stat().st_size for path in files.values())
    run.log("unpacking again to compare")
    unpacked = run.state / "unpacked"
    shutil.rmtree(unpacked, ignore_errors=True)  # of a run that was killed
    unpack(archive, unpacked, size + TAR_OVERHEAD)
    identical = {p.relative_to(unpacked / name).as_posix() for p in unpacked.rglob("*") if p.is_file()} == files.keys()
    identical = identical and all(
        filecmp.cmp(unpacked / name / member, path, shallow=False) for member, path in files.items()
    )
    identical = identical and all(_sha256(unpacked / name / member) == digest for member, digest in sums.items())
    figures = {
        "files": len(files),
        "bytes": size,
        "archive_bytes": archive.stat().st_size,
        "sha256": _sha256(archive),
        "bit_identical": identical,
    }
    (run.output / FIGURES).write_text(json.dumps(figures, indent=1))
    return figures


def pack(files: dict[str, Path], archive: Path, folder: str) -> None:
    """Write `files`, by their names in the archive, under `folder` into a tar compressed with zstd.

    The same contents give the same bytes: names are sorted, and owners, modes and times are fixed.
    """
    import zstandard

    # with threads the blocks, and so the bytes, do not depend on how many of them there are
    compressor = zstandard.ZstdCompressor(level=COMPRESSION_LEVEL, threads=-1, write_checksum=True)
    with (
        archive.open("wb") as raw,
        compressor.stream_writer(raw) as compressed,
        tarfile.open(fileobj=compressed, mode="w|", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name, path in sorted(files.items()):
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size, member.mode, member.mtime = path.stat().st_size, 0o644, 0
            with path.open("rb") as content:
                tar.addfile(member, content)


def unpack(archive: Path, folder: Path, max_bytes: int) -> None:
    """Unpack a bundle into `folder`. At most `max_bytes` are decompressed, the tar's headers included.

    Raises `Refusal` for anything but files, for files outside `folder`, for a larger archive and for a broken one.
    """
    import zstandard

    try:
        with (
            archive.open("rb") as raw,
            zstandard.ZstdDecompressor().stream_reader(raw) as plain,
            tarfile.open(fileobj=_Bounded(plain, max_bytes, archive), mode="r|") as tar,
        ):
            for member in tar:
                if not member.isreg():
                    raise Refusal(f"{archive}: {member.name!r} is no regular file; a bundle holds nothing else")
                target = (folder / member.name).resolve()
                if not target.is_relative_to(folder.resolve()) or target.exists():
                    raise Refusal(f"{archive}: {member.name!r} would be outside of {folder} or replace another file")
                tar.extract(member, folder, filter="data")
    except (tarfile.TarError, zstandard.ZstdError) as error:
        raise Refusal(f"{archive} is no intact tar.zst archive: {error}") from None


class _Bounded(io.RawIOBase):
    """Passes reads on until `limit` bytes have gone by, so that a small archive cannot fill a disk or memory."""

    def __init__(self, source: IO[bytes], limit: int, archive: Path):
        self.source, self.left, self.limit, self.archive = source, limit, limit, archive

    def read(self, size: int = -1) -> bytes:
        data = self.source.read(min(size, self.left + 1) if size >= 0 else self.left + 1)
        self.left -= len(data)
        if self.left < 0:
            raise Refusal(f"{self.archive} unpacks to more than {self.limit:,} bytes; raise the limit if you trust it")
        return data


def model_card(spec: Spec) -> str:
    """The bundle's README: what the model is, what it was trained on and how, its measures, and how to run it."""
    import polars as pl

    recipe = spec.recipe
    name = bundle_name(spec)
    file = next(spec.model.glob("*.gguf"), None)
    sources = pl.DataFrame([{key: s[key] for key in ("name", "kind", "language", "license")} for s in spec.sources])
    facts = {
        **(_gguf_facts(file) if file else _transformers_facts(spec.model)),
        "context": f"{recipe['pretraining']['context_length']} tokens",
        "bytes": f"{size_of_folder(spec.model):,}",
    }
    measured = {
        f"{file.stem}: {key}": f"{value:.6g}" if isinstance(value, float) else str(value)
        for file in sorted(spec.model.glob("*.json"))
        if file.name in ("merge.json", "pruning.json", "awq.json", "gguf.json")
        for key, value in json.loads(file.read_text()).items()
    }
    settings = {key: recipe[key] for key in ("mixture", "pretraining", "finetuning", "compression")}
    return f"""---
language: [km, en]
library_name: {"gguf" if file else "transformers"}
pipeline_tag: text-generation
---
# {name}

A language model for Khmer and English, the variant `{spec.variant}` of the recipe `{recipe["name"]}`.

{_table(facts)}

## Training data

{markdown_table(sources)}

The licenses of the sources hold for what is made from them; read them before you pass the model on.

## Training settings

```yaml
{yaml.safe_dump(settings, sort_keys=False, allow_unicode=True).strip()}
```

## Measures

{_table(measured)}

## Use

Check the files first: `sha256sum --check {CHECKSUMS}`.{_gguf_use(file, recipe) if file else _use(name, recipe)}"""


def bundle_name(spec: Spec) -> str:
    """The name of the archive and of the folder in it."""
    return f"{spec.recipe['name']}-{spec.variant}".replace(" ", "-")


def _gguf_use(file: Path, recipe: dict[str, Any]) -> str:
    return f"""

```sh
llama-server --model {file.name} --ctx-size {recipe["serving"]["max_model_length"]}
```
"""


def _use(name: str, recipe: dict[str, Any]) -> str:
    return f""" Weights in compressed-tensors need the package of that name.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForCausalLM.from_pretrained("{name}", dtype="auto")
chat = [{{"role": "user", "content": {json.dumps(recipe["serving"]["question"], ensure_ascii=False)}}}]
inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
answer = model.generate(**inputs, max_new_tokens=64, do_sample=False)
print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
```

```sh
vllm serve {name} --max-model-len {recipe["serving"]["max_model_length"]}
```
"""


def _transformers_facts(model: Path) -> dict[str, str]:
    config = json.loads((model / "config.json").read_text())
    return {
        "architecture": config["model_type"],
        "parameters": f"{_parameters(model):,}",
        "vocabulary": f"{config['vocab_size']:,} tokens",
        "weights": _precision(config),
    }


def _gguf_facts(file: Path) -> dict[str, str]:
    from gguf import GGUFReader

    reader = GGUFReader(file)
    return {
        "architecture": reader.fields["general.architecture"].contents(),
        "parameters": f"{sum(int(tensor.n_elements) for tensor in reader.tensors):,}",
        "vocabulary": f"{len(reader.fields['tokenizer.ggml.tokens'].data):,} tokens",
        "weights": f"{file.stem} in GGUF",
    }


def _parameters(model: Path) -> int:
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


def _precision(config: dict[str, Any]) -> str:
    groups = config.get("quantization_config", {}).get("config_groups", {})
    bits = {group["weights"]["num_bits"] for group in groups.values()}
    return f"{'/'.join(map(str, sorted(bits)))}-bit in compressed-tensors" if bits else str(config["dtype"])


def _table(values: dict[str, str]) -> str:
    import polars as pl

    return markdown_table(pl.DataFrame({"": list(values), "value": list(values.values())}))


def _sha256(path: Path) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
