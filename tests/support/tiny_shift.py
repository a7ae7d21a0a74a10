"""A tiny pair with pictures, evaluated like those of the benchmarks."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.shifts import pictures
from benchmarks.shifts.evaluation import Evaluation, contestants, evaluate_pair
from benchmarks.shifts.experiment import TrainedPair
from tests.support.tiny_clip import CLASSES, save_pair

SIZE = 32
SMALL = Evaluation(alphas=(0.0, 0.5, 1.0), images=24)


def evaluated_pair(folder: Path) -> tuple[TrainedPair, Path]:
    """Make the pair and its pictures in a folder and merge it by three recipes."""
    generator = torch.Generator().manual_seed(0)
    drawings = torch.randint(0, 256, (12, 4, 2 * SIZE, 2 * SIZE), generator=generator, dtype=torch.uint8)
    for seed, name in enumerate(("calibration", "test", "odd")):
        taken = pictures.Pictures(drawings, torch.arange(12) % 3, 2, seed, None, torch.arange(12))
        pictures.write_pictures(folder / name, CLASSES, taken)
    ends = save_pair(folder, change=1.0)
    pair = TrainedPair("aggressive", 1, *ends, folder / "calibration", folder / "test", {"odd": folder / "odd"})
    file = folder / "results" / "aggressive-1.json"
    evaluate_pair(pair, contestants(only=("wise-ft", "lines", "monosoup")), file, SMALL)
    return pair, file
