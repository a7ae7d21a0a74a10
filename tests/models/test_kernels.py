"""Attention, convolutions and batch norms against their definitions in float64 and PyTorch's own
operations."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, scaled_dot_product_attention
from transformers.activations import QuickGELUActivation

from clipmerge.models import kernels as attention
from clipmerge.models import precision as precisions
from clipmerge.models.kernels import (
    FasterKernels,
    FrozenBatchNorm,
    faster_kernels,
    image_layout,
    keep_16_bits,
    run_with_recomputation,
)
from clipmerge.models.precision import casts_repeated, dtype_of, multiplies_bfloat16, passes
from tests.support.small_objective import make_batches, objective_for, save_ends

TOKENS = 6


def inputs(dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
    """Queries, keys and values: (images, heads, tokens, width)."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(2, 3, TOKENS, 8, generator=generator).to(dtype).requires_grad_()
        for _ in range(3)
    ]


def written_out(query: Tensor, key: Tensor, value: Tensor, seen: Tensor) -> Tensor:
    """One row of scores after another, in float64."""
    out = torch.zeros(query.shape, dtype=torch.float64)
    query, key, value = (tensor.detach() for tensor in (query, key, value))
    for image, head, row in torch.cartesian_prod(
        *(torch.arange(n) for n in query.shape[:3])
    ).tolist():
        scores = [
            float(query[image, head, row].double() @ key[image, head, column].double())
            / math.sqrt(query.shape[-1])
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
    with FasterKernels():
        found = scaled_dot_product_attention(*given, **options)
    assert found.dtype == torch.bfloat16
    assert torch.allclose(found.double(), written_out(*given, seen), atol=0.03)


@pytest.mark.parametrize(
    ("dtype", "options"), [(torch.float32, {}), (torch.bfloat16, {"dropout_p": 0.5})]
)
def test_other_attention_is_pytorchs(dtype: torch.dtype, options: dict[str, float]) -> None:
    torch.manual_seed(0)
    expected = scaled_dot_product_attention(*inputs(dtype), **options)
    torch.manual_seed(0)
    with FasterKernels():
        assert torch.equal(scaled_dot_product_attention(*inputs(dtype), **options), expected)


def test_long_sequences_do_not_hold_their_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = scaled_dot_product_attention(*inputs())
    with FasterKernels():
        assert not torch.equal(scaled_dot_product_attention(*inputs()), expected)
        monkeypatch.setattr(attention, "_MAX_SCORES", TOKENS * TOKENS - 1)
        assert torch.equal(scaled_dot_product_attention(*inputs()), expected)


def test_what_runs_twice_runs_the_same_way() -> None:
    def attended(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return scaled_dot_product_attention(query, key, value).float().square().sum()

    once, twice = inputs(), inputs()
    with passes(torch.device("cpu"), "bfloat16"):
        losses = attended(*once), run_with_recomputation(torch.device("cpu"), attended, *twice)
    for loss in losses:
        loss.backward()
    assert losses[0] == losses[1]
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(once, twice, strict=True))  # type: ignore[arg-type]


def test_a_convolution_of_single_channels_has_float32_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    images, kernel = (
        torch.randn(4, 3, 9, 9, generator=generator),
        torch.randn(3, 1, 3, 3, generator=generator),
    )
    found, expected = kernel.clone().requires_grad_(), kernel.double().requires_grad_()
    with passes(torch.device("cpu"), "bfloat16"):
        output = conv2d(images, found, None, 1, 1, 1, 3)
    output.float().square().sum().backward()
    conv2d(images.double(), expected, None, 1, 1, 1, 3).square().sum().backward()
    assert found.grad is not None
    assert expected.grad is not None
    # in bfloat16 the error is ten times this bound
    assert float((found.grad - expected.grad).abs().max()) < 2e-4 * float(expected.grad.abs().max())


def test_without_gradients_the_last_mlp_gets_the_pooled_token_alone(tmp_path: Path) -> None:
    model = objective_for(save_ends(tmp_path), make_batches((4,))).criterion.model
    pixels, given = torch.randn(4, 3, 32, 32), list[int]()
    for block in model.towers["vision"].encoder.layers:
        block.mlp.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0].shape[1]))
    found = {}
    for grad in (False, True):
        for precision in ("float32", "bfloat16"):
            with torch.set_grad_enabled(grad), passes(pixels.device, precision):
                found[grad, precision] = model.image_features(pixels).detach()
    tokens = given[0]
    assert given == [*[tokens] * 3, 1, *[tokens] * 4]
    for precision in ("float32", "bfloat16"):
        assert torch.equal(found[False, precision], found[True, precision])


def test_casts_of_weights_are_held_until_weights_move(tmp_path: Path) -> None:
    objective = objective_for(save_ends(tmp_path), make_batches((4,)))
    (batch,), path = objective.data.batches, objective.weights

    def features(*, grad: bool = False) -> Tensor:
        with torch.set_grad_enabled(grad), passes(batch.pixels.device, "bfloat16"):
            return objective.criterion.embed(batch.pixels).detach()

    with torch.autocast("cpu", enabled=False):
        before = features()
        for name in path.layers["vision.0.mlp"]:
            if path.parameters[name].ndim == 2:
                path.parameters[name].data.mul_(1.5)
        assert torch.equal(features(), before)
        assert not torch.equal(features(grad=True), before)
        path.set_alpha(0.5)
        inside = features()
    path.set_alpha(0.5)
    assert torch.equal(features(), inside)


