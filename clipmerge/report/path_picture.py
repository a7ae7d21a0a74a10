"""The loss on the path from zero-shot to fine-tuned: for the report, and as a PNG for the model card."""

from __future__ import annotations

from matplotlib.figure import Figure

from clipmerge.planning.measurements import LossPath
from clipmerge.report import drawing
from clipmerge.report.loss_path import barrier_of, path_points
from clipmerge.report.palette import CURVE, INK, MUTED, SECOND

_INCHES = (7.2, 3.8)


def path_figure(path: LossPath | None, inches: tuple[float, float] = _INCHES) -> Figure | None:
    """Draw the loss against the coefficient of all layers, with the straight line that a barrier is measured from.

    Args:
        path: The loss along the path, if it was measured.
        inches: Width and height.

    Returns:
        The figure, or ``None`` with fewer than two measured points.
    """
    points = path_points(path)
    if len(points) < 2 or points[0][0] == points[-1][0]:
        return None
    figure, axes = drawing.new_figure(*inches)
    (first, loss_0), (last, loss_1) = points[0], points[-1]
    axes.plot([first, last], [loss_0, loss_1], "--", color=MUTED, linewidth=1.2, label="straight line")
    axes.plot(*zip(*points, strict=True), "o-", color=CURVE, linewidth=2.2, markersize=5, label="measured loss")
    found = barrier_of(points)
    if found:
        barrier, average = found
        label = f"barrier: {barrier:.3g}" if barrier > 0 else f"{-barrier:.3g} below the line"
        axes.plot([0.5, 0.5], [average, average + barrier], color=SECOND, linewidth=2.2, label=label, zorder=1.5)
    axes.set_xlabel("alpha of all layers (0 = zero-shot, 1 = fine-tuned)")
    axes.set_ylabel("loss, nats")
    axes.margins(0.04, 0.1)
    drawing.legend_above(axes, INK, columns=3 if inches == _INCHES else 2)
    return figure


def path_png(path: LossPath | None) -> bytes | None:
    """Draw the path for the model card.

    Args:
        path: The loss along the path, if it was measured.

    Returns:
        A PNG, or ``None`` with fewer than two measured points; equal records give equal bytes with the same version
        of matplotlib.
    """
    figure = path_figure(path)
    return drawing.png(figure) if figure else None
