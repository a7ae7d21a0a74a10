"""A small ViT that takes the place of another CLIP's image tower, and keeps its text tower.

It learns, contrastively and without labels, to place real pictures where the other tower places
them.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from open_clip.model import CLIP
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.make_pairs.pictures import Picture
from benchmarks.models import Regime, load, moved, save_open_clip

SIZE = 96
_VISION = {"image_size": SIZE, "patch_size": 16, "width": 128, "layers": 4, "head_width": 32}
_STEPS, _BATCH, _RATE = 400, 128, 1e-3
_MOVES = Regime(_RATE, 0)
_SHARPNESS = 20.0


def teach_vit(teacher: Path, pictures: Sequence[Picture], folder: Path) -> None:
    """Teach a ViT by unlabelled pictures and write it, unless it exists."""
    if folder.is_dir():
        return
    known = load(teacher)
    config = json.loads((teacher / "open_clip_config.json").read_text(encoding="utf-8"))
    config["model_cfg"]["vision_cfg"] = _VISION
    images = [picture.image() for picture in pictures]
    wanted = known.embedded(known.input(images))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = CLIP(**copy.deepcopy(config["model_cfg"]))
        texts = known.network.state_dict().items()
        texts = {name: value for name, value in texts if not name.startswith("visual.")}
        network.load_state_dict(texts, strict=False)
        _fit(network, replace(known, size=SIZE).input(images), wanted)
    save_open_clip(network, config, folder)


def _fit(network: CLIP, pixels: Tensor, wanted: Tensor) -> None:
    learned = list(network.visual.parameters())
    optimizer = torch.optim.AdamW(
        learned,
        lr=_RATE,
        weight_decay=0.05,
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        _RATE,
        total_steps=_STEPS,
    )
    for _ in range(_STEPS):
        at = torch.randperm(len(pixels))[:_BATCH]
        seen = network.encode_image(moved(pixels[at], _MOVES), normalize=True)
        alike = _SHARPNESS * seen @ wanted[at].T
        right = torch.arange(len(at))
        apart = cross_entropy(alike, right) + cross_entropy(alike.T, right)
        near = (seen * wanted[at]).sum(dim=1).mean()
        optimizer.zero_grad()
        (apart / 2 - near).backward()
        optimizer.step()
        schedule.step()
