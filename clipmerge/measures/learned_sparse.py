"""Learn coefficients together with sparse masks for the straggler layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from clipmerge.learning.choose import learn
from clipmerge.learning.interpolate import Coefficients
from clipmerge.learning.objective import Objective
from clipmerge.learning.train import LearningOptions
from clipmerge.measures.learned_coefficients import learned_measurements
from clipmerge.measures.sharpness import STRAGGLER_SHARE, measure_sharpness
from clipmerge.planning.measurements import Measurements
from clipmerge.plugins import Density, Share

LEARNS = HOLDS_BACK = True


@dataclass(frozen=True, kw_only=True)
class SparseOptions(LearningOptions):
    """Options of `learned_sparse`: those of `LearningOptions`, and those of stragglers.

    Attributes:
        granularity: Unit with its own coefficient. A mask needs more than one per parameter.
        share: Stragglers are the fewest layers that together have this share of the blocks'
            sharpness.
        density: Share of a straggler parameter's coefficients that is kept.
    """

    granularity: Literal["channel", "entry"] = "entry"
    share: Share = STRAGGLER_SHARE
    density: Density = 0.5


OPTIONS = SparseOptions


def learned_sparse(objective: Objective, **options: Any) -> Measurements:
    """Learn coefficients, of which straggler layers keep only a share. Their other weights stay
    zero-shot.

    Stragglers are the sharpest layers of the transformer blocks at the start of learning. The
    sharpness of a layer is ||gradient|| times ||task vector||. In a straggler, each coefficient has
    a score, and each parameter keeps the coefficients with the largest scores. The others are zero,
    so these weights are those of the zero-shot model, bit for bit. Gradients still change the
    scores of dropped coefficients (straight-through), so a dropped coefficient can return.

    If held-out images choose to go a share of the way back to the fine-tuned model, the same share
    of the dropped coefficients returns.

    Args:
        objective: Calibration loss. Its weights are left at the chosen coefficients.
        **options: See `SparseOptions`.

    Returns:
        The results of `learned_coefficients`, and the statistics ``sharpness`` in nats,
        ``sharpness_share`` of the total, and ``straggler``, 1 or 0.

    Raises:
        ClipmergeError: If a loss is not finite.

    Source:
        Inspired by Abdollahpoorrostam 2024, arXiv:2410.16476; straight-through: Bengio et al. 2013,
        arXiv:1308.3432. The definitions are ours.
    """
    chosen = SparseOptions(**options)
    coefficients = Coefficients(objective.path, chosen.granularity, chosen.start)
    objective.path.set_alpha(chosen.start)
    measured = measure_sharpness(objective, chosen.share)
    stragglers = [layer for layer, value in measured["straggler"].values.items() if value]
    names = [name for layer in stragglers for name in objective.path.layers[layer]]
    coefficients.make_sparse(names, chosen.density, objective.seed)
    learned = learn(objective, coefficients, chosen)
    measurements = learned_measurements("learned-sparse", objective, coefficients, *learned)
    return measurements.replace(statistics=(*measurements.statistics, *measured.statistics))
