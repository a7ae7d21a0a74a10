"""Count what a step of `auto` does on a card, by size; see `benchmarks.gpu.count`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

from benchmarks.gpu.count import BYTES, FLOPS, IMAGES
from clipmerge.distributed import device_work
from clipmerge.learning.coefficients import Coefficients
from clipmerge.learning.descent import Descent, LossScale
from clipmerge.learning.learn import LearningConfig, learn
from clipmerge.learning.learning_loss import LossConfig, with_teacher_targets
from clipmerge.learning.steps import lay_out
from clipmerge.learning.weights import InterpolatedWeights
from clipmerge.models.precision import passes
from tests.support.pretended_device import Counts, counted, taken
from tests.support.real_sizes import hollow_objective

_LEARNING = import_module("clipmerge.learning.learn")
_LOSS = LossConfig(0.5, distill="both", weak_aug=1.0, strong_aug=40, precision="auto")


# Functions, and the part of learning that their work counts for.
_PARTS: tuple[tuple[Any, str, str], ...] = (
    (_LEARNING._Run, "_descend", "rest"),
    (_LEARNING, "with_teacher_targets", "teacher"),
    (_LEARNING, "backpropagate", "pictures"),
    (_LEARNING, "make_pictures", "pictures"),
    (Coefficients, "place", "place"),
    (Coefficients, "_move_waiting_gradients", "weights"),
    (Descent, "step", "weights"),
    (LossScale, "unscale", "weights"),
    (InterpolatedWeights, "set_alpha", "once"),
)


_OTHERS = ("taught", "else", "rest", "image")
# Steps whose teachers see their images at once; passes of a look, and the pictures of each: about
# 400 of 205 held-out images.
_TAUGHT, _LOOKS, _LOOK = 7, 10, 41
_NAMES = {part for *_, part in _PARTS}


class Tally:
    """Work by the part of learning that does it."""

    def __init__(self, counts: Counts) -> None:
        self.part = "else"
        none = dict.fromkeys(("kernels", "flops", "bytes", "seconds"), 0.0)
        self.works = {part: dict(none) for part in (*_OTHERS, *_NAMES)}
        self.waits = dict.fromkeys(self.works, 0)
        self._counts = counts
        counts.watch = self._watch

    def _watch(self, func: Any, given: list[Any], options: dict[str, Any], out: Any) -> None:
        work = self.works[self.part]
        tensors = [*_tensors(given), *_tensors(list(options.values())), *_tensors([out])]
        moved = sum(min(each.numel() * each.element_size(), _held(each)) for each in tensors)
        formula = flop_registry.get(func.overloadpacket)
        flops = formula(*given, **options, out_val=out) if formula else 0
        bits = 32 if any(each.dtype == torch.float32 for each in tensors[:2]) else 16
        work["kernels"] += 1
        work["flops"] += flops
        work["bytes"] += moved
        work["seconds"] += max(flops / FLOPS[bits], moved / BYTES)

    @contextmanager
    def during(self, part: str) -> Iterator[None]:
        """Let work count for a part; within another one, for the inner one."""
        before, waits = self.part, self._counts.waits
        self.part = part
        try:
            yield
        finally:
            self.part = before
            self.waits[part] += self._counts.waits - waits

    @contextmanager
    def parts(self) -> Iterator[None]:
        """Let functions of learning count for their parts."""
        before = [(owner, name, getattr(owner, name)) for owner, name, _ in _PARTS]
        for (owner, name, function), (*_, part) in zip(before, _PARTS, strict=True):

            def run(*args: Any, _function: Any = function, _part: str = part, **more: Any) -> Any:
                with self.during(_part):
                    return _function(*args, **more)

            setattr(owner, name, run)
        try:
            yield
        finally:
            for owner, name, function in before:
                setattr(owner, name, function)


def _held(tensor: Tensor) -> int:
    return int(tensor.untyped_storage().nbytes())


def _tensors(values: list[Any]) -> list[Tensor]:
    found = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += _tensors(list(value))
    return found


def _per(work: dict[str, float], count: int) -> dict[str, float]:
    return {name: value / count for name, value in work.items()}


def _sum(*works: dict[str, float]) -> dict[str, float]:
    return {name: sum(work[name] for work in works) for name in works[0]}


def count(size: str) -> dict[str, Any]:
    """Counts of a step, of its teachers, of a look at the held-out images, and of an image."""
    with tempfile.TemporaryDirectory() as folder, counted(hollow=True, most=80 << 30) as counts:
        before = taken()
        objective = hollow_objective(Path(folder), size, images=IMAGES)
        values = Coefficients(objective, "entry")
        tally = Tally(counts)
        with device_work(), tally.parts():
            learn(objective, values, LearningConfig(_LOSS, 1, 0.033, batch=40))
            with tally.during("taught"):
                with_teacher_targets(objective, lay_out(objective, _TAUGHT, batch=40).steps, _LOSS)
        module = objective.criterion.model.module
        pixels = objective.data.batches[0].pixels[:_LOOK]
        with tally.during("image"), torch.no_grad(), passes(pixels.device, "auto"):
            objective.criterion.embed(pixels)
        works = tally.works
        # the coefficients are placed once more at the end
        placed = _per(works["place"], 2)
        return {
            "weights": sum(each.numel() for each in module.parameters()),
            "moving": sum(value.numel() for value in values.values.values()),
            "peak": counts.peak - before,
            "waits": tally.waits["rest"],
            "inside": tally.waits["pictures"],
            "step": _sum(works["pictures"], works["rest"], works["weights"], placed),
            "pictures": works["pictures"],
            "teacher": _per(works["taught"], _TAUGHT),
            "look": {name: _LOOKS * value for name, value in works["image"].items()},
            "image": _per(works["image"], len(pixels)),
        }
