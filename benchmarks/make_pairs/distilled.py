"""A small vision transformer that a convolutional zero-shot model has taught to see.

The text tower is the teacher's. The image tower learns, from pictures without labels, to embed a
picture as the teacher does; so that few pictures suffice, each of its patches learns, too, what the
teacher sees at that place.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from open_clip.model import CLIP
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, cross_entropy, normalize

from benchmarks.make_pairs.backbone import IMAGENET, TEMPLATE, config_of
from benchmarks.make_pairs.pretraining import fit
from benchmarks.models import load, prompts_of, save_open_clip

_SIZE, _PATCH, _WIDTH, _LAYERS = 96, 16, 256, 6
_VISION = {"layers": _LAYERS, "width": _WIDTH, "head_width": 64}
_VISION |= {"image_size": _SIZE, "patch_size": _PATCH}
#: Blocks whose patches learn from two stages of the teacher, and the sides of what they learn.
_BLOCKS, _STAGES, _SIDES = (_LAYERS // 2 - 1, _LAYERS - 1), (3, 4), (_SIZE // _PATCH, 3)
_VIEWS, _LEAST = 2, 0.35  # cuts from each picture, and the least share of it in one
_STEPS, _BATCH, _RATE = 2000, 64, 1e-3
_NAMES_WEIGHT = 0.5
#: Embedding, and two maps, of each picture: float16, first dimension N.
Lessons = list[Tensor]


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
    pixels, lessons = _lessons(known, pictures)
    config: dict[str, Any] = config_of({**_VISION})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CLIP(**config["model_cfg"])
        text = known.network.state_dict().items()
        taken = {name: value for name, value in text if not name.startswith("visual.")}
        model.load_state_dict(taken, strict=False)
        names = known.texts(prompts_of(IMAGENET, TEMPLATE)).detach()
        _learn(model.visual, pixels, lessons, known.scale.detach() * names, steps)
    save_open_clip(model.eval(), config, folder)


@torch.no_grad()
def _lessons(known: Any, pictures: Iterable[Image.Image]) -> tuple[Tensor, Lessons]:
    """Views of the pictures, shape (N, 3, size, size) of 8 bits, and what the teacher says."""
    pixels = []
    lessons: list[Lessons] = []
    for piece in _pieces(_views(pictures), 32):
        pixels += [_as_pixels(view, _SIZE) for view in piece]
        large = torch.stack([_as_pixels(view, known.size) for view in piece])
        seen = (large.float() / 255 - 0.5) / 0.5
        seen = seen.contiguous(memory_format=torch.channels_last)
        told = known.network.visual.forward_intermediates(seen, indices=list(_STAGES))
        maps = []
        for each, side in zip(told["image_intermediates"], _SIDES, strict=True):
            maps.append(adaptive_avg_pool2d(each, side).half())
        lessons.append([told["image_features"].half(), *maps])
    return torch.stack(pixels), [torch.cat(parts) for parts in zip(*lessons, strict=True)]


def _views(pictures: Iterable[Image.Image]) -> Iterator[Image.Image]:
    rng = random.Random(0)
    for picture in pictures:
        for _ in range(_VIEWS):
            side = rng.uniform(_LEAST**0.5, 1) * min(picture.size)
            left = rng.uniform(0, picture.width - side)
            top = rng.uniform(0, picture.height - side)
            yield picture.crop((int(left), int(top), int(left + side), int(top + side)))


def _pieces(views: Iterator[Image.Image], count: int) -> Iterator[list[Image.Image]]:
    while piece := [view for _, view in zip(range(count), views, strict=False)]:
        yield piece


def _as_pixels(view: Image.Image, size: int) -> Tensor:
    resized = view.resize((size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.asarray(resized).copy()).permute(2, 0, 1)


def _learn(visual: Any, pixels: Tensor, lessons: Lessons, names: Tensor, steps: int) -> None:
    """Give the teacher's embedding, its maps, and its answers among ImageNet's names."""
    heads = nn.ModuleList([nn.Conv2d(_WIDTH, each.shape[1], 1) for each in lessons[1:]])
    scales = [_scale(each) for each in lessons]
    generator = torch.Generator().manual_seed(0)

    def loss(_: float) -> Tensor:
        drawn = torch.randint(len(pixels), (_BATCH,), generator=generator)
        seen = (pixels[drawn].float() / 255 - 0.5) / 0.5
        wanted = [each[drawn].float() for each in lessons]
        if torch.rand((), generator=generator) < 0.5:
            seen = seen.flip(-1)
            wanted = [wanted[0], *(each.flip(-1) for each in wanted[1:])]
        with torch.autocast("cpu", torch.bfloat16):
            told = visual.forward_intermediates(seen, indices=list(_BLOCKS))
            given = [told["image_features"].float()]
            for head, each, side in zip(heads, told["image_intermediates"], _SIDES, strict=True):
                given.append(adaptive_avg_pool2d(head(each).float(), side))
        answers = (normalize(wanted[0], dim=1) @ names.T).softmax(dim=1)
        total = cross_entropy(normalize(given[0], dim=1) @ names.T, answers) * _NAMES_WEIGHT
        for one, other, scale in zip(given, wanted, scales, strict=True):
            total = total + ((one - other) / scale).square().mean()
        return total

    fit([*visual.parameters(), *heads.parameters()], loss, steps, _RATE)


def _scale(lesson: Tensor) -> Tensor:
    """Standard deviation of each feature."""
    places = [at for at in range(lesson.dim()) if at != 1]
    return lesson[:4096].float().std(dim=places, keepdim=True) + 1e-3
