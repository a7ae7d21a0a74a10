"""Attention in bfloat16 from two products: against the softmax written out in float64, and PyTorch's own."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from clipmerge.models import attention
from clipmerge.models.attention import ProductAttention
from clipmerge.models.blocks import run_twice
from clipmerge.models.precision import passes

TOKENS = 6


def inputs(dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
    """Queries, keys and values: (images, heads, tokens, width)."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, TOKENS, 8, generator=generator).to(dtype).requires_grad_() for _ in range(3)]


def written_out(query: Tensor, key: Tensor, value: Tensor, seen: Tensor) -> Tensor:
    """One row of scores after another, in float64."""
    out = torch.zeros(query.shape, dtype=torch.float64)
    query, key, value = (tensor.detach() for tensor in (query, key, value))
    for image, head, row in torch.cartesian_prod(*(torch.arange(n) for n in query.shape[:3])).tolist():
        scores = [
            float(query[image, head, row].double() @ key[image, head, column].double()) / math.sqrt(query.shape[-1])
            for column in range(TOKENS)
        ]
        weights = [math.exp(score) * bool(seen[row, column]) for column, score in enumerate(scores)]
        for column, weight in enumerate(weights):
            out[image, head, row] += weight / sum(weights) * value[image, head, column].double()
    return out


SEEN = torch.ones(TOKENS, TOKENS, dtype=torch.bool)
LOWER = SEEN.tril()
MASKS = {
    "all": ({}, SEEN),
    "causal": ({"is_causal": True}, LOWER),
    "yes or no": ({"attn_mask": LOWER}, LOWER),
    "added": ({"attn_mask": torch.zeros(TOKENS, TOKENS).masked_fill(~LOWER, -math.inf)}, LOWER),
}


@pytest.mark.parametrize("mask", MASKS)
def test_products_give_the_softmax_average(mask: str) -> None:
    options, seen = MASKS[mask]
    given = inputs()
    with ProductAttention():
        found = scaled_dot_product_attention(*given, **options)
    assert found.dtype == torch.bfloat16
    assert torch.allclose(found.double(), written_out(*given, seen), atol=0.03)


def test_the_scale_is_the_one_given() -> None:
    query, key, value = inputs()
    with ProductAttention():
        found = scaled_dot_product_attention(query, key, value, scale=0.0)
    assert torch.allclose(found, value.mean(2, keepdim=True).expand_as(value), atol=0.02)


@pytest.mark.parametrize(("dtype", "options"), [(torch.float32, {}), (torch.bfloat16, {"dropout_p": 0.5})])
def test_other_attention_is_pytorchs(dtype: torch.dtype, options: dict[str, float]) -> None:
    torch.manual_seed(0)
    expected = scaled_dot_product_attention(*inputs(dtype), **options)
    torch.manual_seed(0)
    with ProductAttention():
        assert torch.equal(scaled_dot_product_attention(*inputs(dtype), **options), expected)


def test_long_sequences_do_not_hold_their_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = scaled_dot_product_attention(*inputs())
    with ProductAttention():
        assert not torch.equal(scaled_dot_product_attention(*inputs()), expected)
        monkeypatch.setattr(attention, "_MOST", TOKENS * TOKENS - 1)
        assert torch.equal(scaled_dot_product_attention(*inputs()), expected)


def test_what_runs_twice_runs_the_same_way() -> None:
    def attended(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return scaled_dot_product_attention(query, key, value).float().square().sum()

    once, twice = inputs(), inputs()
    with passes(torch.device("cpu"), "bfloat16"):
        losses = attended(*once), run_twice(attended, *twice)
    for loss in losses:
        loss.backward()
    assert losses[0] == losses[1]
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(once, twice, strict=True))  # type: ignore[arg-type]
