"""The answer, the table and the HTML page of a sweep, made from its record."""

from __future__ import annotations

from clipmerge.planning.record import QUESTIONS, Estimate
from clipmerge.report.pages import render
from clipmerge.report.wording import Table, recipes_and_points
from clipmerge.types import Json


def _row_name(record: Json, row: Json) -> str:
    """Return the name of a row: a recipe, a checkpoint or an alpha."""
    if "alpha" not in row:
        return str(row["name"])
    count = len(record.get("finetuned", ()))
    ends = {0: " (zero-shot)", 1: f" (average of {count})" if count > 1 else " (fine-tuned)"}
    return f"alpha {row['alpha']:g}{ends.get(row['alpha'], '')}"


def _best_row(record: Json) -> Json:
    """Return the best recipe or checkpoint of a sweep; without any, the best alpha within the limit
    of loss on the target.
    """
    first = "shift" if record["shift"] else "task"
    if points := recipes_and_points(record):
        return max(points, key=lambda row: (_is_recommended(row), row["gain"][first]["value"]))
    kept = [row for row in record["curve"] if not row["exceeds_max_loss"]]
    return max(kept, key=lambda row: float(row["mean"][first]["value"]))


def best_name(record: Json) -> str:
    """Return the name of the best row of a sweep, the subject of its answer."""
    return _row_name(record, _best_row(record))


def sweep_sentence(record: Json) -> str:
    """Write the answer of a sweep. It recommends the best recipe or checkpoint, or plain
    interpolation if none is better. Without recipes and checkpoints, it names the best alpha.
    """
    best = _best_row(record)
    name = _row_name(record, best)
    if not best["gain"]:
        shares = [f"{mean['value']:.1%} {QUESTIONS[each]}" for each, mean in best["mean"].items()]
        return f"The best alpha within `max_loss` is {best['alpha']:g}: {', '.join(shares)}."
    gains = [f"{_gain_cell(gain)} {QUESTIONS[each]}" for each, gain in best["gain"].items()]
    numbers = f"has a gain of {', '.join(gains)}"
    if _is_recommended(best):
        return f"Use {name}: it {numbers}."
    low, high = _deciding_interval(best)
    if low > 0:
        return f"{name} {numbers}, but loses more on the target than `max_loss`."
    if high < 0:
        return f"Keep to the alpha curve: {name}, the best of the others, {numbers}."
    return f"No difference is shown: {name} {numbers}; more test images may show one."


def _is_recommended(row: Json) -> bool:
    """Whether the gain is surely positive, and the loss on the target within the limit."""
    return _deciding_interval(row)[0] > 0 and not row["exceeds_max_loss"]


def _deciding_interval(row: Json) -> list[float]:
    """Return the interval of the gain under shift or, if there is no shift, on other tasks."""
    interval: list[float] = next(iter(row["gain"].values()))["interval"]
    return interval


def sweep_table(record: Json) -> Table:
    """Make a table with a row per point: accuracy on every source, means over sources, gains."""
    rows = [*record["curve"], *recipes_and_points(record)]
    columns = {"accuracy, %": [_row_name(record, row) for row in rows]}
    asked = [question for question in QUESTIONS if record[question]]
    for question in asked:
        names = record[question]
        for name in names:
            columns[name] = [f"{100 * row['accuracy'][name]:.1f}" for row in rows]
        if len(names) > 1:
            means = [row["mean"][question]["value"] for row in rows]
            columns[f"mean {question}"] = [f"{100 * mean:.1f}" for mean in means]
    for question in asked[1:]:
        gains = [row["gain"].get(question) for row in rows]
        columns[f"gain, {question}"] = [_gain_cell(gain) if gain else "" for gain in gains]
    return list(columns), list(map(list, zip(*columns.values(), strict=True)))


def _gain_cell(gain: Json) -> str:
    return Estimate(**gain).as_difference()


def sweep_page(record: Json, picture: bytes) -> str:
    """Return the HTML page of a sweep. ``picture`` is a PNG."""
    values = {
        "record": record,
        "picture": picture,
        "sentence": sweep_sentence(record),
        "table": sweep_table(record),
        "best": best_name(record),
    }
    return render("sweep.html.j2", values)
