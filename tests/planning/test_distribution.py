"""Distributions of coefficients, where some parameters have none."""

from __future__ import annotations

import torch

from clipmerge.planning.distribution import histograms, zeroshot_shares

LAYERS = {"vision.0.mlp": ("a", "b"), "vision.1.mlp": ("c",), "text.0.mlp": ("d",)}
SIZES = {"a": 4, "b": 100, "c": 100, "d": 2}
COEFFICIENTS = {"a": torch.tensor([0.0, 0.0, 0.5, 1.0]), "d": torch.tensor([1.0, 1.0])}


def test_parameters_without_coefficients_are_not_counted() -> None:
    found = histograms(COEFFICIENTS, LAYERS, SIZES)
    assert {tower: sum(counts) for tower, counts in found.items()} == {"vision": 4, "text": 2}
    assert (found["vision"][0], found["vision"][10], found["vision"][20]) == (2, 1, 1)


def test_layers_without_coefficients_have_no_share_of_zeros() -> None:
    assert zeroshot_shares(COEFFICIENTS, LAYERS, SIZES) == {"vision.0.mlp": 0.5, "text.0.mlp": 0.0}
