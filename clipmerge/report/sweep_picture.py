"""The picture of a sweep, as in the WiSE-FT paper: mean OOD accuracy against ID accuracy.

The alpha curve connects both ends, and every recipe has its own mark, named in the legend.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from rich.cells import cell_len

from clipmerge.report import drawing
from clipmerge.report.palette import CARD, CURVE, INK, mark_styles
from clipmerge.report.sweep_table import ends_of, hints_of, shortened
from clipmerge.report.text import marks_of

#: A mark and its name in the legend.
_Named = tuple[Line2D, str]

_INCHES, _NARROW, _DOTS = (8.0, 5.6), (4.6, 5.0), 160
# Terminal cells, half as wide as high; letters have about that size too.
_NAME, _SOURCES = 36, 40
# Width of a mark in points, and its growth for each mark that lies on top of it, up to a number of
# them.
_MARK, _GROWTH, _MOST_GROWN = 10.0, 5.0, 4
# Fonts with letters that matplotlib's own font lacks, where one is installed.
_FURTHER_FONTS = (
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "Hiragino Sans",
    "PingFang SC",
    "Yu Gothic",
    "Microsoft YaHei",
    "WenQuanYi Micro Hei",
    "Malgun Gothic",
    "Arial Unicode MS",
    "Noto Sans",
    "Noto Emoji",
    "Segoe UI Symbol",
)


def curve_png(record: dict[str, Any], title: str) -> bytes:
    """Draw the picture with a title of one or two lines, for results of more than one sweep."""
    with _fonts():
        return drawing.saved(_draw(record, title=title), "png")


def curve_files(record: dict[str, Any]) -> dict[str, bytes]:
    """Draw ``curve.png``, ``curve.svg`` and ``curve.pdf``; of the record, curve, recipes, id and
    ood are needed.

    Equal records give equal bytes with the same version of matplotlib and the same fonts.
    """
    with _fonts():
        figure = _draw(record)
        return {f"curve.{kind}": drawing.saved(figure, kind) for kind in ("png", "svg", "pdf")}


def curve_markup(record: dict[str, Any]) -> Markup:
    """Draw two ``svg`` elements for a page, of the classes ``wide`` and ``narrow``, whose marks say
    their numbers.
    """
    label = (
        "ID accuracy from left to right, mean OOD accuracy from bottom to top: the alpha curve from"
        " zero-shot to fine-tuned, and each recipe as a mark. The table below holds every number."
    )
    hints = {f"point-{number}": hint for number, hint in enumerate(hints_of(record))}
    with _fonts():
        wide = drawing.markup(_draw(record), "wide", label, style="wide", hints=hints)
        return wide + drawing.markup(
            _draw(record, _NARROW), "narrow", label, style="narrow", hints=hints
        )


@contextmanager
def _fonts() -> Iterator[None]:
    """Use every font that may have the characters of a name; a character that none has is drawn as
    a box.
    """
    installed = set(font_manager.get_font_names())
    families = [
        *matplotlib.rcParams["font.family"],
        *(name for name in _FURTHER_FONTS if name in installed),
    ]
    with matplotlib.rc_context({"font.family": families}), warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "Glyph .* missing from"
        )  # the user cannot do anything about it
        yield


def _draw(
    record: dict[str, Any], inches: tuple[float, float] = _INCHES, *, title: str = ""
) -> Figure:
    figure, axes = drawing.new_figure(*inches, dots=_DOTS)
    axes.set_title(title, color=INK, fontsize=11, loc="left", parse_math=False)
    narrow = inches == _NARROW
    axes.set_xlabel(_axis_label("ID", record["id"], narrow=narrow), parse_math=False)
    axes.set_ylabel(_axis_label("OOD", record["ood"], narrow=narrow), parse_math=False)
    axes.margins(0.06)
    named = [
        *_draw_curve(axes, record["curve"], ends_of(record)),
        *_draw_marks(axes, marks_of(record), len(record["curve"])),
    ]
    _add_legend(figure, named)
    return figure


def _axis_label(kind: str, names: Sequence[str], *, narrow: bool) -> str:
    shown, room = ", ".join(names), _SOURCES // 2 if narrow else _SOURCES
    if len(names) > 1 and cell_len(shown) > room:
        shown = f"{len(names)} sources"
    shown = shortened(shown, room)
    return f"{'mean ' if len(names) > 1 else ''}{kind} accuracy, % ({shown})"


def _draw_curve(axes: Axes, curve: list[dict[str, Any]], ends: dict[float, str]) -> list[_Named]:
    """Draw the curve: a small circle for each alpha, a large one at each end, open at zero-shot."""
    across, up = ([100 * row[axis] for row in curve] for axis in ("id", "ood"))
    (line,) = axes.plot(across, up, "-o", color=CURVE, linewidth=2, mfc=CARD, ms=5.0, zorder=2.5)
    named: list[_Named] = [(line, "alpha curve (WiSE-FT)")]
    for number, row in enumerate(curve):
        end = ends.get(row["alpha"])
        size, fill = (_MARK, CURVE if row["alpha"] else CARD) if end else (5.0, CARD)
        point = _draw_point(axes, row, "o", CURVE, size, fill=fill, opacity=0.3)
        point.set_gid(f"point-{number}")
        if end:
            named.append((point, f"{end} (alpha {row['alpha']:g})"))
    return named


def _draw_marks(axes: Axes, rows: list[dict[str, Any]], first: int) -> list[_Named]:
    """Draw the marks of recipes and checkpoints; one that lies below others is larger and shows
    around them.
    """
    places = [(round(row["id"], 9), round(row["ood"], 9)) for row in rows]
    above = Counter(places)
    styles = mark_styles([row["name"] for row in rows])
    named: list[_Named] = []
    for row, place, (colour, shape) in zip(rows, places, styles, strict=True):
        above[place] -= 1
        size = _MARK + _GROWTH * min(above[place], _MOST_GROWN)
        mark = _draw_point(axes, row, shape, colour, size)
        mark.set_gid(f"point-{first + len(named)}")
        named.append((mark, shortened(row["name"], _NAME)))
    return named


def _draw_point(
    axes: Axes,
    row: dict[str, Any],
    shape: str,
    colour: str,
    size: float,
    *,
    fill: str = "",
    opacity: float = 0.5,
) -> Line2D:
    """Draw one point with its intervals in both directions."""
    x, y = 100 * row["id"], 100 * row["ood"]
    across, up = ([100 * end for end in row[f"{axis}_interval"]] for axis in ("id", "ood"))
    axes.plot(across, [y, y], color=colour, linewidth=1, alpha=opacity, zorder=2)
    axes.plot([x, x], up, color=colour, linewidth=1, alpha=opacity, zorder=2)
    edge = colour if fill else CARD
    (mark,) = axes.plot(
        [x], [y], shape, ls="", ms=size, mfc=fill or colour, mec=edge, zorder=3 if fill else 4
    )
    return mark


def _add_legend(figure: Figure, named: Sequence[_Named]) -> None:
    """Put the legend below the picture, with as many columns as fit, and enlarge the picture by its
    height.
    """
    marks, names = zip(*named, strict=True)
    longest = max(map(cell_len, names))
    legend = figure.legend(
        marks,
        [
            str(number) for number in range(len(marks))
        ],  # matplotlib leaves out names that begin with _
        loc="outside lower center",
        ncols=max(1, int(0.9 * figure.bbox.width / _DOTS / (0.09 * longest + 0.6))),
        fontsize=9,
        labelcolor=INK,
        frameon=False,
    )
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set(text=name, parse_math=False)  # a recipe's name is not a formula
    for mark in legend.get_lines():
        mark.set_markersize(min(mark.get_markersize(), 0.8 * _MARK))
    box = legend.get_window_extent()
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + box.height / _DOTS)