def test_images_have_their_channels_last_only_where_there_are_many_convolutions() -> None:
    convolution = nn.Conv2d(3, 3, 2)
    assert image_layout(nn.Sequential(convolution, nn.Conv2d(3, 3, 2))) == torch.channels_last
    assert image_layout(nn.Sequential(convolution, nn.Linear(3, 3))) == torch.contiguous_format


def test_a_layer_that_corrupts_memory_with_channels_last_keeps_images_contiguous() -> None:
    """As MobileCLIP's S models have; the backward pass of many channels is sound."""
    few, many = (nn.Conv2d(channels, 64, 1, stride=2) for channels in (3, 16))
    assert image_layout(nn.Sequential(few, nn.Conv2d(64, 3, 2))) == torch.contiguous_format
    assert image_layout(nn.Sequential(many, nn.Conv2d(64, 3, 2))) == torch.channels_last


def test_a_frozen_batch_norm_follows_its_formula_in_all_five_arguments() -> None:
    generator = torch.Generator().manual_seed(0)
    norm = FrozenBatchNorm(nn.BatchNorm2d(3))
    inputs = torch.randn(4, 3, 5, 5, generator=generator).double().requires_grad_()
    factors = torch.randn(4, 3, 5, 5, generator=generator).double()
    names = ("weight", "bias", "running_mean", "running_var")
    values = {
        name: torch.rand(3, generator=generator).double().add(0.5).requires_grad_()
        for name in names
    }
    weight, bias, mean, variance = (value[:, None, None] for value in values.values())
    ((inputs - mean) / (variance + norm.eps).sqrt() * weight + bias).mul(factors).sum().backward()
    found = inputs.detach().clone().requires_grad_()
    norm.double()
    for name, value in values.items():
        getattr(norm, name).data.copy_(value.detach())
    (norm(found) * factors).sum().backward()
    assert torch.allclose(found.grad, inputs.grad)
    for name, value in values.items():
        assert torch.allclose(getattr(norm, name).grad, value.grad), name


def test_quick_gelu_between_two_maps_is_its_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values and gradients, but for rounding."""
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(5, 9), QuickGELUActivation(), nn.Linear(9, 4)).double()
    inputs = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    tensors = [inputs, *block.parameters()]
    found = []
    keep_16_bits(block)
    for is_card in (False, True):
        monkeypatch.setattr(attention, "_is_in_16_bits", lambda _, is_card=is_card: is_card)
        spread = block(inputs)
        found.append([spread, *torch.autograd.grad(spread.square().sum(), tensors)])
    plain = block[2].weight @ (
        (hidden := block[0].weight @ inputs[0] + block[0].bias) * torch.sigmoid(1.702 * hidden)
    )
    assert torch.allclose(found[0][0][0], plain + block[2].bias)
    assert all(torch.allclose(*each) for each in zip(*found, strict=True))


def test_on_a_card_blocks_add_up_16_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = objective_for(save_ends(tmp_path), make_batches((4,))).criterion.model
    pixels, dtypes = torch.randn(4, 3, 32, 32), set[torch.dtype]()
    expected = model.image_features(pixels)
    for block in model.towers["vision"].encoder.layers:
        block.register_forward_hook(lambda *given: dtypes.add(given[2].dtype))
    for is_card in (False, True):
        dtypes.clear()
        monkeypatch.setattr(attention, "_is_in_16_bits", lambda _, is_card=is_card: is_card)
        with passes(pixels.device, "bfloat16"):
            found = model.image_features(pixels)
        assert dtypes == {torch.bfloat16 if is_card else torch.float32}
        assert torch.allclose(found.float(), expected, atol=0.03)


@pytest.mark.parametrize("device", ["cuda", "xpu"])
@pytest.mark.parametrize("native", [True, False])
def test_bfloat16_is_used_where_a_card_has_it_in_hardware(
    monkeypatch: pytest.MonkeyPatch, device: str, native: bool
) -> None:
    monkeypatch.setattr(
        getattr(torch, device),
        "is_bf16_supported",
        lambda including_emulation: native or including_emulation,
    )
    place = torch.device(device)
    assert multiplies_bfloat16(place) == native
    assert not multiplies_bfloat16(torch.device("mps"))
    other = torch.float16 if device == "cuda" else torch.float32
    assert dtype_of(place, "auto") == (torch.bfloat16 if native else other)
    assert dtype_of(torch.device("mps"), "auto") == dtype_of(place, "float32") == torch.float32


@pytest.mark.parametrize(("device", "calls"), [("cpu", True), ("cuda", False), ("xpu", False)])
def test_a_cards_passes_have_no_call_for_each_function_and_saved_tensor(
    monkeypatch: pytest.MonkeyPatch, device: str, calls: bool
) -> None:
    """Each takes a CPU longer than starting a kernel, and does nothing there."""
    saved: list[Tensor] = []
    monkeypatch.setattr(precisions, "_without_cast", lambda tensor: saved.append(tensor) or tensor)
    with faster_kernels(torch.device(device)) as mode, casts_repeated(torch.device(device)):
        torch.ones(2, requires_grad=True).square()
    assert isinstance(mode, FasterKernels) == calls == bool(saved)
