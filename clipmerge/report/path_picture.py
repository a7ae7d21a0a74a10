"""The loss on the path from zero-shot to fine-tuned, as a PNG for the model card."""

from __future__ import annotations

import io

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from clipmerge.planning.measurements import LossPath
from clipmerge.report.palette import CURVE, GRID, INK, MUTED
from clipmerge.report.path_chart import barrier_of, path_points

_INCHES, _DOTS = (7.2, 3.8), 120


def path_png(path: LossPath | None) -> bytes | None:
    """Draw the loss against the coefficient of all layers, with the straight line that a barrier is measured from.

    Args:
        path: The loss along the path, if it was measured.

    Returns:
        A PNG, or ``None`` with fewer than two measured points; equal records give equal bytes with the same version
        of matplotlib.
    """
    points = path_points(path)
    if len(points) < 2:
        return None
    figure = Figure(figsize=_INCHES, dpi=_DOTS, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    (first, loss_0), (last, loss_1) = points[0], points[-1]
    axes.plot([first, last], [loss_0, loss_1], "--", color=MUTED, linewidth=1.2, label="straight line")
    axes.plot(*zip(*points, strict=True), "o-", color=CURVE, linewidth=2.2, markersize=5, label="measured loss")
    axes.set_xlabel("alpha of all layers (0 = zero-shot, 1 = fine-tuned)", color=INK)
    axes.set_ylabel("loss, nats", color=INK)
    found = barrier_of(points)
    if found:
        axes.set_title(f"barrier at alpha 0.5: {found[0]:+.3g} nats", color=INK, fontsize=11, loc="left")
    axes.grid(color=GRID)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.tick_params(colors=MUTED)
    axes.margins(0.06, 0.14)
    axes.legend(frameon=False, labelcolor=INK)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
