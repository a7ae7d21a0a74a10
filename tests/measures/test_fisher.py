"""Fisher merging: the estimate against each image's own gradient, the merge against its formula,
entry by entry."""

import math
from collections import defaultdict

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from clipmerge.planning.measurements import Measurements
from clipmerge.plugins import load_plugin
from tests.support.small_objective import Ends, Reference, make_batches, objective_for
from tests.support.tasks import decide, task_of
from tests.support.tiny_clip import layer_of

ENDS = {"fisher_zeroshot": 0.0, "fisher_finetuned": 1.0}


def test_with_one_image_a_batch_it_is_exact(
    short_ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels are drawn from the model's own predictions; here every draw is 1."""
    chances: list[float] = []

    def draw(probabilities: Tensor, count: int, **_: object) -> Tensor:
        chances.append(float(probabilities[0, 1]))
        return torch.ones(1, count, dtype=torch.long)

    monkeypatch.setattr(torch, "multinomial", draw)
    images = make_batches((1,) * 5)
    found = load_plugin("measures", "fisher")(objective_for(short_ends, images), probes=1)
    for image in images:
        image.labels.fill_(1)
    expected_chances = []
    for statistic, alpha in ENDS.items():
        reference = Reference(short_ends).at(alpha)
        expected_chances += [math.exp(-reference.loss(image).item()) for image in images]
        gradients = [reference.gradient(image) for image in images]
        by_layer = defaultdict[str, list[Tensor]](list)
        for name, value in found.tensors[statistic].items():
            assert value.dtype == torch.float32
            expected = torch.stack([each[name].square() for each in gradients]).mean(0)
            slack = 1e-9 + 1e-4 * float(value.max())
            assert torch.allclose(value.double(), expected, rtol=2e-3, atol=slack), name
            by_layer[layer_of(name)].append(expected.flatten())
        for layer, entries in by_layer.items():
            mean = float(torch.cat(entries).mean())
            assert found.layers[layer][statistic] == pytest.approx(mean, rel=1e-3)
    assert chances == pytest.approx(expected_chances, rel=1e-4)


def made_up(ends: Ends, size: float, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    state = load_file(ends[0] / "model.safetensors")
    return {
        name: size * torch.rand(value.shape, generator=generator) ** 4
        for name, value in state.items()
    }


@pytest.mark.parametrize("alpha", [0.5, 0.2, 0.0, 1.0])
def test_coefficients_are_the_formula(short_ends: Ends, alpha: float) -> None:
    first, second = made_up(short_ends, 1.0, 0), made_up(short_ends, 0.01, 1)
    tensors = {"fisher_zeroshot": first, "fisher_finetuned": second}
    task = task_of(short_ends, Measurements(measure="fisher", tensors=tensors))
    found = decide(task, "fisher", alpha=alpha, floor=0.1).coefficients
    sums = [
        sum(float(value.sum(dtype=torch.float64)) for value in each.values())
        for each in (first, second)
    ]
    for name in ("logit_scale", "text_model.final_layer_norm.weight", "visual_projection.weight"):
        ours = first[name].double()
        theirs = second[name].double() * sums[0] / sums[1]
        least = 0.1 * float(ours.mean() + theirs.mean()) / 2
        a, b = (1 - alpha) * ours.clamp_min(least), alpha * theirs.clamp_min(least)
        assert torch.allclose(torch.as_tensor(found[name]).double(), b / (a + b), rtol=1e-5)
        assert found[name].shape == ours.shape
