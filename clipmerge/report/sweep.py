"""The answer, the table and the page of a sweep, from its record."""

from __future__ import annotations

from clipmerge.report.pages import render
from clipmerge.report.wording import Table, recipes_and_points, signed
from clipmerge.types import Json


def curve_name(record: Json, alpha: float) -> str:
    """The name of a point of the curve."""
    name = f"alpha {alpha:g}"
    if alpha == 0:
        return f"{name} (zero-shot)"
    if alpha != 1:
        return name
    count = len(record.get("finetuned", ()))
    end = "fine-tuned"
    if count > 1:
        end = f"average of {count}"
    return f"{name} ({end})"


def sweep_sentence(record: Json) -> str:
    """Compare the best recipe with the alpha curve, or say why that is not possible.

    A recipe is recommended only if it surely gains, and does not lose too much on the target.
    """
    points = recipes_and_points(record)
    judged = [row for row in points if row["gain_interval"]]
    if not judged:
        best = max(points or record["curve"], key=_mean_ood_accuracy)
        name = best.get("name") or curve_name(record, best["alpha"])
        ood = 100 * best["ood"]
        id = 100 * best["id"]
        return f"{name} has the highest OOD accuracy, {ood:.1f}%, with {id:.1f}% ID accuracy."
    row = max(judged, key=_rank_by_gain)
    name = row["name"]
    numbers = (
        f"{_gain_cell(row, ' points')} of OOD accuracy over the alpha curve at equal ID accuracy"
    )
    low, high = row["gain_interval"]
    if low > 0 and row["exceeds_max_loss"] is False:
        return f"Use {name}: {numbers}."
    if low > 0:
        return f"{name} gains {numbers}, at a loss of ID accuracy beyond the limit."
    if high < 0:
        return f"Keep to the alpha curve: {name}, the best of the others, has {numbers}."
    return f"No difference is shown: {name} has {numbers}; more images would tell."


def _mean_ood_accuracy(row: Json) -> float:
    return float(row["ood"])


def _rank_by_gain(row: Json) -> tuple[bool, float]:
    """Rows that surely gain and keep the accuracy come before those that may gain more."""
    low, _ = row["gain_interval"]
    keeps = row["exceeds_max_loss"] is False
    gains = low > 0 and keeps
    return gains, float(row["gain"])


def sweep_table(record: Json) -> Table:
    """A row per point: accuracy on every source, the means, and the gain over the curve."""
    names = [*record["id"], *record["ood"]]
    means = [kind for kind in ("id", "ood") if len(record[kind]) > 1]
    points = {}
    for row in record["curve"]:
        points[curve_name(record, row["alpha"])] = row
    for row in recipes_and_points(record):
        points[row["name"]] = row
    table = []
    for head, row in points.items():
        shares = [row["accuracy"][name] for name in names]
        shares += [row[kind] for kind in means]
        cells = [f"{100 * share:.1f}" for share in shares]
        table.append([head, *cells, _gain_cell(row)])
    titles = [f"mean {kind.upper()}" for kind in means]
    heads = ["accuracy, %", *names, *titles, "gain"]
    return heads, table


def _gain_cell(row: Json, unit: str = "") -> str:
    gain = row["gain"]
    if gain is None:
        return ""
    text = signed(gain) + unit
    interval = row["gain_interval"]
    if interval is None:
        return text
    low, high = map(signed, interval)
    return f"{text} [{low}, {high}]"


def sweep_notes(record: Json) -> list[str]:
    """Why a point has no gain or no interval."""
    return [
        f"{row['name']}: {row['gain_note']}."
        for row in recipes_and_points(record)
        if row["gain_note"]
    ]


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
