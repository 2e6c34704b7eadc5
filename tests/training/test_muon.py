"""Muon's updates are orthogonal."""

import pytest
import torch

from khmer_assets.training.muon import orthogonalized


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_muon_makes_updates_orthogonal(dtype: torch.dtype):
    matrices = torch.randn(3, 8, 20, generator=torch.Generator().manual_seed(1))
    singular_values = torch.linalg.svdvals(orthogonalized(matrices, dtype).float())
    assert singular_values.min() > 0.5 and singular_values.max() < 1.5
