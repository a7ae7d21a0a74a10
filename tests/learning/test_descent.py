"""The factor by which a loss in float16 is multiplied."""

import pytest
import torch

from clipmerge.errors import MeasureError
from clipmerge.learning.descent import LossScale


def test_a_factor_is_halved_until_gradients_are_finite_and_never_below_one() -> None:
    scale = LossScale()
    first = float(scale.value)
    gradients = [torch.tensor([first, -2 * first]), torch.tensor(first)]
    assert scale.unscale(gradients)
    assert [each.tolist() for each in gradients] == [[1.0, -2.0], 1.0]
    halvings = 0
    while float(scale.value) > 1:
        assert not scale.unscale([torch.tensor([1.0, torch.inf])])
        halvings += 1
    assert 2.0**halvings == first
    with pytest.raises(MeasureError, match=r"too large for float16; .*precision=float32"):
        scale.unscale([torch.tensor(torch.nan)])
