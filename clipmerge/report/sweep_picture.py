"""The picture of a sweep, as in the WiSE-FT paper: mean OOD accuracy against ID accuracy.

The alpha curve connects both ends, and every recipe has its own mark.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import matplotlib
import numpy as np
from matplotlib import font_manager
from numpy.typing import NDArray
from rich.cells import cell_len

from clipmerge.report import drawing
from clipmerge.report.palette import CARD, CURVE, INK, MARKS
from clipmerge.report.sweep_table import ends_of, marks_of, shortened

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation

_SHAPES = ("D", "^", "s", "P", "v", "X", "<", "p", ">", "h")
_INCHES, _NARROW, _DOTS = (8.0, 5.6), (4.6, 5.0), 160
# Terminal cells, half as wide as high; letters have about that size too.
_NAME, _SOURCES = 36, 40
# A label further away than this many points is joined to its mark.
_FAR = 22
# Width of a mark in points, and its growth in points for each mark that covers it.
_MARK, _GROWTH = 10.0, 5.0
# Drawing order of recipes, above the ends of the curve.
_ON_TOP = 4
# Label a mark that several recipes share with at most this many names.
_SHARING = 4


def curve_png(record: dict[str, Any], title: str) -> bytes:
    """Draw the picture with a title, for results of more than one sweep.

    Args:
        record: As in `curve_files`.
        title: One or two lines above the picture.

    Returns:
        A PNG.
    """
    with _fonts_for(record):
        return drawing.png(_draw(record, title=title))


def curve_files(record: dict[str, Any]) -> dict[str, bytes]:
    """Draw the curve, the recipes and the checkpoints beside it, for papers and pages.

    Args:
        record: Result of `clipmerge.api.sweep.sweep`; ``curve``, ``recipes``, ``id`` and ``ood`` are needed.

    Returns:
        ``curve.png``, ``curve.svg`` and ``curve.pdf``; equal records give equal bytes with the same version of
        matplotlib and the same fonts. Characters missing from all fonts are drawn as boxes.
    """
    with _fonts_for(record):
        figure = _draw(record)
        return {
            "curve.png": drawing.png(figure),
            "curve.svg": drawing.svg(figure),
            "curve.pdf": drawing.pdf(figure),
        }


def curve_markup(record: dict[str, Any]) -> str:
    """Draw the picture for a page: once for a wide window, once for a narrow one.

    Args:
        record: Result of `clipmerge.api.sweep.sweep`.

    Returns:
        Two ``svg`` elements, of the classes ``wide`` and ``narrow``.
    """
    label = (
        "ID accuracy from left to right, mean OOD accuracy from bottom to top: the alpha curve from zero-shot to "
        "fine-tuned, and each recipe as a mark. The table below holds every number."
    )
    with _fonts_for(record):
        wide = drawing.markup(_draw(record), "wide", label, style="wide")
        return wide + drawing.markup(_draw(record, _NARROW), "narrow", label, style="narrow")


@contextmanager
def _fonts_for(record: dict[str, Any]) -> Iterator[None]:
    """Use fonts that have the record's characters."""
    families = _families("".join([*record["id"], *record["ood"], *(row["name"] for row in marks_of(record))]))
    with matplotlib.rc_context({"font.family": families}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # the user cannot do anything about it
        yield


def _draw(record: dict[str, Any], inches: tuple[float, float] = _INCHES, *, title: str = "") -> Figure:
    figure, axes = drawing.new_figure(*inches, dots=_DOTS)
    axes.set_title(title, color=INK, fontsize=11, loc="left", parse_math=False)
    narrow = inches == _NARROW
    axes.set_xlabel(_axis_label("ID", record["id"], narrow=narrow), parse_math=False)
    axes.set_ylabel(_axis_label("OOD", record["ood"], narrow=narrow), parse_math=False)
    axes.margins(0.1)
    marks = _draw_marks(axes, marks_of(record))
    labels = [*marks, *_draw_curve(axes, record["curve"], ends_of(record))]
    _add_legend(figure, axes, [name for _, _, name, *_ in marks])
    figure.draw_without_rendering()
    _uncover(axes, record["curve"])
    _write_labels(axes, labels)
    return figure


def _families(text: str) -> list[str]:
    """Font families that together have all characters of a text, as far as possible."""
    usual = font_manager.get_font(font_manager.findfont(font_manager.FontProperties()))
    missing = {ord(each) for each in text if not each.isspace()} - set(usual.get_charmap())
    # matplotlib warns of a family without a plain face
    faces = {each.name: each.fname for each in font_manager.fontManager.ttflist if _is_plain(each)} if missing else {}
    families = []
    for family in sorted(faces):
        try:
            count = len(missing & set(font_manager.get_font(faces[family]).get_charmap()))
        except (OSError, RuntimeError, ValueError):  # a damaged or unsupported font
            continue
        families += [(-count, family)] if count else []
    return [*matplotlib.rcParams["font.family"], *(family for _, family in sorted(families)[:5])]


def _is_plain(face: font_manager.FontEntry) -> bool:
    # "Last Resort" has a box for every character, and colour fonts hold pictures, which are not drawn
    odd = "Last Resort" in face.name or "Color" in face.name
    return (face.weight, face.style, face.stretch) == (400, "normal", "normal") and not odd


def _axis_label(kind: str, names: Sequence[str], *, narrow: bool = False) -> str:
    shown, room = ", ".join(names), _SOURCES // 2 if narrow else _SOURCES
    if len(names) > 1 and cell_len(shown) > room:
        shown = f"{len(names)} sources"
    shown = shortened(shown, room)
    return f"{'mean ' if len(names) > 1 else ''}{kind} accuracy, % ({shown})"


# A label: position of its point, text, colour and size.
_Label = tuple[float, float, str, str, float]


def _draw_curve(axes: Axes, curve: list[dict[str, Any]], ends: dict[float, str]) -> list[_Label]:
    across, up = ([100 * row[axis] for row in curve] for axis in ("id", "ood"))
    axes.plot(across, up, "-o", color=CURVE, linewidth=2, markersize=5, markerfacecolor=CARD, label="WiSE-FT by alpha")
    # its points again, above the marks, so that a mark on the curve is seen to lie on it
    axes.plot(across, up, "o", color=CURVE, markersize=5, markerfacecolor=CARD, zorder=4.5)
    for row in curve:
        _draw_intervals(axes, row, CURVE, 0.3)
    labels = []
    for row, x, y in zip(curve, across, up, strict=True):
        end = ends.get(row["alpha"])
        if end:
            axes.plot([x], [y], "o", color=CURVE, markersize=_MARK, zorder=3)
            axes.plot([x], [y], "o", color=CURVE, markersize=5, zorder=4.6)
        text = f"{end} (alpha {row['alpha']:g})" if end else f"{row['alpha']:g}"
        labels.append((x, y, text, INK if end else CURVE, 10.0 if end else 8.5))
    # ends first: in a crowd, later labels give way
    return sorted(labels, key=lambda label: label[4], reverse=True)


def _draw_intervals(axes: Axes, row: dict[str, Any], colour: str, alpha: float) -> None:
    """Draw the intervals of a point, horizontally and vertically."""
    x, y = 100 * row["id"], 100 * row["ood"]
    low, high = (100 * end for end in row["ood_interval"])
    left, right = (100 * end for end in row["id_interval"])
    axes.plot([x, x], [low, high], color=colour, linewidth=1, alpha=alpha, zorder=2)
    axes.plot([left, right], [y, y], color=colour, linewidth=1, alpha=alpha, zorder=2)


def _draw_marks(axes: Axes, recipes: list[dict[str, Any]]) -> list[_Label]:
    """Draw one mark per place: recipes with equal accuracies share it."""
    places: dict[tuple[float, float], list[dict[str, Any]]] = {}
    for row in recipes:
        places.setdefault((round(row["id"], 9), round(row["ood"], 9)), []).append(row)
    labels = []
    for number, rows in enumerate(places.values()):
        colour, marker = MARKS[number % len(MARKS)], _SHAPES[number % len(_SHAPES)]
        x, y = 100 * rows[0]["id"], 100 * rows[0]["ood"]
        names = [shortened(row["name"], _NAME) for row in rows]
        if len(names) > _SHARING:
            names = [*names[: _SHARING - 1], f"and {len(names) - _SHARING + 1} more"]
        _draw_intervals(axes, rows[0], colour, 0.5)
        axes.plot(
            [x],
            [y],
            marker,
            color=colour,
            markersize=_MARK,
            markeredgecolor=CARD,
            zorder=_ON_TOP,
            label=str(number),
            ls="",
        )
        labels.append((x, y, "\n".join(names), colour, 10.0))
    return labels


def _add_legend(figure: Figure, axes: Axes, names: list[str]) -> None:
    """Put the legend below the picture and enlarge the picture: inside, a large legend would hide something."""
    handles, _ = axes.get_legend_handles_labels()
    columns = min(len(handles), 4)
    while True:
        legend = figure.legend(
            handles=handles, loc="outside lower center", ncols=columns, fontsize=9, labelcolor=INK, frameon=False
        )
        for text, name in zip(legend.get_texts(), names, strict=False):
            text.set(text=name, parse_math=False)  # a recipe's name is not a formula, and may begin with an underscore
        left, bottom, right, top = _extents(legend)
        if right - left < 0.98 * figure.bbox.width or columns == 1:
            break
        legend.remove()
        columns -= 1
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + (top - bottom) / _DOTS)


