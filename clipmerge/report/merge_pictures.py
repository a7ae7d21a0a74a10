"""The pictures of a merge's report, as markup in the page's colours; there are none if nothing was
measured.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from clipmerge.output.record import MergeRecord
from clipmerge.planning.measurements import LossPath
from clipmerge.planning.tensors import TOP
from clipmerge.report import drawing
from clipmerge.report.palette import CURVE, MARKS, MUTED, SECOND, SET
from clipmerge.report.text import teacher

# In inches: as wide as a telephone, so that text stays readable there; a page puts several side by
# side.
_WIDTH, _HEIGHT = 4.6, 2.9
_CARD_INCHES = (7.2, 3.8)  # of the picture on the model card
# Maximum number of pictures of one kind: a record from a stranger may name a tower for every two
# layers.
_MOST_PARTS = 8


@dataclass(frozen=True)
class Picture:
    """One picture of a page; the caption is empty if it is the previous one's."""

    title: str
    svg: Markup
    caption: str


def pictures_of(record: MergeRecord, towers: dict[str, str]) -> list[Picture]:
    """What was learned, the coefficients by tower and the losses by step, and the loss along the
    path.
    """
    pictures = []
    spread = {
        tower: counts for tower, counts in record.coefficients.items() if sum(counts) > 1
    }  # a scalar has none
    for tower, counts in itertools.islice(spread.items(), _MOST_PARTS):
        title = f"{towers.get(tower, tower)}: coefficients"
        figure = _histogram(counts, list(spread.values()))
        caption = f"How far the {sum(counts):,} weights of this tower go."
        pictures.append(
            Picture(title, drawing.markup(figure, f"coefficients-{tower}", title), caption)
        )
    if record.trace and any(any(values) for values in record.trace.values()):
        title = "Losses while learning"
        caption = (
            "Each step sees different images with different changes, so the lines jump; thick lines"
            " are running means."
        )
        if distilled := teacher(record):
            caption += f" The distillation loss is that from {distilled}, on changed images."
        pictures.append(Picture(title, drawing.markup(_trace(record), "trace", title), caption))
    path = record.path and path_picture(record.path)
    return [*pictures, *([path] if path else [])]


def path_figure(path: LossPath, inches: tuple[float, float] = _CARD_INCHES) -> Figure | None:
    """Draw the loss against the coefficient of all layers, with the straight line that a barrier is
    measured from.
    """
    points = path.points
    if len(points) < 2 or points[0][0] == points[-1][0]:
        return None
    figure, axes = drawing.new_figure(*inches)
    (first, loss_0), (last, loss_1) = points[0], points[-1]
    axes.plot(
        [first, last],
        [loss_0, loss_1],
        "--",
        color=MUTED,
        linewidth=1.2,
        label="line between the ends",
    )
    axes.plot(
        *zip(*points, strict=True),
        "o-",
        color=CURVE,
        linewidth=2.2,
        markersize=5,
        label="measured loss",
    )
    if path.barrier:
        barrier, average = path.barrier
        label = f"barrier: {barrier:.3g}" if barrier > 0 else f"{-barrier:.3g} below that line"
        axes.plot(
            [0.5, 0.5],
            [average, average + barrier],
            color=SECOND,
            linewidth=2.2,
            label=label,
            zorder=1.5,
        )
    axes.set_xlabel("alpha of all layers (0 = zero-shot, 1 = fine-tuned)")
    axes.set_ylabel("loss, nats")
    axes.margins(0.04, 0.1)
    drawing.legend_above(axes, columns=3 if inches == _CARD_INCHES else 2)
    return figure


def path_png(path: LossPath) -> bytes | None:
    """Draw the path for the model card."""
    figure = path_figure(path)
    return drawing.saved(figure, "png") if figure else None


def path_picture(path: LossPath) -> Picture | None:
    """The loss along the straight path, if it was measured at two points."""
    figure = path_figure(path, (_WIDTH, _HEIGHT))
    if figure is None:
        return None
    caption = (
        "Cross-entropy on the calibration images when every layer has the same alpha and nothing is"
        " masked."
    )
    if path.barrier:
        barrier, average = path.barrier
        side, verb = (
            ("above", "there is a barrier") if barrier > 0 else ("below", "there is no barrier")
        )
        caption += (
            f" At alpha 0.5 it is {average + barrier:.3f} nats, {abs(barrier):.3f} {side} the"
            f" average of the ends ({average:.3f}): {verb} between the two models."
        )
    values = "; ".join(f"alpha {alpha:g}: {loss:.3f} nats" for alpha, loss in path.points)
    label = f"Loss on the straight path from zero-shot to fine-tuned. {values}."
    return Picture("Loss along the path", drawing.markup(figure, "path", label), caption)


def _histogram(counts: Sequence[int], towers: Sequence[Sequence[int]]) -> Figure:
    """Shares by coefficient, on axes that suit all towers, so that they can be compared."""
    figure, axes = drawing.new_figure(_WIDTH, _HEIGHT)
    width = TOP / len(counts)
    shares = [[count / sum(tower) for count in tower] for tower in towers]
    last = max(place for tower in shares for place, share in enumerate(tower) if share)
    places = [(place + 0.5) * width for place in range(len(counts))]
    axes.bar(places, [count / sum(counts) for count in counts], width=0.9 * width, color=SET)
    axes.set_xlim(-0.01, max(1.0, (last + 1) * width) + 0.01)
    axes.set_ylim(0.0, 1.04 * max(share for tower in shares for share in tower))
    axes.set_xlabel("coefficient (0 = zero-shot, 1 = fine-tuned)")
    axes.set_ylabel("share of the weights")
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g}%"))
    axes.grid(visible=False, axis="x")
    return figure


def _trace(record: MergeRecord) -> Figure:
    figure, axes = drawing.new_figure(_WIDTH, _HEIGHT)
    names = {
        "cross_entropy": "loss on your images",
        "distillation_loss": "distillation loss",
    }
    shown = [(name, values) for name, values in record.trace.items() if any(values)]
    for (name, values), colour in zip(shown, (CURVE, SECOND, *MARKS[1:]), strict=False):
        steps, half = (
            range(1, len(values) + 1),
            len(values) // 20,
        )  # a mean over a tenth of the steps
        windows = [values[max(0, place - half) : place + half + 1] for place in range(len(values))]
        means = [sum(window) / len(window) for window in windows]
        axes.plot(steps, values, color=colour, linewidth=0.8, alpha=0.35)
        axes.plot(steps, means, color=colour, linewidth=2.2, label=names.get(name, name))
    axes.set_xlabel("step")
    axes.set_ylabel("nats")
    axes.set_ylim(bottom=0.0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    drawing.legend_above(axes, columns=2)
    return figure
