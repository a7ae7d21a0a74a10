"""A small vision transformer that a convolutional zero-shot model has taught to see.

The text tower is the teacher's. The image tower learns, from pictures without labels, to embed a
picture as the teacher does; so that few pictures suffice, each of its patches learns, too, what the
teacher sees at that place.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from open_clip.model import CLIP
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, cross_entropy, interpolate, normalize

from benchmarks.make_pairs.backbone import IMAGENET, TEMPLATE, config_of
from benchmarks.make_pairs.pictures import pixels_of
from benchmarks.make_pairs.pretraining import fit
from benchmarks.models import Model, load, prompts_of, save_open_clip

_SIZE, _WIDTH = 96, 256
_VISION = {"layers": 6, "width": _WIDTH, "head_width": 64, "image_size": _SIZE, "patch_size": 16}
#: Blocks whose patches learn from two stages of the teacher, and the sides of those maps.
_BLOCKS, _STAGES, _SIDES = [2, 5], [3, 4], (6, 3)
_VIEWS, _LEAST = 2, 0.6  # cuts from each picture, and the shortest side of one
_STEPS, _BATCH, _RATE = 2000, 64, 1e-3
_NAMES_WEIGHT = 0.5


def distil(
    teacher: Path, pictures: Iterable[Image.Image], folder: Path, *, steps: int = _STEPS
) -> None:
    """Distil a zero-shot model and write it, unless it exists.

    Args:
        teacher: OpenCLIP folder of the zero-shot model that teaches.
        pictures: Pictures to learn from.
        folder: Folder to write.
        steps: Steps of learning.
    """
    if folder.is_dir():
        return
    known = load(teacher)
    pixels, lessons = _lessons(known, pixels_of(pictures, known.size))
    config = config_of({**_VISION})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CLIP(**config["model_cfg"])
        weights = known.network.state_dict().items()
        text = {name: value for name, value in weights if not name.startswith("visual.")}
        model.load_state_dict(text, strict=False)
        names = known.texts(prompts_of(IMAGENET, TEMPLATE))
        _learn(model.visual, pixels, lessons, (known.scale * names).detach(), steps)
    save_open_clip(model.eval(), config, folder)


@torch.no_grad()
def _lessons(known: Model, pictures: Tensor) -> tuple[Tensor, list[Tensor]]:
    """What the teacher says of cuts from the pictures.

    Returns:
        The cuts, in [-1, 1], shape (N, 3, size, size); and their embeddings and two maps.
    """
    rng = random.Random(0)
    rows = []
    for piece in pictures.split(32) * _VIEWS:
        cut = _cut(piece, known.size, rng)
        small = interpolate(cut, _SIZE, mode="bilinear", antialias=True)
        large = interpolate(cut, known.size, mode="bilinear", antialias=True)
        told = known.network.visual.forward_intermediates(large, indices=_STAGES)
        row = [small, *_embedding_and_maps(told)]
        rows.append([each.half() for each in row])
    pixels, *lessons = (torch.cat(parts) for parts in zip(*rows, strict=True))
    return pixels, lessons


def _cut(pictures: Tensor, size: int, rng: random.Random) -> Tensor:
    """The same square of each picture, in [-1, 1]."""
    share = rng.uniform(_LEAST, 1)
    side = int(share * size)
    top = rng.randint(0, size - side)
    left = rng.randint(0, size - side)
    cut = pictures[:, :, top : top + side, left : left + side]
    return cut.float() / 127.5 - 1


def _embedding_and_maps(told: dict[str, Any]) -> list[Tensor]:
    """The embedding, and what is seen at each place, in as few places as both models have."""
    found = [told["image_features"]]
    for each, side in zip(told["image_intermediates"], _SIDES, strict=True):
        found.append(adaptive_avg_pool2d(each, side))
    return found


def _learn(
    visual: nn.Module, pixels: Tensor, lessons: list[Tensor], names: Tensor, steps: int
) -> None:
    """Give the teacher's embedding, its maps, and its answers among ImageNet's names."""
    heads = nn.ModuleList([nn.Conv2d(_WIDTH, each.shape[1], 1) for each in lessons[1:]])
    deviations = [_deviation(lesson) for lesson in lessons]

    def loss(_: float) -> Tensor:
        drawn = torch.randint(len(pixels), (_BATCH,))
        seen = pixels[drawn].float()
        wanted = [lesson[drawn].float() for lesson in lessons]
        if torch.rand(()) < 0.5:
            seen = seen.flip(-1)
            wanted[1:] = [each.flip(-1) for each in wanted[1:]]
        with torch.autocast("cpu", torch.bfloat16):
            told = visual.forward_intermediates(seen, indices=_BLOCKS)
            maps = zip(heads, told["image_intermediates"], strict=True)
            told["image_intermediates"] = [head(each).float() for head, each in maps]
        told["image_features"] = told["image_features"].float()
        given = _embedding_and_maps(told)
        logits = normalize(given[0], dim=1) @ names.T
        answers = normalize(wanted[0], dim=1) @ names.T
        total = _NAMES_WEIGHT * cross_entropy(logits, answers.softmax(dim=1))
        for one, other, deviation in zip(given, wanted, deviations, strict=True):
            apart = (one - other) / deviation
            total = total + apart.square().mean()
        return total

    fit([*visual.parameters(), *heads.parameters()], loss, steps, _RATE)


def _deviation(lesson: Tensor) -> Tensor:
    """Standard deviation of each channel, so that all count alike."""
    some = lesson[:4096].float()
    places = [at for at in range(some.dim()) if at != 1]
    return some.std(dim=places, keepdim=True) + 1e-3
