"""Muon's updates are orthogonal."""

import torch

from khmer_assets.training.muon import orthogonalized


def test_muon_makes_updates_orthogonal():
    matrices = torch.randn(3, 8, 20, generator=torch.Generator().manual_seed(1))
    singular_values = torch.linalg.svdvals(orthogonalized(matrices))
    assert singular_values.min() > 0.5 and singular_values.max() < 1.5