def _uncover(axes: Axes, curve: Sequence[Any]) -> None:
    """Enlarge marks that are covered by others, or by a point of the curve, until they show around these.

    Args:
        axes: The axes.
        curve: The points of the curve, which are drawn above all marks.
    """
    marks = [line for line in axes.get_lines() if line.get_markersize() == _MARK]
    marks.sort(key=lambda line: line.get_zorder())  # in the order in which they are drawn
    places = [axes.transData.transform(np.asarray(line.get_xydata())[0]) for line in marks]
    points = [axes.transData.transform((100 * row["id"], 100 * row["ood"])) for row in curve]
    near = 0.8 * _MARK * axes.figure.dpi / 72
    for number, (line, place) in enumerate(zip(marks, places, strict=True)):
        is_end = line.get_zorder() < _ON_TOP
        above = sum(float(np.abs(place - other).max()) < near for other in places[number + 1 :])
        on_curve = not is_end and any(float(np.abs(place - point).max()) < near / 2 for point in points)
        line.set_markersize(_MARK + _GROWTH * (above + on_curve))


def _write_labels(axes: Axes, labels: list[_Label]) -> None:
    """Write each label beside its point, at the position where it covers the least.

    Recipes and ends always get a label; an alpha between the ends only if there is room.
    """
    drawn = [(np.asarray(line.get_xydata()), line.get_markersize()) for line in axes.get_lines()]
    # an enlarged mark reaches further by up to 0.75 of its growth, as the diamond, the widest mark, does
    grown = {(float(at[0, 0]), float(at[0, 1])): 0.75 * max(0.0, size - _MARK) for at, size in drawn if len(at) == 1}
    taken = [_around(axes, x, y, 6 + grown.get((x, y), 0.0)) for x, y, *_ in labels] + _along(axes)
    for x, y, text, colour, size in labels:
        note = axes.annotate(
            text,
            (x, y),
            xytext=(0, 0),
            textcoords="offset points",
            color=colour,
            fontsize=size,
            zorder=5,
            parse_math=False,
        )
        covered = _place(axes, note, np.array(taken))
        if covered and size < 10:
            note.remove()
            continue
        taken.append(_extents(note))
        if math.hypot(*note.get_position()) > _FAR:
            _lead(axes, note, colour)
            start = axes.transData.transform((x, y))
            taken += _between(start, start + np.array(note.get_position()) * axes.figure.dpi / 72)


