"""The loss on the path from zero-shot to fine-tuned, as a PNG for the model card."""

from __future__ import annotations

import io
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from clipmerge.report.columns import barrier_of, path_points

_CURVE, _INK, _MUTED = "#1f6fb2", "#1b1f24", "#59626d"
_INCHES, _DOTS = (7.2, 3.8), 120


def path_png(record: dict[str, Any]) -> bytes | None:
    """Draw the loss over the coefficient of all layers, with the straight line that a barrier is measured from.

    Args:
        record: A merge's record; ``path`` is needed.

    Returns:
        A PNG, or ``None`` with fewer than two measured points; equal records give equal bytes with one version of
        matplotlib.
    """
    points = path_points(record.get("path"))
    if len(points) < 2:
        return None
    figure = Figure(figsize=_INCHES, dpi=_DOTS, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    (first, loss_0), (last, loss_1) = points[0], points[-1]
    axes.plot([first, last], [loss_0, loss_1], "--", color=_MUTED, linewidth=1.2, label="straight line")
    axes.plot(*zip(*points, strict=True), "o-", color=_CURVE, linewidth=2.2, markersize=5, label="measured loss")
    axes.set_xlabel("alpha of all layers (0 = zero-shot, 1 = fine-tuned)", color=_INK)
    axes.set_ylabel("loss, nats", color=_INK)
    found = barrier_of(points)
    if found:
        axes.set_title(f"barrier at alpha 0.5: {found[0]:+.3g} nats", color=_INK, fontsize=11, loc="left")
    axes.grid(color="#eceff2")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_MUTED)
    axes.tick_params(colors=_MUTED)
    axes.margins(0.06, 0.14)
    axes.legend(frameon=False, labelcolor=_INK)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
