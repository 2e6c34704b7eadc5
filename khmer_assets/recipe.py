"""A recipe: the settings of all stages, put together and read from YAML.

Nothing is set here: each part stands, with its defaults and limits, in the module that obeys it. Settings change what
is made; where it is kept and how many cores work on it is the business of `resources/`.
"""

import os
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PrivateAttr, model_validator

from khmer_assets.adapters.adapter import Adapter
from khmer_assets.base_model.bring_in import Base
from khmer_assets.compression.variants import Compression, reason_against
from khmer_assets.corpus.decontamination import Decontamination
from khmer_assets.corpus.deduplication import Deduplication
from khmer_assets.corpus.filters import Filters
from khmer_assets.corpus.mixture import Mixture
from khmer_assets.evaluation.evaluate import Evaluation
from khmer_assets.extension.merges import Extension
from khmer_assets.failures.find import NAME as FAILURES
from khmer_assets.failures.find import Failures
from khmer_assets.finetuning.runs import FinetuningRuns
from khmer_assets.foundation.settings import FileBeside, Located, Name, RecipeError, Settings, validated
from khmer_assets.foundation.yaml_files import read_yaml
from khmer_assets.instructions.chat_sources import Instructions
from khmer_assets.khmer.normalization import Normalization
from khmer_assets.labels.settings import Labels
from khmer_assets.load.serving_benchmark import ServingBenchmark
from khmer_assets.load.serving_tuning import ServingTuning
from khmer_assets.pretraining.train import Pretraining
from khmer_assets.release.deployment import Deployment
from khmer_assets.release.gates import Release
from khmer_assets.router.train import Routing
from khmer_assets.server.state import AUTO_NAME, EMBEDDER_NAME, MODEL_NAME, StrongerModel
from khmer_assets.sources.catalogue import Source, read_catalogue
from khmer_assets.teachers.settings import TeacherList
from khmer_assets.tokenizer.bpe import TokenizerSettings
from resources.history import History

RECIPES = Path(__file__).parent / "recipes"
SAMPLE_RECIPE = RECIPES / "sample.yaml"
RECIPE_VARIABLE = "KHMER_RECIPE"


class Serving(Deployment):
    """How the release is served, and how its load is measured."""

    benchmark: ServingBenchmark = ServingBenchmark()
    tuning: ServingTuning = ServingTuning()


