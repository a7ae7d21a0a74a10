"""The answer, the table and the page of a sweep, from its record."""

from __future__ import annotations

from clipmerge.report.numbers import Table, points_of, signed
from clipmerge.report.pages import render
from clipmerge.types import Json


def curve_name(record: Json, alpha: float) -> str:
    """The name of a point of the curve."""
    name = f"alpha {alpha:g}"
    if alpha == 0:
        return f"{name} (zero-shot)"
    if alpha == 1:
        count = len(record.get("finetuned", ()))
        end = "fine-tuned" if count < 2 else f"average of {count}"
        return f"{name} ({end})"
    return name


def sweep_sentence(record: Json) -> str:
    """Compare the best recipe with the alpha curve, or say why that is not possible.

    A recipe is recommended only if it surely gains, and does not lose too much on the target.
    """
    points = points_of(record)
    judged = [row for row in points if row["gain_interval"]]
    if not judged:
        best = max(points or record["curve"], key=lambda row: float(row["ood"]))
        name = best.get("name") or curve_name(record, best["alpha"])
        text = f"{name} has the highest OOD accuracy, {100 * best['ood']:.1f}%"
        return f"{text}, with {100 * best['id']:.1f}% ID accuracy."
    row = max(judged, key=_rank)
    name = row["name"]
    numbers = f"{_gain(row, ' points')} of OOD accuracy over the alpha curve at equal ID accuracy"
    low, high = row["gain_interval"]
    if low > 0 and row["exceeds_max_loss"] is False:
        return f"Use {name}: {numbers}."
    if low > 0:
        return f"{name} gains {numbers}, at a loss of ID accuracy beyond the limit."
    if high < 0:
        return f"Keep to the alpha curve: {name}, the best of the others, has {numbers}."
    return f"No difference is shown: {name} has {numbers}; more images would tell."


def _rank(row: Json) -> tuple[bool, float]:
    """Rows that surely gain and keep the accuracy come before those that may gain more."""
    low, _ = row["gain_interval"]
    keeps = row["exceeds_max_loss"] is False
    return low > 0 and keeps, float(row["gain"])


def sweep_table(record: Json) -> Table:
    """A row per point: accuracy on every source, the means, and the gain over the curve."""
    names = [*record["id"], *record["ood"]]
    means = [kind for kind in ("id", "ood") if len(record[kind]) > 1]
    points = [(curve_name(record, row["alpha"]), row) for row in record["curve"]]
    points += [(row["name"], row) for row in points_of(record)]
    table = []
    for head, row in points:
        shares = [row["accuracy"][name] for name in names]
        shares += [row[kind] for kind in means]
        cells = [f"{100 * share:.1f}" for share in shares]
        table.append([head, *cells, _gain(row)])
    titles = [f"mean {kind.upper()}" for kind in means]
    return ["accuracy, %", *names, *titles, "gain"], table


def _gain(row: Json, unit: str = "") -> str:
    gain, interval = row["gain"], row["gain_interval"]
    if gain is None:
        return ""
    text = f"{signed(gain)}{unit}"
    if interval is None:
        return text
    low, high = interval
    return f"{text} [{signed(low)}, {signed(high)}]"


def sweep_notes(record: Json) -> list[str]:
    """Why a point has no gain or no interval, or that it lies on the curve."""
    notes = []
    for row in points_of(record):
        if row["alpha"] is not None:
            notes.append(f"{row['name']}: the same weights as alpha {row['alpha']:g}.")
        elif row["gain_note"]:
            notes.append(f"{row['name']}: {row['gain_note']}.")
    return notes


def sweep_page(record: Json, picture: bytes) -> str:
    """The page of a sweep, with its picture as PNG."""
    values = {
        "record": record,
        "picture": picture,
        "sentence": sweep_sentence(record),
        "table": sweep_table(record),
        "notes": sweep_notes(record),
    }
    return render("sweep.html.j2", values)
