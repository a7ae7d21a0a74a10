"""The result of a sweep in one sentence that claims no more than its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple


class Answer(NamedTuple):
    """What to do, as ``yes``, ``no`` or ``open`` for the page's colour and in a few words, and the
    numbers for it.
    """

    kind: str
    label: str
    numbers: str


def marks_of(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows that are not points of the curve: recipes, then other checkpoints."""
    return [*record["recipes"], *record.get("points", [])]


def headline(record: dict[str, Any]) -> str:
    """The answer as one sentence."""
    _, label, numbers = answer(record)
    return f"{label}: {numbers}"


def answer(record: dict[str, Any]) -> Answer:
    """Compare the best recipe with the alpha curve, or say why that is not possible.

    A recipe is recommended only if it is off the curve, its gain has an interval, and it does not
    lose too much.
    """
    judged = [row for row in marks_of(record) if row["gain_interval"]]
    if judged:
        return _compared(max(judged, key=lambda row: float(row["gain"])))
    unjudged = [row for row in marks_of(record) if row["alpha"] is None]
    best = max(unjudged or record["curve"], key=lambda row: float(row["ood"]))
    ood, id = (f"{100 * best[mean]:.1f}%" for mean in ("ood", "id"))
    if not unjudged:
        label = f"Alpha {best['alpha']:g} has the highest mean OOD accuracy of the curve"
        return Answer("open", label, f"{ood}, with {id} ID accuracy.")
    return Answer(
        "open",
        "Not known",
        f"{best['name']} has {ood} mean OOD accuracy with {id} ID accuracy, but it cannot be"
        f" compared with the alpha curve: {best['gain_note'] or 'no interval was made'}.",
    )


def _compared(row: dict[str, Any]) -> Answer:
    low, high = row["gain_interval"]
    where = "its most accurate point" if row["gain_note"] else "equal ID accuracy"
    numbers = f"{signed(row['gain'])} points {interval(row['gain_interval'])}"
    numbers = f"{numbers} of mean OOD accuracy against the alpha curve at {where}"
    name = row["name"]
    if low > 0:
        advised = (
            ("open", f"{name} gains") if row.get("exceeds_max_loss") else ("yes", f"Use {name}")
        )
        return Answer(*advised, f"{numbers}.")
    if high < 0:
        return Answer(
            "no", "Keep to the alpha curve", f"{name}, the best of the others, has {numbers}."
        )
    return Answer(
        "open", "No difference is shown", f"{name} has {numbers}; more images would tell."
    )


def gain_notes(record: dict[str, Any]) -> list[str]:
    """One line for each recipe that had unlabelled images, and for each row without a gain or an
    interval.
    """
    notes = [
        f"{row['name']}: also learned from {given['images']} unlabelled images of"
        f" {given['source']}."
        for row in record["recipes"]
        if (given := (row.get("calibration") or {}).get("unlabelled"))
    ]
    for row in marks_of(record):
        if row["alpha"] is not None:
            notes.append(
                f"{row['name']}: the same weights as alpha {row['alpha']:g}, a point of the curve."
            )
        elif row.get("gain_note"):
            notes.append(f"{row['name']}: {row['gain_note']}.")
    return notes


def signed(share: float) -> str:
    """A difference of shares in points, with its sign.

    Example:
        >>> signed(0.0123), signed(-0.0001)
        ('+1.2', '0.0')
    """
    text = f"{100 * share:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text


def interval(ends: Sequence[float] | None, *, with_sign: bool = True) -> str:
    """An interval in brackets, in points; empty if there is none.

    Example:
        >>> interval((0.01, 0.02)), interval((0.5, 0.62), with_sign=False), interval(None)
        ('[+1.0, +2.0]', '[50.0, 62.0]', '')
    """
    if not ends:
        return ""
    low, high = (signed(end) if with_sign else f"{100 * end:.1f}" for end in ends)
    return f"[{low}, {high}]"
