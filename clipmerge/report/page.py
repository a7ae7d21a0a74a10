"""The page of a merge, from its record alone, and how pages and cards are rendered.

A page loads nothing from the network, and the same record gives the same page.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipmerge.options import with_flags
from clipmerge.output.record import Record
from clipmerge.report.decision import decision_sentence

if TYPE_CHECKING:
    from markupsafe import Markup

_CODE = re.compile(r"`([^`]+)`")


def html_page(record: Record) -> str:
    """The report of a merge."""
    values: dict[str, Any] = {
        "record": record,
        "decision": decision_sentence(record.plan, record.measured),
        "accuracies": None,
        "picture": None,
        "statistics": dict.fromkeys(name for row in record.measurements.values() for name in row),
        "scores": dict.fromkeys(
            name for row in record.measured.straggler_scores.values() for name in row
        ),
    }
    if record.verdict:
        from clipmerge.report.numbers import verdict_table

        values["accuracies"] = verdict_table(record.verdict)
    alphas = {layer.alpha for layer in record.plan.layers.values()}
    if record.verdict or len(alphas) > 1:  # matplotlib takes longer than a small merge
        from clipmerge.report.figures import merge_figure, png

        values["picture"] = png(merge_figure(record))
    return render("report.html.j2", values)


def render(template: str, values: Mapping[str, Any]) -> str:
    """Render a template of this folder."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=".html" in template,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        optimized=False,  # folding constants takes a quarter of the time to compile
    )
    environment.filters |= {"cell": _cell, "flags": mark_code, "png": _as_data}
    return environment.get_template(template).render(values)


def mark_code(text: str) -> Markup:
    """Write parameters as flags, and mark what stands between backticks as code.

    Example:
        >>> mark_code("`clipmerge merge` & `max_loss`")
        Markup('<code>clipmerge merge</code> &amp; --max-loss')
    """
    from markupsafe import Markup, escape

    return Markup(_CODE.sub(r"<code>\1</code>", str(escape(with_flags(text)))))


def _as_data(picture: bytes) -> str:
    """A picture as an address that holds it."""
    return f"data:image/png;base64,{b64encode(picture).decode()}"


def _cell(value: object) -> str:
    """Escape a value for one cell or line of Markdown, so that it is neither markup nor HTML."""
    text = " ".join(str(value).split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*\[\]|~])", r"\\\1", text)
