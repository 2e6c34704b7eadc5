"""What a recipe sets of the labels, put together; each part stands in the module that obeys it."""

from pydantic import Field, model_validator

from khmer_assets.foundation.settings import FileBeside, PositiveInt, Settings
from khmer_assets.labels.categories import CategoriesFile
from khmer_assets.labels.labelled import Keep, Weights
from khmer_assets.labels.train import LabelModelSettings
from khmer_assets.teachers.settings import Budget


class Labels(Settings):
    """`documents` of each source are labelled by the recipe's teachers, within the `budget` of one materialization.

    `categories`: a YAML file in the form of `khmer_assets/labels/categories.yaml`, which is the default;
    `corrections`: a file of lines of JSON that persons wrote (`khmer_assets/labels/corrections.py`); both relative to
    the recipe. Where `keep` or `weights` say something, the training mixture is made of labelled_corpus.
    """

    documents: PositiveInt = 500
    categories: CategoriesFile = Field(default=None, validate_default=True)
    corrections: FileBeside | None = None
    budget: Budget = Budget()
    model: LabelModelSettings = LabelModelSettings()
    keep: Keep = Keep()
    weights: Weights = Weights()

    @model_validator(mode="after")
    def _names_are_known(self) -> "Labels":
        if unknown := sorted(set(self.weights.topics) - set(self.categories.topics)):
            known = ", ".join(self.categories.topics)
            raise ValueError(f"weights.topics: there is no topic {unknown[0]!r}; there are {known}")
        if self.keep.valid and "invalid" not in self.categories.validity:
            raise ValueError("keep.valid removes what is invalid, but the categories of validity have no key invalid")
        return self

    @property
    def in_mixture(self) -> bool:
        """Whether the training mixture is filtered or weighed by the labels."""
        return self.keep != Keep() or self.weights != Weights()
