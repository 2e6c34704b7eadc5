"""Every number that describes a model, typed: the recipe and the catalogue of sources that it names.

What belongs here: settings that change an artifact. What does not: where the artifacts are kept, ports' owners or
how many cores work on them (`resources/`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    model_validator,
)

SAMPLE_RECIPE = Path(__file__).parent / "recipes" / "sample.yaml"
RECIPE_VARIABLE = "KHMER_RECIPE"
OFFENSIVE_WORDS = Path(__file__).parent / "recipes" / "offensive_words.txt"

Ratio = Annotated[float, Field(ge=0, le=1)]
PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]*$", max_length=64)]
TopNgram = Annotated[int, Field(ge=2, le=4)]
DuplicateNgram = Annotated[int, Field(ge=5, le=10)]
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


class PageRules(Settings):
    """Limits on what Gopher and FineWeb measure on a page (`khmer_assets/corpus/measures.py`). Shares from 0 to 1."""

    min_words: PositiveInt = 50
    max_words: PositiveInt = 100_000
    min_word_length: PositiveFloat
    max_word_length: PositiveFloat
    min_alphabetic_words: Ratio
    stop_words: Annotated[tuple[str, ...], Field(min_length=1)]
    min_stop_words: Annotated[int, Field(ge=0)] = 2
    max_hashes: PositiveFloat = 0.1
    max_ellipses: PositiveFloat = 0.1
    max_line_breaks: PositiveFloat
    max_duplicate_lines: Ratio
    max_duplicate_line_characters: Ratio = 0.1
    min_punctuated_lines: Ratio
    max_bullet_lines: Ratio = 0.9
    max_ellipsis_lines: Ratio = 0.3
    max_top_ngrams: dict[TopNgram, PositiveFloat]
    max_duplicate_ngrams: dict[DuplicateNgram, PositiveFloat]

    @model_validator(mode="after")
    def _limits_in_order(self) -> PageRules:
        for least, most in (("min_words", "max_words"), ("min_word_length", "max_word_length")):
            if getattr(self, least) >= getattr(self, most):
                raise ValueError(f"{least} ({getattr(self, least)}) must be below {most}")
        return self


class KhmerPages(PageRules):
    """The defaults are FineWeb2's for khm_Khmr (its configuration of that name and its pipeline)."""

    min_word_length: PositiveFloat = 2
    max_word_length: PositiveFloat = 13
    min_alphabetic_words: Ratio = 0.905
    stop_words: Annotated[tuple[str, ...], Field(min_length=1)] = (
        "មាន", "បាន", "ដែល", "ជា", "និង", "នៅ", "របស់", "ក្នុង", "ថា", "នេះ", "នៃ", "ហើយ", "ទៅ", "ដោយ"
    )  # fmt: skip
    max_line_breaks: PositiveFloat = 0.361
    max_duplicate_lines: Ratio = 0.917
    min_punctuated_lines: Ratio = 0.0
    max_top_ngrams: dict[TopNgram, PositiveFloat] = {2: 0.594, 3: 0.523, 4: 0.438}
    max_duplicate_ngrams: dict[DuplicateNgram, PositiveFloat] = {
        5: 0.175, 6: 0.16, 7: 0.148, 8: 0.135, 9: 0.121, 10: 0.109
    }  # fmt: skip


class EnglishPages(PageRules):
    """The defaults are Gopher's (Rae et al. 2021, section A.1) and, for lines, FineWeb's (Penedo et al. 2024)."""

    min_word_length: PositiveFloat = 3
    max_word_length: PositiveFloat = 10
    min_alphabetic_words: Ratio = 0.8
    stop_words: Annotated[tuple[str, ...], Field(min_length=1)] = (
        "the", "be", "to", "of", "and", "that", "have", "with"
    )  # fmt: skip
    max_line_breaks: PositiveFloat = 0.3
    max_duplicate_lines: Ratio = 0.3
    min_punctuated_lines: Ratio = 0.12
    max_top_ngrams: dict[TopNgram, PositiveFloat] = {2: 0.2, 3: 0.18, 4: 0.16}
    max_duplicate_ngrams: dict[DuplicateNgram, PositiveFloat] = {
        5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.1
    }  # fmt: skip


def _read_words(value: Any, about: ValidationInfo) -> Any:
    """The lines of the file that the recipe names, so that a changed list is a changed recipe."""
    if value is None:
        file = OFFENSIVE_WORDS
    elif isinstance(value, str):
        file = Path((about.context or {}).get("folder", ".")) / value
    else:
        return value
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"expected a text file with a word a line: {error}") from None
    return [line for line in lines if line and not line.startswith("#")]


