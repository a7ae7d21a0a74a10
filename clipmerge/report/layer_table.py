"""The table of layers: a column per number, neighbours with equal cells in one row, equal columns
in a sentence.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

from markupsafe import Markup, escape

from clipmerge.output.record import LayerRecord, MergeRecord
from clipmerge.planning.measurements import StatisticAbout
from clipmerge.report.prose import minus
from clipmerge.report.text import text_of

_SUBSCRIPT = re.compile(r"(\w)_([0-9a-z](?:,[0-9a-z])*)")
# Statistics of learning, which the applied plan's own numbers replace, because overrides and edits
# come later.
_LEARNED = ("at_zero", "at_one", "straggler")


@dataclass(frozen=True)
class Scale:
    """Range of a column of bars; it always includes zero, where every bar starts."""

    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[Any], *, at_least: float = 0.0) -> Scale:
        """Fit the range to ``values``, at least up to ``at_least``."""
        numbers = [value for value in values if isinstance(value, float)]
        return cls(min([0.0, *numbers]), max([at_least, *numbers]))

    def bar(self, value: Any) -> tuple[float, float]:
        """Start and length of a bar in percent of the range; length 0, at zero, without a
        number.
        """
        number = value if isinstance(value, float) else 0.0
        span = self.high - self.low or 1.0
        return round(100 * (min(number, 0.0) - self.low) / span, 2), round(
            100 * abs(number) / span, 2
        )


@dataclass(frozen=True)
class Column:
    """One number per layer, with its heading, bars and explanation."""

    key: str
    title: str
    symbol: str | Markup  # second line of the heading
    term: str | Markup  # start of the explanation
    about: str
    values: Mapping[str, Any]
    decimals: int | None  # ``None`` for scientific notation
    scale: Scale
    kind: Literal["setting", "statistic", "score"] = "statistic"
    drawn: bool = True  # whether bars help to read the number
    signed: bool = False
    additive: bool = False  # whether the sum has a meaning
    unit: str = ""

    def text(self, value: Any) -> str:
        """Print one of the column's numbers."""
        if isinstance(value, tuple):  # the smallest and the largest
            return " to ".join(f"{end:.2f}" for end in value)
        return format_number(value, self.decimals, signed=self.signed)


def columns_of(record: MergeRecord) -> list[Column]:
    """Collect all numbers per layer."""
    changes = {
        layer: entry.change for layer, entry in record.layers.items() if entry.change is not None
    }
    tables: dict[str, dict[str, float]] = {"change": changes} if changes else {}
    shares = {
        name: entry.zeroshot_share
        for name, entry in record.layers.items()
        if entry.zeroshot_share is not None
    }
    for layer, row in record.measurements.items():
        for name, value in row.items():
            if name not in _LEARNED or not shares:
                tables.setdefault(name, {})[layer] = value
    columns = _settings(record)
    if any(shares.values()):
        about = (
            "share of the layer's weights whose coefficient is 0: the zero-shot model's, bit for"
            " bit."
        )
        title, term, scale = (
            "at zero-shot",
            "At zero-shot",
            Scale.of(shares.values(), at_least=0.05),
        )
        columns.append(
            Column("zeroshot_share", title, "share", term, about, shares, 3, scale, kind="setting")
        )
    columns += [_statistic(record, name, values) for name, values in tables.items()]
    return [*columns, *_scores(record)]


def _settings(record: MergeRecord) -> list[Column]:
    way = "how far the layer goes from its zero-shot to its fine-tuned weights."
    columns = []
    for key, symbol, term, about in (
        ("alpha", "coefficient", "Coefficient alpha (0 = zero-shot, 1 = fine-tuned)", way),
        (
            "density",
            "share kept",
            "Density (share of the change kept)",
            "the mask drops the rest of the layer's change.",
        ),
    ):
        values = {layer: getattr(entry, key) for layer, entry in record.layers.items()}
        decimals, scale = setting_decimals(values.values()), Scale.of(values.values(), at_least=1.0)
        columns.append(
            Column(key, key, symbol, term, about, values, decimals, scale, kind="setting")
        )
    ranges = {
        layer: entry.alpha_range for layer, entry in record.layers.items() if entry.alpha_range
    }
    if ranges:
        about = "smallest and largest coefficient of the layer's weights; its alpha is their mean."
        scale = Scale(0.0, 1.0)
        columns.append(
            Column(
                "alpha_range",
                "alpha range",
                "learned",
                "Alpha range",
                about,
                ranges,
                2,
                scale,
                "setting",
                False,
            )
        )
    return columns


def _statistic(record: MergeRecord, name: str, values: dict[str, float]) -> Column:
    reading = record.statistics.get(name, StatisticAbout())
    title = reading.title or name.replace("_", " ")
    measure = (record.recipe.measure or {}).get("name")
    about = reading.about or (f"statistic of the measure {measure}." if measure else "as recorded.")
    # letters in italics, indices as subscripts
    symbol = Markup(_SUBSCRIPT.sub(r"<i>\1</i><sub>\2</sub>", str(escape(reading.symbol))))
    term = f"{title[:1].upper()}{title[1:]}" if reading.about else title
    return Column(
        name,
        title,
        symbol,
        Markup("{} {}").format(term, symbol) if symbol else term,
        about,
        values,
        decimals_for(values.values()),
        Scale.of(values.values()),
        signed=reading.signed or any(value < 0 for value in values.values()),
        additive=reading.additive,
        unit=reading.unit,
    )


