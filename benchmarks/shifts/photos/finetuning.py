"""Fine-tune a zero-shot model by cross-entropy over the prompts of the target's classes."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from open_clip.model import CLIP
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from benchmarks.shifts.photos.backbone import as_input, load_model, prompts, save_model

_LOG = logging.getLogger("benchmarks")
_LARGEST_MOVE = 8
#: Pictures computed at once: a batch of 64 in one piece takes more than twice as long on a CPU.
_PIECE = 16


@dataclass(frozen=True)
class Regime:
    """Settings of fine-tuning.

    Attributes:
        rate: Peak learning rate.
        epochs: Passes over the pictures.
        text: Whether the text tower is trained too.
        batch: Pictures per step.
    """

    rate: float
    epochs: float
    text: bool = False
    batch: int = 64


def finetune(
    zeroshot: Path,
    how: Regime,
    seed: int,
    pixels: Tensor,
    labels: Tensor,
    classes: Sequence[str],
    folder: Path,
) -> None:
    """Fine-tune a model and write it, unless it exists; batch normalization and the temperature
    stay as they are.

    Args:
        zeroshot: Folder of theta_0.
        how: Settings.
        seed: Seed of batches and changes.
        pixels: RGB of 8 bits, shape (N, S, S, 3).
        labels: Class of each picture.
        classes: Class names.
        folder: Folder to write.
    """
    if folder.is_dir():
        return
    begin = time.monotonic()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1000 + seed)
        model = load_model(zeroshot)
        model.visual.to(memory_format=torch.channels_last)
        _train(model, how, pixels, labels, prompts(classes))
    save_model(
        model, json.loads((zeroshot / "open_clip_config.json").read_text(encoding="utf-8")), folder
    )
    _LOG.info("%s: fine-tuned in %.0f s", folder.name, time.monotonic() - begin)


def _train(model: CLIP, how: Regime, pixels: Tensor, labels: Tensor, tokens: Tensor) -> None:
    towers = {name: value for name, value in model.named_parameters() if name != "logit_scale"}
    learned = [value for name, value in towers.items() if how.text or name.startswith("visual.")]
    optimizer = torch.optim.AdamW(learned, lr=how.rate, weight_decay=0.05)
    steps = max(1, int(how.epochs * len(pixels) / how.batch))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, how.rate, total_steps=max(2, steps), pct_start=0.1
    )
    order = torch.cat([torch.randperm(len(pixels)) for _ in range(int(how.epochs) + 1)])
    with torch.no_grad():
        fixed = normalize(model.encode_text(tokens), dim=1)
    for step in range(steps):
        at = order[step * how.batch : (step + 1) * how.batch]
        images = _changed(as_input(pixels[at]))
        optimizer.zero_grad()
        add_gradients(
            model,
            images,
            labels[at],
            normalize(model.encode_text(tokens), dim=1) if how.text else fixed,
        )
        optimizer.step()
        schedule.step()


def add_gradients(model: CLIP, images: Tensor, labels: Tensor, texts: Tensor) -> None:
    """Add the gradients of the mean cross-entropy of a batch, piece by piece.

    Args:
        model: The model.
        images: Its input, shape (N, 3, S, S).
        labels: Class of each.
        texts: Embeddings of the class prompts; the text tower gets gradients if they have any.
    """
    scale, leaf = (
        model.logit_scale.exp().detach(),
        texts.detach().requires_grad_(texts.requires_grad),
    )
    for piece, right in zip(images.split(_PIECE), labels.split(_PIECE), strict=True):
        logits = scale * normalize(model.encode_image(piece), dim=1) @ leaf.T
        (cross_entropy(logits, right, reduction="sum") / len(images)).backward()
    if leaf.grad is not None:
        texts.backward(leaf.grad)


def _changed(images: Tensor) -> Tensor:
    """Mirror every second picture, and move all of them a few pixels."""
    mirrored = torch.rand(len(images)) < 0.5
    images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
    down, right = torch.randint(-_LARGEST_MOVE, _LARGEST_MOVE + 1, (2,)).tolist()
    return images.roll((down, right), (2, 3)).contiguous(memory_format=torch.channels_last)
