"""Every picture, drawn by matplotlib in one style: of a merge's report and card, and of a sweep.

The picture of a sweep is that of the WiSE-FT paper: mean OOD accuracy against ID accuracy. The
alpha curve connects both ends, and every recipe has its own mark, named in the legend.
"""

from __future__ import annotations

import io
import itertools
import warnings
from base64 import b64decode, b64encode
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter
from PIL import Image
from rich.cells import cell_len

from clipmerge.errors import OutputError
from clipmerge.output.record import TOP, Record
from clipmerge.planning.measurements import LossPath
from clipmerge.planning.merge_effect import THUMBNAIL, MergeEffect
from clipmerge.report.sweep_table import curve_ends, shorten_middle
from clipmerge.report.text import distillation_text, effect_title, off_curve_rows
from clipmerge.types import Json

CURVE, INK, MUTED, GRID = "#1f6fb2", "#1b1f24", "#59626d", "#eceff2"
#: Colours of recipes, without the curve's blue.
MARKS = ("#c2410c", "#6b4fbb", "#0f766e", "#b8285f", "#8a6d00", "#3b4cc0", "#5b7f00", "#7a4a2b")
#: Shapes of recipes, as matplotlib names them; the circle is the alpha curve's.
SHAPES = ("D", "^", "s", "P", "v", "X", "<", "p", ">", "h")
#: The shipped recipes; a recipe's place here gives it one colour and one shape in all pictures of
#: the project.
RECIPES = (
    "auto",
    "straggler-sparse",
    "lines",
    "monosoup",
    "tpgm",
    "wise-ft-id",
    "straggler-outlier",
    "wise-ft",
    "monosoup-energy",
    "fisher",
    "regmean",
    "model-stock",
    "uniform-soup",
    "greedy-soup",
    "ties",
    "dare",
    "della",
    "breadcrumbs",
    "task-arithmetic",
    "dg-hard",
)
# In inches: of a picture in a report, so wide that its words are readable on a telephone; of one on
# a card; and of a sweep.
_REPORT, _CARD, _SWEEP = (4.6, 2.9), (7.2, 3.8), (8.0, 5.6)
_DOTS = 160  # per inch
_TOWERS = {"vision": "Vision tower", "text": "Text tower", "head": "Classification head"}
# Metadata that would differ between versions and times, by kind of file.
_METADATA = {
    "png": ("Software",),
    "svg": ("Date", "Creator"),
    "pdf": ("CreationDate", "Creator", "Producer"),
}
# Maximum number of histograms: a record from a stranger may name a tower for every two layers.
_MAX_TOWERS = 8
# Characters of an example's caption.
_LONGEST_CAPTION = 90
# Terminal cells, half as wide as high, for the name of a recipe and of the sources; letters have
# about that size too.
_NAME_CELLS, _SOURCE_CELLS = 36, 40
# Width of a mark in points, and its growth for each mark that lies on top of it, up to a number.
_MARK, _GROWTH, _MAX_GROWTHS = 10.0, 5.0, 4


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """Make a figure of so many inches with one set of axes, in the style of all pictures."""
    figure = Figure(figsize=(width, height), dpi=_DOTS, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.grid(color=GRID)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.tick_params(colors=MUTED)
    return figure, axes


def figure_bytes(figure: Figure, kind: str) -> bytes:
    """A figure as PNG, SVG or PDF; equal ones give equal bytes with the same version of matplotlib
    and the same fonts.
    """
    file = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "clipmerge"}), warnings.catch_warnings():
        # a name in letters that the font lacks has boxes, which the user cannot help
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        figure.savefig(file, format=kind, metadata=dict.fromkeys(_METADATA[kind]))
    return file.getvalue()


def as_image(figure: Figure, description: str) -> Markup:
    """A figure as an image for a page that loads nothing."""
    content = b64encode(figure_bytes(figure, "svg")).decode()
    return Markup('<img src="data:image/svg+xml;base64,{}" alt="{}">').format(content, description)


def _legend_above(axes: Axes, columns: int) -> None:
    """Put the legend above the axes, where it covers nothing."""
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        frameon=False,
        labelcolor=INK,
        ncols=columns,
        fontsize=9,
    )


# A merge


@dataclass(frozen=True)
class Picture:
    """One picture of a page, with its caption."""

    title: str
    image: Markup
    caption: str


