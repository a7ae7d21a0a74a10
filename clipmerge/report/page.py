"""The pages of a merge and of a sweep, each from its record alone; they load nothing from the
network, and the same record gives the same page.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipmerge.options import with_flags
from clipmerge.output.record import Record
from clipmerge.planning.plan import LayerPlan
from clipmerge.report.decision import decision_sentence
from clipmerge.report.numbers import Table, verdict_table
from clipmerge.report.sweep import sweep_notes, sweep_sentence, sweep_table
from clipmerge.types import Json

if TYPE_CHECKING:
    import jinja2
    from markupsafe import Markup

_CODE = re.compile(r"`([^`]+)`")
_DASH = "\N{EN DASH}"


def html_page(record: Record) -> str:
    """The report of a merge."""
    return render_page(
        "report.html.j2",
        {
            "record": record,
            "verdict_table": verdict_table(record.verdict) if record.verdict else None,
            "decision": decision_sentence(record.plan, record.measured),
            "picture": merge_picture(record),
            "layers": layer_table(record),
            "hashes": [
                (role, name, sha256)
                for role, files in (
                    *((role, source.files) for role, source in record.checkpoints),
                    ("merged", record.files),
                )
                for name, sha256 in sorted(files.items())
            ],
        },
    )


def merge_picture(record: Record) -> bytes | None:
    """The picture of a merge as PNG, if there is anything to draw."""
    if record.verdict is None and len({entry.alpha for entry in record.plan.layers.values()}) < 2:
        return None  # importing matplotlib takes longer than a small merge
    from clipmerge.report.figures import merge_figure, png

    figure = merge_figure(record)
    return png(figure) if figure else None


def layer_table(record: Record) -> Table:
    """Settings and measurements of every layer, without columns that are empty."""
    measured = dict.fromkeys(name for row in record.measurements.values() for name in row)
    scores = dict.fromkeys(
        name for row in record.measured.straggler_scores.values() for name in row
    )
    heads = ["layer", "alpha", "density", "mask", *measured, *scores, "why"]
    rows = [
        [
            name,
            _alpha(layer),
            "" if layer.density == 1 else f"{layer.density:.3g}",
            layer.mask or "",
            *(_number(record.measurements.get(name, {}).get(key)) for key in measured),
            *(_number(record.measured.straggler_scores.get(name, {}).get(key)) for key in scores),
            record.measured.reasons.get(name, ""),
        ]
        for name, layer in record.plan.layers.items()
    ]
    used = [column for column in range(len(heads)) if any(row[column] for row in rows)]
    heads = [heads[column].replace("_", " ") for column in used]
    return heads, [[row[column] for column in used] for row in rows]


def _alpha(layer: LayerPlan) -> str:
    if layer.alpha_range is None:
        return f"{layer.alpha:.3g}"
    low, high = layer.alpha_range
    return f"{layer.alpha:.3g} ({low:.3g} to {high:.3g})"


def _number(value: float | None) -> str:
    return _DASH if value is None else f"{value:.3g}"


def sweep_page(record: Json, picture: bytes) -> str:
    """The page of a sweep, with its picture as PNG."""
    values = {
        "record": record,
        "picture": picture,
        "sentence": sweep_sentence(record),
        "table": sweep_table(record),
        "notes": sweep_notes(record),
    }
    return render_page("sweep.html.j2", values)


def render_page(name: str, values: Mapping[str, Any]) -> str:
    """Render a page; its sentences name flags."""
    file = Path(__file__).parent / "templates" / name
    return render(file, values, html=True, flags=mark_code, png=as_data)


def mark_code(text: str) -> Markup:
    """Write parameters as flags, and mark what stands between backticks as code.

    Example:
        >>> mark_code("`clipmerge merge` & `max_loss`")
        Markup('<code>clipmerge merge</code> &amp; --max-loss')
    """
    from markupsafe import Markup, escape

    return Markup(_CODE.sub(r"<code>\1</code>", str(escape(with_flags(text)))))


def as_data(picture: bytes) -> str:
    """A picture as an address that holds it."""
    return f"data:image/png;base64,{b64encode(picture).decode()}"


def render(template: Path, values: Mapping[str, Any], *, html: bool, **filters: Any) -> str:
    """Render a template, with further filters."""
    return (
        _environment(template.parent, html, tuple(filters.items()))
        .get_template(template.name)
        .render(values)
    )


@lru_cache(maxsize=8)  # keeps the templates compiled
def _environment(
    folder: Path, html: bool, filters: tuple[tuple[str, Any], ...]
) -> jinja2.Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=html,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=not html,
        optimized=False,  # folding constants takes a quarter of the time to compile
    )
    environment.filters.update(filters)
    return environment