def _lead(axes: Axes, note: Annotation, colour: str) -> None:
    """Join a label to its point if another point may be nearer."""
    line = {"arrowstyle": "-", "color": colour, "linewidth": 0.7, "shrinkA": 1, "shrinkB": 5}
    axes.annotate("", note.xy, xytext=note.get_position(), textcoords="offset points", arrowprops=line, zorder=3.5)


_Side = Literal["left", "center", "right"]
_Level = Literal["bottom", "center", "top"]
_Offset = tuple[float, float, _Side, _Level]


def _offsets() -> Iterator[_Offset]:
    """Positions for a label around its point, nearest first."""
    for away in (8, 14, 24, 38, 54, 72, 92):
        yield away, 0, "left", "center"
        yield -away, 0, "right", "center"
        level: _Level
        for way, level in ((1, "bottom"), (-1, "top")):
            yield 0, way * away, "center", level
            yield 0.7 * away, way * 0.7 * away, "left", level
            yield -0.7 * away, way * 0.7 * away, "right", level


def _place(axes: Axes, note: Annotation, taken: NDArray[np.float64]) -> float:
    """Move a label to the position where it covers the least, and return the area covered or outside there."""
    frame = _extents(axes)[None]
    best: tuple[float, _Offset] | None = None
    for offset in _offsets():
        _move(note, offset)
        box = _extents(note)
        outside = float((box[2:] - box[:2]).prod()) - _shared(box, frame)
        covered = _shared(box, taken) + 4 * outside  # readable over a line, cut off over the edge
        if best is None or covered < best[0] - 1e-6:
            best = (covered, offset)
        if covered < 1e-6:
            break
    assert best is not None  # the list of offsets is not empty
    _move(note, best[1])
    return best[0] if best[0] > 1e-6 else 0.0


def _move(note: Annotation, offset: _Offset) -> None:
    note.set_position(offset[:2])
    note.set_horizontalalignment(offset[2])
    note.set_verticalalignment(offset[3])


def _extents(artist: Artist) -> NDArray[np.float64]:
    """Left, bottom, right and top of an artist, in dots."""
    return np.asarray(artist.get_window_extent().extents)


def _shared(box: NDArray[np.float64], others: NDArray[np.float64]) -> float:
    """Area that a box (left, bottom, right, top) shares with others (n, 4)."""
    low = np.maximum(box[:2], others[:, :2])
    high = np.minimum(box[2:], others[:, 2:])
    return float(np.clip(high - low, 0, None).prod(axis=1).sum())


def _around(axes: Axes, x: float, y: float, points: float) -> NDArray[np.float64]:
    centre = axes.transData.transform((x, y))
    half = points * axes.figure.dpi / 72
    return np.concatenate([centre - half, centre + half])


def _along(axes: Axes) -> list[NDArray[np.float64]]:
    """Small boxes along all lines drawn, for labels to avoid."""
    boxes = []
    for line in axes.get_lines():
        for start, stop in itertools.pairwise(axes.transData.transform(line.get_xydata())):
            boxes += _between(start, stop)
    return boxes


def _between(start: NDArray[np.float64], stop: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Small boxes along one line, in dots."""
    shares = np.linspace(0, 1, 2 + int(np.abs(stop - start).max() // 6))
    centres = [start + share * (stop - start) for share in shares]
    return [np.concatenate([centre - 3.5, centre + 3.5]) for centre in centres]
