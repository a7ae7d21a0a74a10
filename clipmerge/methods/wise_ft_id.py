"""One coefficient for every layer, chosen on images of the target data."""

from __future__ import annotations

from clipmerge.methods import Decision, Task


def wise_ft_id(task: Task) -> Decision:
    """Interpolate all weights with the coefficient that is most accurate on the calibration images.

    Of equally accurate points, the smallest alpha is taken. The best coefficient on the target is
    usually not the best under a shift: WiSE-FT reports about two points less out-of-distribution
    accuracy than with alpha 0.5. Use this method if only the target matters, or as a baseline.

    Args:
        task: The checkpoints and the measurements.

    Returns:
        The same coefficient for every layer.

    Raises:
        UsageError: If the accuracy along the path was not measured.

    Source:
        WiSE-FT, Wortsman et al. 2022, arXiv:2109.01903. Its alpha is chosen on held-out data as in
        PAINT, Ilharco et al. 2022, arXiv:2208.05592.
    """
    measurements = task.need_measured(
        "the accuracy along the path", "path-accuracy", lambda found: found.path and found.mixtures
    )
    assert measurements.path is not None
    accuracies = [mixture.accuracy for mixture in measurements.mixtures]
    accuracy = max(accuracies)
    alpha = measurements.path.alphas[accuracies.index(accuracy)]  # they ascend
    return Decision(
        task.everywhere(alpha),
        found=(
            f"alpha {alpha:g} was the best of {len(accuracies)} points on the calibration images"
            f" (accuracy {accuracy:.1%})"
        ),
        weights=task.uniform_weights,
    )
