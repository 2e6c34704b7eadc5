"""The asset that brings an open model in."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg

from khmer_assets.base_model import bring_in
from khmer_assets.base_model.bring_in import Base
from khmer_assets.foundation.settings import code_version
from resources.compute import Compute


def base_model_assets(settings: Base, name: str = "base_model") -> list[Any]:
    """base_model, or another under its own `name`."""

    @dg.asset(
        name=name,
        group_name="base_model",
        io_manager_key="folders",
        kinds={"huggingface"},
        code_version=code_version(1, base=settings),
    )
    def base_model(context: dg.AssetExecutionContext, compute: Compute) -> Iterator[dg.Output[Path]]:
        """A transformers folder of the open model that the recipe names, with its tokenizer; `base.json` tells its
        revision, license and size."""
        spec = bring_in.Spec(model=settings.model, revision=settings.revision)
        yield from compute.materialize(context, bring_in.__name__, spec)

    return [base_model]