def effect_picture(effect: MergeEffect) -> Picture:
    """The accuracies on the held-out images with their intervals."""
    figure, axes = new_figure(*_CARD)
    kinds = {
        "clean": "your images",
        "corrupted": "unrelated\ncorruptions",
        "related": "related\ncorruptions",
    }
    for number, (name, model) in enumerate(effect.models.items()):
        estimates = [getattr(model, kind) for kind in kinds]
        axes.errorbar(
            [100 * estimate.value for estimate in estimates],
            [row + 0.15 * number for row in range(len(kinds))],
            xerr=[
                [100 * (estimate.value - estimate.interval[0]) for estimate in estimates],
                [100 * (estimate.interval[1] - estimate.value) for estimate in estimates],
            ],
            fmt="o",
            color=(MUTED, CURVE)[number] if number < 2 else MARKS[number % len(MARKS)],
            label=name,
        )
    axes.set_yticks(range(len(kinds)), list(kinds.values()))
    axes.invert_yaxis()
    axes.set_xlabel(effect_title(effect))
    _legend_above(axes, len(effect.models))
    description = "Accuracies of the models with their intervals; the table has every number."
    title = "Accuracy" if effect.labelled else "Agreement"
    return Picture(title, as_image(figure, description), "")


def examples_figure(effect: MergeEffect) -> Figure:
    """Draw, for each example caption, its own image and those that two models find for it; an
    image that is its own has a frame.
    """
    shown = max(len(example.merged) for example in effect.examples)
    figure = Figure(
        figsize=(_CARD[0], 1.3 * len(effect.examples) + 0.3),
        dpi=_DOTS,
        layout="constrained",
        facecolor="white",
    )
    FigureCanvasAgg(figure)
    rows = figure.subfigures(len(effect.examples), 1, squeeze=False)[:, 0]
    for row, example in zip(rows, effect.examples, strict=True):
        row.suptitle(_one_line(example.caption), x=0.01, ha="left", color=INK, fontsize=9)
        blocks = {"its image": (example.image,), "fine-tuned": example.finetuned}
        blocks["merged"] = example.merged
        parts = row.subfigures(1, 3, width_ratios=(1.0, shown, shown), wspace=0.1)
        for part, (title, images) in zip(parts, blocks.items(), strict=True):
            part.supxlabel(title, color=MUTED, fontsize=8)
            cells = part.subplots(1, max(len(images), 1), squeeze=False)[0]
            for axes, number in zip(cells, images, strict=False):
                axes.imshow(_thumbnail(effect.thumbnails[number]))
                axes.set_xticks([])
                axes.set_yticks([])
                is_own = title != "its image" and number == example.image
                axes.spines[:].set(color=CURVE if is_own else GRID, linewidth=3 if is_own else 1)
    return figure


def _one_line(caption: str) -> str:
    # a dollar sign would begin a formula
    text = " ".join(caption.split()).replace("$", r"\$")
    return text if len(text) <= _LONGEST_CAPTION else f"{text[: _LONGEST_CAPTION - 3]}..."


def _thumbnail(content: str) -> Image.Image:
    """Decode a thumbnail of a record, which may come from a stranger."""
    with Image.open(io.BytesIO(b64decode(content, validate=True)), formats=("JPEG",)) as image:
        if max(image.size) > THUMBNAIL:
            raise OutputError(f"a thumbnail of the record has {max(image.size)} pixels a side")
        return image.convert("RGB")


def pictures_of(record: Record) -> list[Picture]:
    """What was learned, the coefficients by tower and the losses by step, and the loss along the
    path.
    """
    pictures = []
    spread = {  # a scalar has none
        tower: counts for tower, counts in record.measured.coefficients.items() if sum(counts) > 1
    }
    for tower, counts in itertools.islice(spread.items(), _MAX_TOWERS):
        title = f"{_TOWERS.get(tower, tower)}: coefficients"
        caption = f"How far the {sum(counts):,} weights of this tower go."
        pictures.append(Picture(title, as_image(_histogram_figure(counts), title), caption))
    if any(any(values) for values in record.measured.trace.values()):
        title = "Losses while learning"
        caption = (
            "Each step sees different images with different changes, so the lines jump; thick lines"
            " are running means."
        )
        if distilled := distillation_text(record):
            caption += f" The distillation loss is the distance to {distilled}, on changed images."
        pictures.append(Picture(title, as_image(_loss_figure(record), title), caption))
    path = record.measured.path and path_picture(record.measured.path)
    return [*pictures, path] if path else pictures


