"""A recipe: the settings of all stages, put together and read from YAML.

Nothing is set here: each part stands, with its defaults and limits, in the module that obeys it. Settings change what
is made; where it is kept and how many cores work on it is the business of `resources/`.
"""

import os
from functools import cached_property
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from khmer_assets.adapters.adapter import Adapter
from khmer_assets.compression.variants import Compression
from khmer_assets.corpus.decontamination import Decontamination
from khmer_assets.corpus.deduplication import Deduplication
from khmer_assets.corpus.filters import Filters
from khmer_assets.corpus.mixture import Mixture
from khmer_assets.evaluation.evaluate import Evaluation
from khmer_assets.finetuning.sft import Finetuning
from khmer_assets.foundation.settings import Name, RecipeError, Settings, validated
from khmer_assets.foundation.yaml_files import read_yaml
from khmer_assets.instructions.embedded_chats import Instructions
from khmer_assets.khmer.normalization import Normalization
from khmer_assets.load.serving_benchmark import ServingBenchmark
from khmer_assets.load.serving_tuning import ServingTuning
from khmer_assets.pretraining.train import Pretraining
from khmer_assets.release.deployment import Deployment
from khmer_assets.release.gates import Release
from khmer_assets.sources.catalogue import Source, read_catalogue
from khmer_assets.tokenizer.bpe import TokenizerSettings
from resources.history import History

SAMPLE_RECIPE = Path(__file__).parent / "recipes" / "sample.yaml"
RECIPE_VARIABLE = "KHMER_RECIPE"


class Serving(Deployment):
    """How the release is served, and how its load is measured."""

    benchmark: ServingBenchmark = ServingBenchmark()
    tuning: ServingTuning = ServingTuning()


class Recipe(Settings):
    """A model from its sources to its serving. `catalogue` is the file that names the sources."""

    name: Name
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    catalogue: Path
    normalization: Normalization = Normalization()
    filters: Filters = Filters()
    decontamination: Decontamination = Decontamination()
    deduplication: Deduplication = Deduplication()
    mixture: Mixture = Mixture()
    tokenizer: TokenizerSettings
    pretraining: Pretraining
    instructions: Instructions
    finetuning: Finetuning
    adapters: list[Adapter] = []
    compression: Compression
    evaluation: Evaluation
    release: Release
    serving: Serving
    history: History = History()

    @model_validator(mode="after")
    def _release_is_made(self) -> "Recipe":
        _, quantization = self.release.artifact
        if quantization is not None and quantization not in self.compression.gguf:
            raise ValueError(f"release.variant ({self.release.variant}) must be in compression.gguf")
        if quantization is not None and self.adapters:
            raise ValueError(f"release.variant ({self.release.variant}) is served without adapters; set adapters: []")
        return self

    @model_validator(mode="after")
    def _adapters_have_names_of_their_own(self) -> "Recipe":
        names = [adapter.name for adapter in self.adapters]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two adapters are named {twice[0]!r}; give each its own name")
        return self

    @property
    def adapter_ranks(self) -> list[int]:
        """The LoRA ranks of the adapters, for which the server needs room."""
        return [adapter.finetuning.rank for adapter in self.adapters]

    @classmethod
    def load(cls, file: Path) -> "Recipe":
        """Read and check a recipe file. Raises `RecipeError` with one line a mistake."""
        if not file.exists():
            raise RecipeError(f"{file}: no such file; name an existing one (the recipe is set by {RECIPE_VARIABLE})")
        recipe = validated(cls, read_yaml(file), file)
        catalogue = (file.parent / recipe.catalogue).resolve()
        if not catalogue.is_file():
            raise RecipeError(f"{file}: catalogue: {catalogue} is no file; put the catalogue there, or name another")
        return recipe.model_copy(update={"catalogue": catalogue})

    @classmethod
    def current(cls) -> "Recipe":
        """The recipe that the environment variable KHMER_RECIPE names, else the embedded sample."""
        return cls.load(Path(os.environ.get(RECIPE_VARIABLE) or SAMPLE_RECIPE))

    @cached_property
    def sources(self) -> dict[str, Source]:
        """The catalogue's entries by name, in its order. Raises `RecipeError` with one line a mistake."""
        return read_catalogue(self.catalogue)
