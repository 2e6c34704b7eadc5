"""Every number that describes a model, typed: the recipe and the catalogue of sources that it names.

What belongs here: settings that change an artifact. What does not: where the artifacts are kept, ports' owners or
how many cores work on them (`resources/`).
"""

from __future__ import annotations

import hashlib
import json
import os
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

SAMPLE_RECIPE = Path(__file__).parent / "recipes" / "sample.yaml"
RECIPE_VARIABLE = "KHMER_RECIPE"

Ratio = Annotated[float, Field(ge=0, le=1)]
PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]*$", max_length=64)]
Language = Literal["khm", "eng"]
Quantization = Literal["Q4_K_M", "Q5_K_M", "Q8_0"]


S = TypeVar("S", bound="Settings")


class RecipeError(ValueError):
    """A recipe or catalogue that cannot be used; the message says where, what was given and what is expected."""


class Settings(BaseModel):
    """Unknown keys are errors, so that a misspelled setting is never silently ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Normalization(Settings):
    """`zero_width_space`: whether U+200B word marks stay in the text. `fold_deprecated`: replace deprecated letters."""

    zero_width_space: Literal["remove", "keep"]
    fold_deprecated: bool


class Filters(Settings):
    """A document is removed when a measure is beyond its limit. Lengths in characters, ratios between 0 and 1."""

    languages: Annotated[list[Language], Field(min_length=1)]
    min_language_score: Ratio
    min_characters: PositiveInt
    max_characters: PositiveInt
    max_symbol_ratio: Ratio
    max_duplicate_line_ratio: Ratio
    max_duplicate_ngram_ratio: Ratio

    @model_validator(mode="after")
    def _lengths_in_order(self) -> Filters:
        if self.min_characters >= self.max_characters:
            raise ValueError(f"min_characters ({self.min_characters}) must be below max_characters")
        return self


class Deduplication(Settings):
    """MinHash over character n-grams, then embeddings, where all three `semantic_` thresholds must be reached."""

    permutations: Annotated[int, Field(ge=16, le=1024)]
    jaccard: Annotated[float, Field(gt=0, lt=1)]
    ngram: Annotated[int, Field(ge=1, le=32)]
    embedder: str
    chunk_characters: PositiveInt
    semantic_cosine: Ratio
    semantic_jaccard: Ratio
    semantic_length_ratio: Ratio
    hnsw_ef: PositiveInt


class Mixture(Settings):
    """`weights`: share of the training characters by language. `validation_ratio`: share of the documents held out."""

    weights: dict[Language, PositiveFloat]
    validation_ratio: Annotated[float, Field(gt=0, lt=0.5)]

    @model_validator(mode="after")
    def _weights_sum_to_one(self) -> Mixture:
        if abs(sum(self.weights.values()) - 1) > 1e-6:
            raise ValueError(f"weights must sum to 1, they sum to {sum(self.weights.values()):g}")
        return self


class Tokenizer(Settings):
    """`existing` names a tokenizer to use as it is; `vocabulary_size` is then ignored."""

    vocabulary_size: Annotated[int, Field(ge=300, le=500_000)]
    existing: str | None


class Pretraining(Settings):
    """The decoder and its training. A step is `batch_size` sequences of `context_length` tokens."""

    architecture: Literal["qwen3", "qwen2", "llama", "gpt2"]
    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    layers: PositiveInt
    attention_heads: PositiveInt
    key_value_heads: PositiveInt
    context_length: Annotated[int, Field(ge=16)]
    initial_checkpoint: str | None
    precision: Literal["auto", "bfloat16", "float32"]
    batch_size: PositiveInt
    learning_rate: PositiveFloat
    warmup_ratio: Ratio
    weight_decay: Annotated[float, Field(ge=0)]
    steps: PositiveInt
    checkpoint_every: PositiveInt

    @model_validator(mode="after")
    def _heads_divide(self) -> Pretraining:
        if self.hidden_size % self.attention_heads:
            raise ValueError(f"hidden_size ({self.hidden_size}) must be a multiple of attention_heads")
        if self.attention_heads % self.key_value_heads:
            raise ValueError(f"attention_heads ({self.attention_heads}) must be a multiple of key_value_heads")
        return self


class Split(Settings):
    """Shares of the chats; they must sum to 1."""

    train: Ratio
    validation: Ratio
    test: Ratio

    @model_validator(mode="after")
    def _sums_to_one(self) -> Split:
        if abs(self.train + self.validation + self.test - 1) > 1e-6:
            raise ValueError("train, validation and test must sum to 1")
        return self


class Instructions(Settings):
    """How many chats the generator composes, and how all chats are split."""

    generated_chats: Annotated[int, Field(ge=10)]
    split: Split


class Finetuning(Settings):
    """LoRA on every Linear layer but the output head. A step is `batch_size` chats."""

    rank: PositiveInt
    alpha: PositiveInt
    dropout: Ratio
    learning_rate: PositiveFloat
    warmup_ratio: Ratio
    batch_size: PositiveInt
    epochs: PositiveInt
    checkpoint_every: PositiveInt


class Compression(Settings):
    """Calibration texts are half Khmer and half English; `calibration_length` is in tokens."""

    calibration_samples: PositiveInt
    calibration_length: PositiveInt
    awq_group_size: PositiveInt
    prune_ratio: Ratio
    gguf: Annotated[list[Quantization], Field(min_length=1)]


class Evaluation(Settings):
    """`max_documents` held-out documents a language are scored; `prompts` are answered by every variant."""

    max_documents: PositiveInt
    max_new_tokens: PositiveInt
    prompts: Annotated[list[str], Field(min_length=1)]


class Release(Settings):
    """Which variant is served, and the gates that it must pass."""

    variant: Literal["merged", "pruned", "awq"]
    max_bits_per_character: PositiveFloat
    min_answer_accuracy: Ratio


class Serving(Settings):
    """`question` is what `make run` asks the served model."""

    port: Annotated[int, Field(ge=1024, le=65535)]
    max_model_length: PositiveInt
    question: str


class Source(Settings):
    """One entry of the catalogue: a partition of every asset from `raw_corpus` to `deduplicated_corpus`.

    `settings` belongs to the source's kind; `khmer_assets/corpus/sources/` documents each kind's keys.
    """

    name: Name
    kind: Literal["files", "parquet", "website", "wikipedia", "common_crawl", "generated"]
    language: Language | None = None
    license: str
    settings: dict[str, Any]


class Recipe(Settings):
    """A model from its sources to its serving."""

    name: Name
    seed: int
    catalogue: Path
    normalization: Normalization
    filters: Filters
    deduplication: Deduplication
    mixture: Mixture
    tokenizer: Tokenizer
    pretraining: Pretraining
    instructions: Instructions
    finetuning: Finetuning
    compression: Compression
    evaluation: Evaluation
    release: Release
    serving: Serving

    @classmethod
    def load(cls, path: Path) -> Recipe:
        """Read and check a recipe file. Raises `RecipeError` with one line a mistake."""
        values = _read_yaml(path)
        recipe = _validated(cls, values, path)
        return recipe.model_copy(update={"catalogue": (path.parent / recipe.catalogue).resolve()})

    @classmethod
    def current(cls) -> Recipe:
        """The recipe that the environment variable KHMER_RECIPE names, else the embedded sample."""
        return cls.load(Path(os.environ.get(RECIPE_VARIABLE) or SAMPLE_RECIPE))

    @cached_property
    def sources(self) -> dict[str, Source]:
        """The catalogue's entries by name, in its order. Raises `RecipeError` with one line a mistake."""
        entries = _read_yaml(self.catalogue).get("sources")
        if not isinstance(entries, list) or not entries:
            raise RecipeError(f"{self.catalogue}: expected a list of sources under the key 'sources', found none")
        sources: dict[str, Source] = {}
        for number, entry in enumerate(entries):
            source = _validated(Source, entry, self.catalogue, f"sources.{number}.")
            if source.name in sources:
                raise RecipeError(f"{self.catalogue}: two sources are named {source.name!r}; give each its own name")
            sources[source.name] = source
        return sources

    def version(self, number: int, *parts: str) -> str:
        """A code version: `number`, raised when the code changes meaning, and a digest of the named parts.

        >>> Recipe.load(SAMPLE_RECIPE).version(1, "tokenizer")[:2]
        '1-'
        """
        read = {part: self.model_dump(mode="json")[part] for part in parts}
        return f"{number}-{digest_of(read)[:12]}"


def digest_of(value: Any) -> str:
    """SHA-256 of a JSON-compatible value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(
            f"{path}: no such file; name an existing one (the recipe is set by {RECIPE_VARIABLE})"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise RecipeError(f"{path}: cannot be read as YAML: {error}") from None
    if not isinstance(values, dict):
        raise RecipeError(f"{path}: expected keys and values, found {type(values).__name__}")
    return values


def _validated(model: type[S], values: Any, path: Path, prefix: str = "") -> S:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = [
            f"{path}: {prefix}{'.'.join(map(str, e['loc']))}: {e['msg']} (given: {e['input']!r:.80})"
            for e in error.errors()
        ]
        raise RecipeError("\n".join(lines)) from None