def path_figure(path: LossPath, inches: tuple[float, float] = _CARD) -> Figure | None:
    """Draw the loss against the coefficient of all layers, with the straight line that a barrier is
    measured from; ``None`` with fewer than two points.
    """
    points = path.points
    if len(points) < 2 or points[0][0] == points[-1][0]:
        return None
    figure, axes = new_figure(*inches)
    alphas, losses = zip(*points, strict=True)
    (line,) = axes.plot([alphas[0], alphas[-1]], [losses[0], losses[-1]], "--", color=MUTED)
    line.set_label("line between the ends")
    axes.plot(alphas, losses, "o-", color=CURVE, linewidth=2.2, label="measured loss")
    if path.barrier:
        barrier, average = path.barrier
        label = f"barrier: {barrier:.3g}" if barrier > 0 else f"{-barrier:.3g} below that line"
        axes.plot([0.5, 0.5], [average, average + barrier], color=MARKS[0], label=label)
    axes.set_xlabel("alpha of all layers (0 = zero-shot, 1 = fine-tuned)")
    axes.set_ylabel("loss, nats")
    _legend_above(axes, 2)
    return figure


def path_picture(path: LossPath) -> Picture | None:
    """The loss along the straight path, if it was measured at two points."""
    figure = path_figure(path, _REPORT)
    if figure is None:
        return None
    caption = (
        "Cross-entropy on the calibration images when every layer has the same alpha and nothing is"
        " masked."
    )
    if path.barrier:
        barrier, average = path.barrier
        side, verb = ("above", "is a") if barrier > 0 else ("below", "is no")
        caption += (
            f" At alpha 0.5 it is {average + barrier:.3f} nats, {abs(barrier):.3f} {side} the"
            f" average of the ends ({average:.3f}): there {verb} barrier between the two models."
        )
    values = "; ".join(f"alpha {alpha:g}: {loss:.3f} nats" for alpha, loss in path.points)
    description = f"Loss on the straight path from zero-shot to fine-tuned. {values}."
    return Picture("Loss along the path", as_image(figure, description), caption)


def _histogram_figure(counts: Sequence[int]) -> Figure:
    """Shares of the weights by coefficient."""
    figure, axes = new_figure(*_REPORT)
    width = TOP / len(counts)
    centres = [(index + 0.5) * width for index in range(len(counts))]
    shares = [count / sum(counts) for count in counts]
    axes.bar(centres, shares, width=0.9 * width, color=MARKS[1])
    used = [centre + width for centre, share in zip(centres, shares, strict=True) if share]
    axes.set_xlim(0.0, max(1.0, *used))
    axes.set_xlabel("coefficient (0 = zero-shot, 1 = fine-tuned)")
    axes.set_ylabel("share of the weights")
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    return figure