class Filters(Settings):
    """A document is removed when a measure is beyond its limit. Lengths in characters, ratios between 0 and 1.

    `short_texts`: texts of fewer words than the pages' `min_words` are removed, or kept and not judged as pages.
    `offensive_words`: a text file with a word a line, relative to the recipe; null: the project's own short list.
    """

    languages: Annotated[list[Language], Field(min_length=1)]
    min_language_score: Ratio
    min_characters: PositiveInt
    max_characters: PositiveInt
    max_symbol_ratio: Ratio
    max_foreign_ratio: Ratio = 0.2
    max_music_ratio: Ratio = 0.1
    max_offensive_ratio: Ratio = 0.05
    offensive_words: Annotated[tuple[str, ...], BeforeValidator(_read_words)] = Field(
        default=None, validate_default=True
    )
    short_texts: Literal["remove", "keep"] = "remove"
    khmer_pages: KhmerPages = KhmerPages()
    english_pages: EnglishPages = EnglishPages()

    @model_validator(mode="after")
    def _lengths_in_order(self) -> Filters:
        if self.min_characters >= self.max_characters:
            raise ValueError(f"min_characters ({self.min_characters}) must be below max_characters")
        return self


class Decontamination(Settings):
    """`evaluation_sets`: each the settings of a source of kind `files`, paths relative to the catalogue. A document
    that shares a run of `ngram` characters (white space aside) with one of them is removed; 50 characters of Khmer
    are about the 13 words of GPT-3 (Brown et al. 2020, appendix C)."""

    ngram: Annotated[int, Field(ge=8, le=1000)] = 50
    evaluation_sets: list[dict[str, Any]] = []


class Deduplication(Settings):
    """MinHash over character n-grams, then embeddings, where all three `semantic_` thresholds must be reached.

    Without an embedder there is no second search.
    """

    permutations: Annotated[int, Field(ge=16, le=1024)]
    jaccard: Annotated[float, Field(gt=0, lt=1)]
    ngram: Annotated[int, Field(ge=1, le=32)]
    embedder: str | None
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

    rank: Annotated[int, Field(ge=1, le=512)]
    alpha: PositiveInt
    dropout: Ratio
    learning_rate: PositiveFloat
    warmup_ratio: Ratio
    batch_size: PositiveInt
    epochs: PositiveInt
    checkpoint_every: PositiveInt


def _below_the_recipe(path: Path, about: ValidationInfo) -> Path:
    return (about.context or {}).get("folder", Path()).absolute() / path


class Adapter(Settings):
    """A LoRA adapter for one domain, trained on the merged model and served beside it as `khmer-<name>`.

    `chats`: a JSONL file, relative to the recipe; a line is {"messages": [{"role": ..., "content": ...}, ...]}.
    `min_answer_accuracy`: the gate, a share of the held-out chats that must be answered exactly. `question` is what
    it is asked when it is served.
    """

    name: Name
    chats: Annotated[Path, AfterValidator(_below_the_recipe)]
    question: str
    min_answer_accuracy: Ratio
    finetuning: Finetuning


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
    """Which variant is served, and the gates that it must pass. llama.cpp serves a GGUF file, vLLM the others."""

    variant: Literal["merged", "pruned", "awq", "gguf Q4_K_M", "gguf Q5_K_M", "gguf Q8_0"]
    max_bits_per_character: PositiveFloat
    min_answer_accuracy: Ratio

    @property
    def artifact(self) -> tuple[str, str | None]:
        """The asset that makes the variant, and the partition of it that is the variant, if it has partitions."""
        name, _, quantization = self.variant.partition(" ")
        return f"{name}_model", quantization or None


class Tier(Settings):
    """What a key may use: requests and tokens (prompt and answer) a minute, answers at a time, and which models.

    `models`: names as /v1/models shows them; `*` stands for any characters.
    """

    requests_a_minute: PositiveInt = 60
    tokens_a_minute: PositiveInt = 60_000
    streams: PositiveInt = 4
    models: Annotated[list[str], Field(min_length=1)] = ["*"]


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"no regular expression: {error}") from None
    return pattern


