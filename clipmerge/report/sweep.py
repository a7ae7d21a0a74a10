"""The answer, the table and the page of a sweep, made from its record."""

from __future__ import annotations

from clipmerge.planning.record import QUESTIONS, Estimate, Question
from clipmerge.report.pages import render
from clipmerge.report.wording import Table, recipes_and_points
from clipmerge.types import Json


def _name_of(record: Json, row: Json) -> str:
    """The name of a recipe or a checkpoint, or of a point of the curve."""
    if "alpha" not in row:
        return str(row["name"])
    count = len(record.get("finetuned", ()))
    ends = {0: " (zero-shot)", 1: f" (average of {count})" if count > 1 else " (fine-tuned)"}
    return f"alpha {row['alpha']:g}{ends.get(row['alpha'], '')}"


def _asked(record: Json) -> list[Question]:
    """The questions that have sources; the first one decides."""
    return [question for question in QUESTIONS if record[question]]


def _best_row(record: Json) -> Json:
    """The row of which the answer speaks: a recipe or checkpoint or, if there are none, an alpha
    that keeps to the limit.
    """
    first = _asked(record)[0]
    if points := recipes_and_points(record):
        return max(points, key=lambda row: (_is_recommended(row, first), row[first]["gain"]))
    kept = [row for row in record["curve"] if not row["exceeds_max_loss"]]
    return max(kept, key=lambda row: float(row[first]["accuracy"]))


def best_name(record: Json) -> str:
    """The name of the row of which the answer speaks."""
    return _name_of(record, _best_row(record))


def sweep_sentence(record: Json) -> str:
    """Recommend the best recipe or the alpha curve; without recipes, name the best alpha.

    A recipe is recommended if its gain is surely positive, on shifts if there are any, and its loss
    on the target is acceptable.
    """
    asked = _asked(record)
    first = asked[0]
    best = _best_row(record)
    name = _name_of(record, best)
    if best[first]["gain"] is None:
        shares = [f"{best[each]['accuracy']:.1%} {QUESTIONS[each]}" for each in asked]
        return (
            f"The best alpha within `max_loss` is {best['alpha']:g}: {best['id']:.1%} on the"
            f" target, {', '.join(shares)}."
        )
    gains = [f"{_gain_cell(best[each])} {QUESTIONS[each]}" for each in asked]
    numbers = f"has a gain of {', '.join(gains)}"
    low, high = best[first]["gain_interval"]
    if _is_recommended(best, first):
        return f"Use {name}: it {numbers}."
    if low > 0:
        return f"{name} {numbers}, but loses more on the target than `max_loss`."
    if high < 0:
        return f"Keep to the alpha curve: {name}, the best of the others, {numbers}."
    return f"No difference is shown: {name} {numbers}; more images would tell."


def _is_recommended(row: Json, question: str) -> bool:
    """Whether the gain is surely positive, and the loss on the target within its limit."""
    return row[question]["gain_interval"][0] > 0 and row["exceeds_max_loss"] is False


def sweep_table(record: Json) -> Table:
    """A row per point: accuracy on every source, and the mean of each question with its gain."""
    heads = ["accuracy, %"]
    for question in ("id", *_asked(record)):
        heads += record[question]
        if len(record[question]) > 1:
            heads.append(f"mean {question}")
    heads += [f"gain, {question}" for question in _asked(record)]
    rows = [
        [_name_of(record, row), *_cells(record, row)]
        for row in (*record["curve"], *recipes_and_points(record))
    ]
    return heads, rows


def _cells(record: Json, row: Json) -> list[str]:
    means = {"id": row["id"]}
    means |= {question: row[question]["accuracy"] for question in _asked(record)}
    shares = []
    for question, mean in means.items():
        shares += [row["accuracy"][name] for name in record[question]]
        if len(record[question]) > 1:
            shares.append(mean)
    gains = [_gain_cell(row[question]) for question in _asked(record)]
    return [*(f"{100 * share:.1f}" for share in shares), *gains]


def _gain_cell(answer: Json) -> str:
    if answer["gain"] is None:
        return ""
    return Estimate(value=answer["gain"], interval=answer["gain_interval"]).as_difference()


def sweep_page(record: Json, picture: bytes) -> str:
    """The page of a sweep, with its picture as PNG."""
    values = {
        "record": record,
        "picture": picture,
        "sentence": sweep_sentence(record),
        "table": sweep_table(record),
        "best": best_name(record),
        "points": recipes_and_points(record),
    }
    return render("sweep.html.j2", values)