def _scores(record: MergeRecord) -> list[Column]:
    distance = "how far the layer stands out from the other layers, in robust standard deviations."
    share = "share of bootstrap resamples of the calibration batches in which the layer stands out."
    columns = []
    for key, title, symbol, term, about, decimals in (
        ("z", "outlier score", "z", "Outlier score z", distance, 1),
        ("stability", "stability", "of resamples", "Stability", share, 2),
    ):
        values = {layer: row[key] for layer, row in record.straggler_scores.items() if key in row}
        if values:
            scale = Scale.of(values.values())
            columns.append(
                Column(
                    key,
                    title,
                    symbol,
                    term,
                    about,
                    values,
                    decimals,
                    scale,
                    "score",
                    False,
                    scale.low < 0,
                )
            )
    return columns


def layer_table(
    record: MergeRecord, columns: Sequence[Column], towers: Mapping[str, str]
) -> dict[str, Any]:
    """Lay out the table for the page."""
    layers = tuple(record.layers)
    differing = (c for c in columns if len({c.text(c.values.get(layer)) for layer in layers}) > 1)
    shown = tuple(differing) or tuple(columns[:1])
    masks = any(entry.mask for entry in record.layers.values())
    left_out = [
        column for column in columns if column not in shown and (masks or column.key != "density")
    ]
    reasons = Counter(_reason(entry) for entry in record.layers.values())
    return {
        "columns": shown,  # those in which layers differ
        "equal": ", ".join(f"{c.title} {minus(c.text(c.values.get(layers[0])))}" for c in left_out),
        "towers": _towers(record, shown, towers),
        "reason": (
            next(iter(reasons)) if len(reasons) == 1 else ""
        ),  # shared by all layers, and then without a column
        "usual_reason": reasons.most_common(1)[0][
            0
        ],  # written only once if more than half of the layers share it
        "has_usual": len(reasons) > 1 and 2 * reasons.most_common(1)[0][1] > len(record.layers),
        "has_masks": masks,
    }


def _towers(
    record: MergeRecord, columns: Sequence[Column], towers: Mapping[str, str]
) -> list[dict[str, Any]]:
    """The rows of each tower, and its totals."""
    found = []
    for tower, members in groupby(record.layers, key=lambda layer: layer.partition(".")[0]):
        layers = list(members)
        numbers = [
            (c, [c.values[layer] for layer in layers if layer in c.values])
            for c in columns
            if c.additive
        ]
        sums = [(column, sum(values)) for column, values in numbers if values]
        size = sum(record.layers[layer].size or 0 for layer in layers)
        title, rows = towers.get(tower, tower), _rows(record, columns, layers)
        found.append(
            {"title": title, "rows": rows, "count": len(layers), "size": size, "sums": sums}
        )
    return found


def _rows(
    record: MergeRecord, columns: Sequence[Column], layers: Sequence[str]
) -> list[dict[str, Any]]:
    """A row per layer, or per neighbours with equal cells; a straggler has its own row."""
    stragglers = set(record.found_stragglers)

    def shown(layer: str) -> tuple[object, ...]:
        entry = record.layers[layer]
        texts = tuple(column.text(column.values.get(layer)) for column in columns)
        return (layer if layer in stragglers else "", entry.mask, _reason(entry), texts)

    rows = []
    for _, group in groupby(layers, key=shown):
        members = tuple(group)
        entry = record.layers[members[0]]
        rows.append(
            {
                "head": members[0] if len(members) == 1 else f"{members[0]} … {members[-1]}",
                "layers": members,
                "straggler": members[0] in stragglers,
                "mask": entry.mask or "",
                "reason": _reason(entry),
            }
        )
    return rows


def _reason(entry: LayerRecord) -> str:
    return "" if entry.reason is None else text_of(entry.reason)


def decimals_for(values: Iterable[Any]) -> int | None:
    """Choose the number of decimals for a whole column so that its largest entry has three digits.

    Example:
        >>> decimals_for([0.21, -0.0004]), decimals_for([31.0, 2.5]), decimals_for([3e9])
        (3, 1, None)
    """
    top = max((abs(value) for value in values if isinstance(value, float)), default=0.0)
    if top == 0:
        return 2
    exponent = math.floor(math.log10(top))
    return None if exponent > 4 or exponent < -4 else max(0, 2 - exponent)


def format_number(value: Any, decimals: int | None, *, signed: bool = False) -> str:
    """Print a number with a column's decimals; one that is too small for them is printed as
    ``3e-05``.

    Example:
        >>> format_number(0.5, 2), format_number(-2e-5, 3), format_number(0.25, 1, signed=True)
        ('0.50', '-2e-05', '+0.2')
        >>> format_number(None, 2)
        '–'
    """
    if value is None:
        return "\N{EN DASH}"
    sign = "+" if signed and value else ""
    if decimals is None:
        return f"{value:{sign}.2e}" if value else "0"
    vanishes = abs(value) < 0.5 * 10.0**-decimals
    if vanishes and value and decimals > 1:
        return f"{value:{sign}.0e}"
    return f"{0.0 if vanishes else value:{sign}.{decimals}f}"


def setting_decimals(values: Iterable[Any]) -> int:
    """Two decimals for coefficients and densities, three if two would hide a difference."""
    return (
        2
        if all(abs(value - round(value, 2)) < 1e-9 for value in values if isinstance(value, float))
        else 3
    )
