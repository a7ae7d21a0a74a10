"""Casts of weights to bfloat16 are made again in the backward pass: the same gradients, and nothing held."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu

from clipmerge.models import precision
from clipmerge.models.precision import casts_repeated, passes

CPU = torch.device("cpu")


class Small(torch.nn.Module):
    """Linear maps with and without a bias, a convolution, a normalisation, and a product with a view of a weight."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patch = torch.nn.Conv2d(3, 8, 4, 4, bias=False)
        self.norm = torch.nn.LayerNorm(8)
        self.wide, self.narrow = torch.nn.Linear(8, 24), torch.nn.Linear(24, 8, bias=False)
        self.fused, self.head = torch.nn.Parameter(torch.randn(16, 8)), torch.nn.Parameter(torch.randn(8, 5))
        self.table = torch.nn.Embedding(4, 8)

    def forward(self, pixels: Tensor) -> Tensor:
        tokens = self.norm(self.patch(pixels).flatten(2).transpose(1, 2)) + self.table(torch.arange(4))
        tokens = tokens + self.narrow(gelu(self.wide(tokens)))
        first, second = self.fused.chunk(2)
        tokens = torch.nn.functional.linear(tokens, first) + torch.nn.functional.linear(tokens, second)
        return tokens.softmax(-1).mean(1) @ self.head


def gradients(*, repeated: bool, kind: precision.Precision) -> tuple[Tensor, dict[str, Tensor]]:
    model = Small()
    pixels = torch.randn(7, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    if repeated:
        with casts_repeated(), passes(CPU, kind):
            loss = model(pixels).float().square().mean()
    else:
        with passes(CPU, kind):
            loss = model(pixels).float().square().mean()
    loss.backward()
    return loss.detach(), {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_the_gradients_are_the_same(kind: precision.Precision) -> None:
    loss, expected = gradients(repeated=False, kind=kind)
    again, found = gradients(repeated=True, kind=kind)
    assert torch.equal(loss, again)
    assert found.keys() == expected.keys() == dict(Small().named_parameters()).keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_no_cast_of_a_weight_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    held, real = [], precision._without_cast
    monkeypatch.setattr(precision, "_without_cast", lambda tensor: held.append(real(tensor)) or held[-1])
    gradients(repeated=True, kind="bfloat16")
    again = [each[0] for each in held if isinstance(each, tuple)]
    # the fused weight's parts are views that are cast after the cut: they are held as before
    assert {tuple(weight.shape) for weight in again} == {(8, 3, 4, 4), (24, 8), (8, 24), (8, 5)}
    kept = [each for each in held if isinstance(each, Tensor) and each.dtype == torch.bfloat16]
    assert not any(tuple(each.shape) in {(8, 3, 4, 4), (8, 24), (24, 8), (8, 5)} for each in kept)
