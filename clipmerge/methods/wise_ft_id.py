"""One coefficient for every layer, chosen on images of the target data."""

from __future__ import annotations

from typing import Literal

from clipmerge.errors import UsageError
from clipmerge.methods import Decision, Task
from clipmerge.plugins import Alpha


def wise_ft_id(
    task: Task, *, criterion: Literal["accuracy", "loss"] = "accuracy", at_most: Alpha = 1.0
) -> Decision:
    """Interpolate all weights with the coefficient that is best on the calibration images.

    The best coefficient there is usually not the best under a shift: WiSE-FT reports about two
    points less out-of-distribution accuracy than with alpha 0.5. This method is a baseline, and the
    right choice if only the target data matters.

    Args:
        task: The checkpoints, and the measurements if the recipe has a measure.
        criterion: ``accuracy`` (highest) or ``loss`` (lowest); ties go to the smallest alpha,
            closest to zero-shot.
        at_most: Largest alpha considered.

    Returns:
        The same coefficient for every layer.

    Raises:
        UsageError: If the measure did not try the path, or no point of it has a small enough
            alpha.

    Source:
        WiSE-FT, Wortsman et al. 2022, arXiv:2109.01903; chosen on held-out data as in PAINT,
        Ilharco et al. 2022, arXiv:2208.05592.
    """
    measurements = task.need_measured(
        "the accuracy along the path", "path-accuracy", lambda found: found.path and found.mixtures
    )
    assert measurements.path is not None
    points = zip(measurements.path.alphas, measurements.mixtures, strict=True)
    considered = {alpha: mixture for alpha, mixture in points if alpha <= at_most}
    if not considered:
        raise UsageError(f"no point of the path has an alpha of at most {at_most:g}")

    def loss_of(alpha: float) -> float:
        tried = considered[alpha]
        return -tried.accuracy if criterion == "accuracy" else tried.loss

    alpha = min(considered, key=lambda alpha: (loss_of(alpha), alpha))
    best = considered[alpha]
    score = f"{best.accuracy:.1%}" if criterion == "accuracy" else f"{best.loss:.3f}"
    return Decision(
        task.everywhere(alpha),
        found=(
            f"alpha {alpha:g} was the best of {len(considered)} points on the calibration images"
            f" ({criterion} {score})"
        ),
        weights=task.uniform_weights,
    )
