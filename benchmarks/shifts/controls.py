"""Test the use of the box: the steps of `auto` without it, as ordinary fine-tuning from the middle of the path."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.shifts.laboratory import Laboratory
from clipmerge.calibration.goal import Goal, descend
from clipmerge.calibration.learning import prepare
from clipmerge.evaluation.points import Point
from clipmerge.evaluation.tradeoff import height, interval
from clipmerge.planning.recipe import load_recipe
from clipmerge.request import ALPHAS

_START, _IMAGES, _DRAWS = 0.5, 1024, 300
#: Peak learning rates of Adam on the weights; fine-tuning itself took 2e-4 to 3e-3.
RATES = (3e-5, 2e-4)
#: Points between the zero-shot model (0) and the result (1).
_BACK = (0.25, 0.5, 0.75, 1.0)


def free(laboratory: Laboratory) -> dict[str, Any]:
    """Minimise `auto`'s goal over all weights, from theta_0.5, and interpolate the result with the zero-shot model.

    Returns:
        For every rate and every alpha of the interpolation: ID and OOD accuracy, and the gain over the pair's own
        WiSE-FT curve at equal ID accuracy, with its interval.
    """
    curve = laboratory.accuracy([Point(alpha) for alpha in ALPHAS], _DRAWS)
    found = {}
    for rate in RATES:
        with tempfile.TemporaryDirectory() as scratch:
            folder = _finetuned(laboratory, rate, Path(scratch) / "free")
            other = Laboratory(replace(laboratory.trained, finetuned=folder))
            id_, ood = other.accuracy([Point(alpha) for alpha in _BACK], _DRAWS)
        gain = ood - height(*curve, id_)
        found[f"{rate:g}"] = {
            f"{alpha:g}": {
                "id": float(id_[0, place]),
                "ood": float(ood[0, place]),
                "gain": None if gain[0, place] != gain[0, place] else float(gain[0, place]),
                "interval": interval(gain[1:, place]),
            }
            for place, alpha in enumerate(_BACK)
        }
    return found


def _finetuned(laboratory: Laboratory, rate: float, folder: Path) -> Path:
    """Take as many steps as `auto`, on the same images and with the same goal, but over the weights themselves."""
    told = load_recipe("auto").measure
    assert told is not None
    objective = laboratory.objective(_IMAGES)
    with sdpa_kernel(SDPBackend.MATH):
        plan = prepare(objective, Goal(told["robustness"]), told["steps"])
        objective.path.move_to(_START)
        weights = [objective.path.parameters[name] for name in objective.path.task_vector]
        adam = torch.optim.Adam(weights, lr=rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, len(plan))
        for step in plan:
            adam.zero_grad()
            descend(objective, step, Goal(told["robustness"]))
            adam.step()
            schedule.step()
            objective.path.forget(text=objective.path.text_changes)
    return laboratory.written(
        folder, {name: objective.path.parameters[name].detach() for name in objective.path.task_vector}
    )