class Recipe(Settings):
    """A model from its sources to its serving. `catalogue` is the file that names the sources of text.

    A model is pretrained from scratch (`tokenizer`, and `pretraining` with a `decoder`), or starts from an open model
    (`base`), which may be taught Khmer (`extension` and `pretraining`) before it is finetuned. A part that is left out
    is not in the graph.
    """

    name: Name
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 1
    catalogue: FileBeside | None = None
    normalization: Normalization = Normalization()
    filters: Filters = Filters()
    decontamination: Decontamination = Decontamination()
    deduplication: Deduplication = Deduplication()
    mixture: Mixture = Mixture()
    teachers: TeacherList = []
    labels: Labels | None = None
    base: Base | None = None
    tokenizer: TokenizerSettings | None = None
    extension: Extension | None = None
    pretraining: Pretraining | None = None
    instructions: Instructions
    finetuning: FinetuningRuns | None = None
    adapters: list[Adapter] = []
    router: Routing | None = None
    failures: Failures | None = None
    compression: Compression = Compression()
    evaluation: Evaluation
    release: Release
    serving: Serving
    history: History = History()
    _folder: Path = PrivateAttr(default=Path())

    @model_validator(mode="after")
    def _parts_fit_together(self) -> "Recipe":
        scratch = self.pretraining is not None and self.pretraining.decoder is not None
        if (self.base is None) == (self.tokenizer is None):
            raise ValueError("expected either base (an open model to start from) or tokenizer (a model from scratch)")
        if self.tokenizer is not None and not scratch:
            raise ValueError("with a tokenizer of its own, a model is trained from scratch: set pretraining.decoder")
        if self.base is not None and scratch:
            raise ValueError("pretraining.decoder describes a new model, but base names one: remove one of them")
        if self.extension is not None and (self.base is None or self.pretraining is None):
            raise ValueError("extension adds tokens to a base, which pretraining then teaches: set both")
        if self.catalogue is None and self.pretraining is not None:
            raise ValueError("pretraining needs text: name a catalogue of sources")
        if self.labels is not None and self.catalogue is None:
            raise ValueError("labels are of the corpus' documents: name a catalogue of sources")
        if self.labels is not None and not self.teachers and self.labels.corrections is None:
            raise ValueError("nobody gives labels: name teachers, or labels.corrections with those of persons")
        if self.pretraining is None and self.finetuning is None and not self.adapters:
            raise ValueError("nothing is trained: set finetuning, adapters or pretraining")
        if self._context_length is None:
            raise ValueError("without pretraining, finetuning.context_length is needed (the longest chat, in tokens)")
        return self

    @model_validator(mode="after")
    def _release_is_made(self) -> "Recipe":
        variant = self.release.variant
        if variant in self.left_out:
            raise ValueError(f"release.variant ({variant}) cannot be made: {self.left_out[variant]}")
        if variant not in self.variants:
            raise ValueError(
                f"release.variant ({variant}) is not made; {self.variants[0]} is, and what compression.variants names"
            )
        if variant.startswith("gguf") and self.adapter_names:
            raise ValueError(
                f"release.variant ({variant}) is served without adapters; set adapters: [], failures: null"
            )
        return self

    @model_validator(mode="after")
    def _chats_can_be_made(self) -> "Recipe":
        if self.instructions.asks_teachers and not self.teachers:
            name = self.instructions.asks_teachers[0]
            raise ValueError(f"instructions.sources: {name!r} is written by teachers: set teachers")
        if self.instructions.reads_texts and self.catalogue is None:
            name = self.instructions.reads_texts[0]
            raise ValueError(f"instructions.sources: {name!r} is made of the corpus: name a catalogue of sources")
        return self

    @model_validator(mode="after")
    def _guarded_tasks_are_measured(self) -> "Recipe":
        known = self.evaluation.task_names(list(self.mixture.weights))
        for task in self.release.must_not_lose:
            if task not in known:
                raise ValueError(f"release.must_not_lose: {task!r} is not measured; {', '.join(known)} are")
        return self

    @model_validator(mode="after")
    def _adapters_have_names_of_their_own(self) -> "Recipe":
        names = self.adapter_names
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two adapters are named {twice[0]!r}; give each its own name")
        taken = {EMBEDDER_NAME: self.serving.embedder, AUTO_NAME: self.router}
        for name in names:
            if taken.get(f"{MODEL_NAME}-{name}"):
                raise ValueError(
                    f"an adapter is named {name!r}, as {MODEL_NAME}-{name} is served; give it another name"
                )
        return self

    @model_validator(mode="after")
    def _router_has_answerers(self) -> "Recipe":
        if self.router is not None and not self.adapters:
            raise ValueError("router chooses between the model and its adapters: set adapters, or remove it")
        wanted = self.router.stronger if self.router else None
        if wanted and wanted not in (names := [teacher.name for teacher in self.teachers]):
            raise ValueError(f"router.stronger ({wanted}) is none of the teachers ({', '.join(names) or 'none'})")
        return self

    @property
    def stronger(self) -> StrongerModel | None:
        """The teacher that answers users who are not satisfied, if the router has one."""
        named = self.router.stronger if self.router else None
        fields = set(StrongerModel.model_fields)
        return next((StrongerModel(**t.model_dump(include=fields)) for t in self.teachers if t.name == named), None)

    @property
    def adapter_ranks(self) -> list[int]:
        """The LoRA ranks of the adapters, for which the server needs room."""
        learned = [self.failures.finetuning.rank] if self.failures else []
        return [*(adapter.finetuning.rank for adapter in self.adapters), *learned]

    @property
    def adapter_names(self) -> list[str]:
        """The names of all adapters that may be served."""
        return [*(adapter.name for adapter in self.adapters), *([FAILURES] if self.failures else [])]

    @property
    def _context_length(self) -> int | None:
        parts = (self.finetuning, *(adapter.finetuning for adapter in self.adapters))
        lengths = [part.context_length for part in parts if part is not None and part.context_length is not None]
        if lengths or self.pretraining is None:
            return max(lengths, default=None)
        return self.pretraining.context_length

    @property
    def context_length(self) -> int:
        """The longest chat that is learned and asked, in tokens."""
        assert self._context_length is not None  # else the recipe was refused
        return self._context_length

    @property
    def whole(self) -> str:
        """The variant that is not compressed: `merged` or, where nothing is finetuned but adapters, `base`."""
        return "base" if self.finetuning is None else "merged"

    @property
    def left_out(self) -> dict[str, str]:
        """Variants that the recipe names but that cannot be made, and why; an open model's asset has a check for it."""
        decoder = self.pretraining.decoder if self.pretraining else None
        found = {v: reason_against(v, decoder.architecture) for v in self.compression.variants} if decoder else {}
        return {variant: reason for variant, reason in found.items() if reason}

    @property
    def variants(self) -> list[str]:
        """The variants that are made and measured; the first is the whole model."""
        return [self.whole, *(variant for variant in self.compression.variants if variant not in self.left_out)]

    @classmethod
    def load(cls, file: Path) -> "Recipe":
        """Read and check a recipe file. Raises `RecipeError` with one line a mistake."""
        if not file.exists():
            raise RecipeError(f"{file}: no such file; name an existing one (the recipe is set by {RECIPE_VARIABLE})")
        recipe = validated(cls, read_extended(file), file)
        if recipe.catalogue is not None:
            catalogue = recipe.catalogue.resolve()
            if not catalogue.is_file():
                raise RecipeError(
                    f"{file}: catalogue: {catalogue} is no file; put the catalogue there, or name another"
                )
            recipe = recipe.model_copy(update={"catalogue": catalogue})
        recipe._folder = file.parent.absolute()
        return recipe

    @property
    def folder(self) -> Path:
        """What the paths of evaluation sets are relative to: the catalogue's folder or, without one, the recipe's."""
        return self.catalogue.parent if self.catalogue else self._folder

    @classmethod
    def current(cls) -> "Recipe":
        """The recipe that the environment variable KHMER_RECIPE names, else the embedded sample."""
        return cls.load(Path(os.environ.get(RECIPE_VARIABLE) or SAMPLE_RECIPE))

    @cached_property
    def sources(self) -> dict[str, Source]:
        """The catalogue's entries by name, in its order. Raises `RecipeError` with one line a mistake."""
        return read_catalogue(self.catalogue) if self.catalogue else {}


def read_extended(file: Path, others: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The keys and values of a recipe file, on top of those of the one that it `extends`: a recipe of this project by
    its name, or a file. A null takes a part or a setting away. `others` are the files that extend this one."""
    values = read_yaml(file)
    extended = values.pop("extends", None)
    if extended is None:
        return values
    if not isinstance(extended, str):
        raise RecipeError(f"{file}: extends: expected a recipe's name or file (given: {extended!r:.80})")
    other = file.parent / extended if extended.endswith((".yaml", ".yml")) else RECIPES / f"{extended}.yaml"
    if not other.is_file():
        names = ", ".join(sorted(recipe.stem for recipe in RECIPES.glob("*.yaml")))
        raise RecipeError(f"{file}: extends: {other} is no file; name one that ends in .yaml, or one of {names}")
    if other.resolve() in (file.resolve(), *others):
        raise RecipeError(f"{file}: extends: {other} extends this file in turn; take one of the two out")
    return _on_top(Located.all_in(read_extended(other, (*others, file.resolve())), other.parent), values)


def _on_top(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = {key: value for key, value in below.items() if above.get(key, value) is not None}
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _on_top(merged[key], value)
        elif value is not None:
            merged[key] = value
    return merged
