"""Random numbers that a card draws itself."""

import math

import pytest
import torch

from clipmerge.learning.draws import draws_itself, normal_like, signs_like


def test_numbers_are_standard_normal_and_those_of_their_seed_and_place() -> None:
    like = torch.empty(300, 401)
    drawn = normal_like(like, 7, 0)
    assert drawn.shape == like.shape
    assert drawn.dtype == like.dtype
    error = 1 / math.sqrt(like.numel())
    assert abs(float(drawn.mean())) < 4 * error
    assert float(drawn.square().mean()) == pytest.approx(1, abs=6 * error)
    assert float(drawn.pow(4).mean()) == pytest.approx(3, abs=40 * error)
    assert torch.equal(drawn, normal_like(like, 7, 0))
    for other in (normal_like(like, 8, 0), normal_like(like, 7, 1)):
        assert abs(float((drawn * other).mean())) < 4 * error


def test_signs_are_even_and_independent() -> None:
    like = torch.empty(123, 457)
    drawn = signs_like(like, 7, 0)
    assert set(drawn.unique().tolist()) == {-1.0, 1.0}
    error = 1 / math.sqrt(like.numel())
    assert abs(float(drawn.mean())) < 4 * error
    assert torch.equal(drawn, signs_like(like, 7, 0))
    neighbours = (drawn[:, :-1] * drawn[:, 1:]).mean(), (drawn[:-1] * drawn[1:]).mean()
    for product in (
        *neighbours,
        *((drawn * signs_like(like, 7, place)).mean() for place in (1, 2)),
    ):
        assert abs(float(product)) < 4 * error


def test_apples_gpus_get_the_cpus_numbers() -> None:
    """In torch 2.5 and 2.6 they shift whole numbers wrongly."""
    devices = [torch.device(kind) for kind in ("cpu", "mps", "cuda", "xpu")]
    assert [draws_itself(device) for device in devices] == [False, False, True, True]