def _loss_figure(record: Record) -> Figure:
    figure, axes = new_figure(*_REPORT)
    names = {"cross_entropy": "loss on your images", "distillation_loss": "distillation loss"}
    drawn = [(name, values) for name, values in record.measured.trace.items() if any(values)]
    for (name, values), colour in zip(drawn, (CURVE, *MARKS), strict=False):
        half = len(values) // 20  # a mean over a tenth of the steps
        windows = [values[max(0, step - half) : step + half + 1] for step in range(len(values))]
        means = [sum(window) / len(window) for window in windows]
        steps = range(1, len(values) + 1)
        axes.plot(steps, values, color=colour, linewidth=0.8, alpha=0.35)
        axes.plot(steps, means, color=colour, linewidth=2.2, label=names.get(name, name))
    axes.set_xlabel("step")
    axes.set_ylabel("nats")
    axes.set_ylim(bottom=0.0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend_above(axes, 2)
    return figure


# A sweep

#: A mark of the legend, and its name.
_Named = tuple[str, Line2D]


def mark_styles(names: Sequence[str]) -> list[tuple[str, str]]:
    """Colour and shape of each name: a shipped recipe's own, whatever follows it in brackets, or
    the next free.
    """
    free = itertools.count(len(RECIPES))
    recipes = [name.partition(" (")[0] for name in names]
    numbers = [RECIPES.index(name) if name in RECIPES else next(free) for name in recipes]
    return [(MARKS[number % len(MARKS)], SHAPES[number % len(SHAPES)]) for number in numbers]


def sweep_figure(record: Json, *, title: str = "") -> Figure:
    """Draw a sweep; of the record, curve, recipes, id and ood are needed."""
    figure, axes = new_figure(*_SWEEP)
    axes.set_title(title, color=INK, fontsize=11, loc="left", parse_math=False)
    axes.set_xlabel(_axis_label("ID", record["id"]), parse_math=False)
    axes.set_ylabel(_axis_label("OOD", record["ood"]), parse_math=False)
    axes.margins(0.06)
    curve = _draw_curve(axes, record["curve"], curve_ends(record))
    _add_legend(figure, [*curve, *_draw_marks(axes, off_curve_rows(record))])
    return figure


def curve_files(record: Json) -> dict[str, bytes]:
    """Draw ``curve.png``, ``curve.svg`` and ``curve.pdf``."""
    figure = sweep_figure(record)
    return {f"curve.{kind}": figure_bytes(figure, kind) for kind in _METADATA}


def _axis_label(kind: str, names: Sequence[str]) -> str:
    listed = ", ".join(names)
    if len(names) > 1 and cell_len(listed) > _SOURCE_CELLS:
        listed = f"{len(names)} sources"
    mean = "mean " if len(names) > 1 else ""
    return f"{mean}{kind} accuracy, % ({shorten_middle(listed, _SOURCE_CELLS)})"


def _draw_curve(axes: Axes, curve: list[Json], ends: dict[float, str]) -> list[_Named]:
    """Draw the curve: a small circle for each alpha, a large one at each end, open at zero-shot."""
    across, up = ([100 * row[axis] for row in curve] for axis in ("id", "ood"))
    style: Json = {"color": CURVE, "mfc": "white", "ms": 5.0, "zorder": 2.5}
    (line,) = axes.plot(across, up, "-o", linewidth=2, **style)
    marks: list[_Named] = [("alpha curve (WiSE-FT)", line)]
    for row in curve:
        end = ends.get(row["alpha"])
        fill = CURVE if end and row["alpha"] else "white"
        point = _draw_point(axes, row, "o", CURVE, _MARK if end else 5.0, fill=fill)
        if end:
            marks.append((f"{end} (alpha {row['alpha']:g})", point))
    return marks


def _draw_marks(axes: Axes, rows: list[Json]) -> list[_Named]:
    """Draw the marks of recipes and checkpoints; one that lies below others is larger and shows
    around them.
    """
    points = [(round(row["id"], 9), round(row["ood"], 9)) for row in rows]
    styles = mark_styles([row["name"] for row in rows])
    marks: list[_Named] = []
    for number, (row, (colour, shape)) in enumerate(zip(rows, styles, strict=True)):
        above = min(points[number + 1 :].count(points[number]), _MAX_GROWTHS)
        mark = _draw_point(axes, row, shape, colour, _MARK + _GROWTH * above)
        marks.append((shorten_middle(row["name"], _NAME_CELLS), mark))
    return marks


def _draw_point(
    axes: Axes, row: Json, shape: str, colour: str, size: float, *, fill: str = ""
) -> Line2D:
    """Draw one point with its intervals in both directions."""
    x, y = 100 * row["id"], 100 * row["ood"]
    across, up = ([100 * end for end in row[f"{axis}_interval"]] for axis in ("id", "ood"))
    axes.plot(across, [y, y], color=colour, linewidth=1, alpha=0.4, zorder=2)
    axes.plot([x, x], up, color=colour, linewidth=1, alpha=0.4, zorder=2)
    edge = colour if fill else "white"
    (mark,) = axes.plot(
        [x], [y], shape, ls="", ms=size, mfc=fill or colour, mec=edge, zorder=3 if fill else 4
    )
    return mark


def _add_legend(figure: Figure, marked: Sequence[_Named]) -> None:
    """Put the legend below the picture, with as many columns as fit, and enlarge the picture by its
    height.
    """
    names, marks = zip(*marked, strict=True)
    longest = max(map(cell_len, names))
    legend = figure.legend(
        marks,
        # matplotlib leaves out names that begin with _
        [str(number) for number in range(len(marks))],
        loc="outside lower center",
        ncols=max(1, int(0.9 * _SWEEP[0] / (0.09 * longest + 0.6))),
        fontsize=9,
        labelcolor=INK,
        frameon=False,
    )
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set(text=name, parse_math=False)  # a recipe's name is not a formula
    for mark in legend.get_lines():
        mark.set_markersize(min(mark.get_markersize(), 0.8 * _MARK))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        height = legend.get_window_extent().height / _DOTS
    figure.set_size_inches(_SWEEP[0], _SWEEP[1] + height)
