"""Changed images: the effect of each kind of change on the pixels."""

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from clipmerge.errors import ClipmergeError
from clipmerge.learning.augment import AUGMENTATIONS, strong_augment, weak_augment

COUNT = 400


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    """Smooth coloured images, so that a change of any kind shows."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(COUNT, 3, 4, 4, generator=generator)
    return interpolate(coarse, size=16, mode="bilinear")


def changed(pixels: Tensor, kind: str, seed: int = 0) -> Tensor:
    return strong_augment(pixels, seed, (kind,))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", AUGMENTATIONS)
def test_a_seed_gives_the_same_change_and_another_another(pixels: Tensor, kind: str) -> None:
    before = pixels.clone()
    first = changed(pixels, kind)
    assert torch.equal(pixels, before)
    assert first.shape == pixels.shape
    assert bool(first.isfinite().all())
    assert torch.equal(first, changed(pixels, kind))
    assert not torch.equal(first, changed(pixels, kind, seed=1))


def test_geometry_moves_pixels_and_invents_none(pixels: Tensor) -> None:
    moved = changed(pixels, "geometry")
    low, high = pixels.amin((2, 3)), pixels.amax((2, 3))
    assert bool((moved.amin((2, 3)) >= low - 1e-5).all())
    assert bool((moved.amax((2, 3)) <= high + 1e-5).all())
    # a ramp from left to right: mirrored in about half of the images
    ramp = torch.linspace(-1, 1, 16).expand(COUNT, 3, 16, 16).contiguous()
    turned = changed(ramp, "geometry")
    mirrored = (turned[:, 0, 8, -1] < turned[:, 0, 8, 0]).double().mean()
    assert float(mirrored) == pytest.approx(0.5, abs=0.1)


def test_patches_of_any_aspect_ratio_are_refused_with_the_way_out() -> None:
    packed = torch.zeros(2, 9, 51)
    for change in (strong_augment, partial(weak_augment, strength=0.25)):
        with pytest.raises(
            ClipmergeError, match=r"set measure.weak_aug=0 and measure.augmentations=\[\]"
        ):
            change(packed, 0)
    assert weak_augment(packed, 0, 0.0) is packed
    assert strong_augment(packed, 0, ()) is packed


@pytest.mark.parametrize("kind", ["grey", "blur"])
def test_grey_and_blur_change_some_images_wholly_and_leave_the_others(
    pixels: Tensor, kind: str
) -> None:
    if kind == "grey":
        expected = pixels.mean(1, keepdim=True).expand_as(pixels)
    else:
        expected = avg_pool2d(pixels, 3, stride=1, padding=1, count_include_pad=False)
    found = changed(pixels, kind)
    same = (found == pixels).flatten(1).all(1)
    assert float(same.double().mean()) == pytest.approx(0.7, abs=0.08)
    assert torch.equal(found[~same], expected[~same])
