"""Figures by matplotlib in one style, written as PNG, SVG or PDF, or as markup in a page's
colours.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from html import escape

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from clipmerge.report.palette import CARD, CURVE, GRID, INK, MARKS, MUTED

#: Colours of a picture, by their names in the style sheet.
VARIABLES = {
    **{colour: f"--mark-{place}" for place, colour in enumerate(MARKS)},
    CURVE: "--curve",
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--grid",
    CARD: "--card",
}
# Metadata that would differ between versions and times, by kind of file.
_METADATA = {
    "png": ("Software",),
    "svg": ("Date", "Creator"),
    "pdf": ("CreationDate", "Creator", "Producer"),
}
# metadata that matplotlib writes into a file, not needed on a page
_HEAD = re.compile(
    r"\A.*?(?=<svg)|<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", re.DOTALL
)
_COLOUR = re.compile(r"#[0-9a-f]{6}\b")
# the font family of a text: a page has its own
_FONT = re.compile(r"font-family: [^;\"]*; ?")
_IDS = re.compile(r'(\bid="|(?:xlink:)?href="#|url\(#)')


def new_figure(width: float, height: float, *, dots: int = 120) -> tuple[Figure, Axes]:
    """Make a figure of so many inches with one set of axes, in the style of all pictures."""
    figure = Figure(figsize=(width, height), dpi=dots, layout="constrained", facecolor=CARD)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_facecolor(CARD)
    axes.grid(color=GRID)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.tick_params(colors=MUTED)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    return figure, axes


def saved(figure: Figure, kind: str, *, fonttype: str = "path") -> bytes:
    """A figure as PNG, SVG or PDF; equal ones give equal bytes with the same version of matplotlib
    and the same fonts.

    The words of an SVG are paths that look the same everywhere, or with ``fonttype="none"`` text in
    the reader's font.
    """
    file = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "clipmerge", "svg.fonttype": fonttype}):
        figure.savefig(file, format=kind, metadata=dict.fromkeys(_METADATA[kind]))
    return file.getvalue()


def markup(
    figure: Figure,
    name: str,
    label: str,
    *,
    style: str = "",
    hints: Mapping[str, str] | None = None,
) -> Markup:
    """A figure as an ``svg`` element in the page's colours, light or dark, that refers to nothing
    outside itself.

    ``name`` begins its ids, ``label`` describes it to those who cannot see it, ``style`` is a class
    of the style sheet, ``hints`` are texts to show under the pointer, by the gid of an artist.
    """
    text = _FONT.sub("", _HEAD.sub("", saved(figure, "svg", fonttype="none").decode()))
    box = re.search(r'viewBox="[^"]*"', text)
    assert box is not None  # matplotlib always writes a viewBox
    text = text[text.index(">", text.index("<svg")) + 1 :]
    text = _IDS.sub(rf"\g<1>{name}-", text).replace("xlink:href", "href")
    for gid, hint in (hints or {}).items():
        group = f'<g id="{name}-{gid}"'
        text = text.replace(f"{group}>", f'{group} class="point"><title>{escape(hint)}</title>')
    text = _COLOUR.sub(
        lambda found: f"var({VARIABLES[found[0]]})" if found[0] in VARIABLES else found[0], text
    )
    opening = f'<svg {box[0]} role="img" aria-label="{escape(label)}" class="{style or "figure"}"'
    return Markup(f'{opening} stroke-linejoin="round" stroke-linecap="butt">{text.strip()}')


def legend_above(axes: Axes, *, columns: int) -> None:
    """Put the legend above the axes, where it covers nothing."""
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        borderaxespad=0.2,
        handlelength=1.6,
        frameon=False,
        labelcolor=INK,
        ncols=columns,
        columnspacing=1.2,
        fontsize=9,
    )