class Gateway(Settings):
    """The front door. `wait_seconds`: how long a request waits for an engine when none runs.

    `redact`: regular expressions; what they match is replaced in audit records. `retention_days`: of audit records.
    `tls_certificate`, `tls_key`: PEM files; then the gateway speaks https.
    """

    tiers: dict[Name, Tier] = {"standard": Tier()}
    max_requests: PositiveInt = 1000
    max_body_bytes: PositiveInt = 1_048_576
    body_seconds: PositiveFloat = 30
    request_seconds: PositiveFloat = 600
    wait_seconds: PositiveFloat = 120
    redact: list[Annotated[str, AfterValidator(_compiles)]] = []
    retention_days: PositiveInt = 90
    tls_certificate: Path | None = None
    tls_key: Path | None = None

    @model_validator(mode="after")
    def _certificate_and_key(self) -> Gateway:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key must be given together")
        return self


EngineValue = bool | int | float | str


class ServingBenchmark(Settings):
    """Load on the served model: at each number of `users`, `requests` answers of `answer_tokens` tokens each.

    Users ask one question after the other; each asks two at least, however many they are.
    """

    users: Annotated[list[PositiveInt], Field(min_length=1)] = [1, 2, 4, 8, 16, 32, 64, 100]
    requests: PositiveInt = 200
    answer_tokens: PositiveInt = 128


class ServingTuning(Settings):
    """The search for vLLM's settings with the highest throughput at `users` users, `trials` of them.

    The 95th percentile of the time to the first token must not be above `max_ttft_ms`. `search`: values by setting.
    """

    users: PositiveInt = 64
    requests: PositiveInt = 256
    answer_tokens: PositiveInt = 128
    max_ttft_ms: PositiveFloat = 1000
    trials: PositiveInt = 20
    search: Annotated[dict[Name, Annotated[list[EngineValue], Field(min_length=1)]], Field(min_length=1)] = {
        "max_num_seqs": [16, 32, 64, 128, 256, 512],
        "max_num_batched_tokens": [512, 1024, 2048, 4096, 8192, 16384],
        "long_prefill_token_threshold": [0, 256, 1024],
    }


class Serving(Settings):
    """`question` is what `make run` asks the served model. `replicas`: engines behind the gateway.

    `replace`: a new release starts `beside` the old one, or `after` it, on a GPU with no room for both.
    `drain_seconds`: how long running answers may take to end on the old release. `engine`: the engine's own settings
    (vLLM's or, for a GGUF file, those of xllamacpp's `CommonParams`), where `serving_tuning` shall not choose.
    """

    port: Annotated[int, Field(ge=1024, le=65535)]
    max_model_length: PositiveInt
    question: str
    replicas: Annotated[int, Field(ge=1, le=64)] = 1
    replace: Literal["beside", "after"] = "beside"
    drain_seconds: PositiveFloat = 300
    engine: dict[str, EngineValue] = {}
    gateway: Gateway = Gateway()
    benchmark: ServingBenchmark = ServingBenchmark()
    tuning: ServingTuning = ServingTuning()


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
    decontamination: Decontamination = Decontamination()
    deduplication: Deduplication
    mixture: Mixture
    tokenizer: Tokenizer
    pretraining: Pretraining
    instructions: Instructions
    finetuning: Finetuning
    adapters: list[Adapter] = []
    compression: Compression
    evaluation: Evaluation
    release: Release
    serving: Serving

    @model_validator(mode="after")
    def _release_is_made(self) -> Recipe:
        _, quantization = self.release.artifact
        if quantization is not None and quantization not in self.compression.gguf:
            raise ValueError(f"release.variant ({self.release.variant}) must be in compression.gguf")
        if quantization is not None and self.adapters:
            raise ValueError(f"release.variant ({self.release.variant}) is served without adapters; set adapters: []")
        return self

    @model_validator(mode="after")
    def _adapters_have_names_of_their_own(self) -> Recipe:
        names = [adapter.name for adapter in self.adapters]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two adapters are named {twice[0]!r}; give each its own name")
        return self

    def adapter(self, name: str) -> Adapter:
        """The adapter of that name."""
        return next(adapter for adapter in self.adapters if adapter.name == name)

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
        return model.model_validate(values, context={"folder": path.parent})
    except ValidationError as error:
        lines = [
            f"{path}: {prefix}{'.'.join(map(str, e['loc'] or ['recipe']))}: {e['msg']} (given: {e['input']!r:.80})"
            for e in error.errors()
        ]
        raise RecipeError("\n".join(lines)) from None
