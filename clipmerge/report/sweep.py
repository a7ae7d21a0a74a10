"""The answer, the table and the page of a sweep, made from its record."""

from __future__ import annotations

from clipmerge.report.pages import render
from clipmerge.report.wording import Table, recipes_and_points, signed
from clipmerge.types import Json


def _name_of(record: Json, row: Json) -> str:
    """The name of a recipe or a checkpoint, or of a point of the curve."""
    if "alpha" not in row:
        return str(row["name"])
    count = len(record.get("finetuned", ()))
    ends = {0: " (zero-shot)", 1: f" (average of {count})" if count > 1 else " (fine-tuned)"}
    return f"alpha {row['alpha']:g}{ends.get(row['alpha'], '')}"


def sweep_sentence(record: Json) -> str:
    """Recommend the best recipe or the alpha curve; without intervals, name the highest accuracy.

    A recipe is recommended if its gain is surely positive and its loss on the target is acceptable.
    """
    points = recipes_and_points(record)
    judged = [row for row in points if row["gain_interval"]]
    if not judged:
        best = max(points or record["curve"], key=lambda row: float(row["ood"]))
        name = _name_of(record, best)
        ood = 100 * best["ood"]
        return (
            f"{name} has the highest OOD accuracy, {ood:.1f}%, with {best['id']:.1%} ID accuracy."
        )
    best = max(judged, key=lambda row: (_is_recommended(row), row["gain"]))
    name = best["name"]
    numbers = (
        f"{_gain_cell(best, ' points')} of OOD accuracy over the alpha curve at equal ID accuracy"
    )
    low, high = best["gain_interval"]
    if _is_recommended(best):
        return f"Use {name}: {numbers}."
    if low > 0:
        return f"{name} gains {numbers}, but loses more ID accuracy than the limit."
    if high < 0:
        return f"Keep to the alpha curve: {name}, the best of the others, has {numbers}."
    return f"No difference is shown: {name} has {numbers}; more images would tell."


def _is_recommended(row: Json) -> bool:
    """Whether the gain is surely positive, and the loss of ID accuracy within its limit."""
    return row["gain_interval"][0] > 0 and row["exceeds_max_loss"] is False


def sweep_table(record: Json) -> Table:
    """A row per point: accuracy on every source, the means, and the gain over the curve."""
    names = [*record["id"], *record["ood"]]
    means = [kind for kind in ("id", "ood") if len(record[kind]) > 1]
    rows = []
    for row in (*record["curve"], *recipes_and_points(record)):
        shares = [row["accuracy"][name] for name in names] + [row[kind] for kind in means]
        rows.append([_name_of(record, row), *(f"{100 * s:.1f}" for s in shares), _gain_cell(row)])
    titles = [f"mean {kind.upper()}" for kind in means]
    return ["accuracy, %", *names, *titles, "gain"], rows


def _gain_cell(row: Json, unit: str = "") -> str:
    if row["gain"] is None:
        return ""
    text = signed(row["gain"]) + unit
    if row["gain_interval"] is None:
        return text
    low, high = map(signed, row["gain_interval"])
    return f"{text} [{low}, {high}]"


def sweep_page(record: Json, picture: bytes) -> str:
    """The page of a sweep, with its picture as PNG."""
    values = {
        "record": record,
        "picture": picture,
        "sentence": sweep_sentence(record),
        "table": sweep_table(record),
        "points": recipes_and_points(record),
    }
    return render("sweep.html.j2", values)
