"""The model card: what a released model is, what it was trained on and how, its measures, and how to run it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from khmer_assets.evaluation.measures import Measure
from khmer_assets.evaluation.report import INTERVALS
from khmer_assets.foundation.files import size_of_folder
from khmer_assets.foundation.tables import markdown_table
from khmer_assets.training.models import saved_parameters

CHECKSUMS = "SHA256SUMS"


def model_card(
    name: str,
    variant: str,
    model: Path,
    recipe: dict[str, Any],
    sources: list[dict[str, Any]],
    base: dict[str, Any] | None,
    scores: Sequence[Measure] = (),
) -> str:
    """The bundle's README: `name` is the bundle's, `model` the folder of the released `variant`, `recipe` the settings
    that it was made with, `sources` the catalogue, `base` the record of the open model that it began with, `scores`
    what it was measured on."""
    file = next(model.glob("*.gguf"), None)
    listed = pl.DataFrame([{key: s[key] for key in ("name", "kind", "language", "license")} for s in sources])
    learned = [Path(path).name for path in recipe["instructions"]["files"]]
    learned += [f"{entry['name']} ({entry['kind']}, {entry['license']})" for entry in recipe["instructions"]["sources"]]
    chats = f"Chats: {', '.join(learned)}." if learned else "Chats: those of the project's sample."
    facts = {
        **(
            {"base": f"{base['model']} {base['revision'][:12]}".strip(), "license of the base": base["license"]}
            if base
            else {}
        ),
        **(_gguf_facts(file) if file else _transformers_facts(model)),
        "trained on": f"texts of at most {recipe['context_length']} tokens",
        "bytes": f"{size_of_folder(model):,}",
    }
    measured = {
        f"{file.stem}: {key}": f"{value:.6g}" if isinstance(value, float) else str(value)
        for file in sorted(model.glob("*.json"))
        if file.name in ("merge.json", "pruning.json", "awq.json", "gguf.json")
        for key, value in json.loads(file.read_text()).items()
    }
    tasks = pl.DataFrame(
        [
            {"task": f"{one['task']}: {one['metric']}" + ("" if one["higher_is_better"] else " ↓")}
            | {"value": one["value"], "between": f"{one['low']:.4g} and {one['high']:.4g}", "items": one["items"]}
            for one in (measure.told() for measure in scores)
        ]
    )
    stages = ("base", "mixture", "extension", "pretraining", "finetuning", "compression")
    settings = {key: recipe[key] for key in stages if recipe.get(key)}
    return f"""---
language: [km, en]
library_name: {"gguf" if file else "transformers"}
pipeline_tag: text-generation
---
# {name}

A language model for Khmer and English, the variant `{variant}` of the recipe `{recipe["name"]}`.

{_table(facts)}

## Training data

{markdown_table(listed) if sources else "No corpus."}

{chats}

The licenses of base, sources and chats hold for what is made from them; read them before you pass the model on.

## Training settings

```yaml
{yaml.safe_dump(settings, sort_keys=False, allow_unicode=True).strip()}
```

## Evaluation

{INTERVALS + chr(10) * 2 + markdown_table(tasks) if scores else "Not measured."}

## Measures

{_table(measured)}

## Use

Check the files first: `sha256sum --check {CHECKSUMS}`.{_gguf_use(file, recipe) if file else _use(name, recipe)}"""


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
        "parameters": f"{saved_parameters(model):,}",
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


def _precision(config: dict[str, Any]) -> str:
    groups = config.get("quantization_config", {}).get("config_groups", {})
    bits = {group["weights"]["num_bits"] for group in groups.values()}
    return f"{'/'.join(map(str, sorted(bits)))}-bit in compressed-tensors" if bits else str(config["dtype"])


def _table(values: dict[str, str]) -> str:
    return markdown_table(pl.DataFrame({"": list(values), "value": list(values.values())}))
