"""The measured effect of a merge, as a plot that is a table: a row per model with mark, interval
and number.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import fmean
from typing import Any

from clipmerge.output.record import MergeRecord
from clipmerge.planning.merge_effect import Estimate, MergeEffect
from clipmerge.planning.other_tasks import OtherTaskScores, measures_of
from clipmerge.report.palette import MARKS, mark_styles

#: Measures of other tasks that are drawn; the rest is in a table.
DRAWN = ("accuracy", "image to text R@1", "text to image R@1")
_TICKS = 6


#: Title and note of a group, and by model the value and its interval, if it has one.
_Values = tuple[str, str, dict[str, tuple[float, tuple[float, float] | None]]]


def effect_plot(record: MergeRecord) -> dict[str, Any] | None:
    """Lay out the accuracies on the images held back and the scores on other tasks; ``None`` if
    there are none.

    Positions and lengths are in per cent of the plot's width; all groups of models share one axis.
    """
    groups = [
        *_held_back(record.effect),
        *(group for task in record.other_tasks for group in _other_task(task)),
    ]
    if not groups:
        return None
    values = [value for _, _, models in groups for value in models.values()]
    ends: list[float] = [end for share, interval in values for end in (share, *(interval or ()))]
    low, high = math.floor(10 * min(ends) + 1e-9) / 10, math.ceil(10 * max(ends) - 1e-9) / 10
    low, high = max(0.0, min(low, high - 0.1)), max(high, low + 0.1)
    step = 0.1 * math.ceil((high - low) / 0.1 / _TICKS)
    ((colour, _),) = mark_styles([record.recipe.name])

    def place(share: float) -> float:
        return round(100 * (share - low) / (high - low), 2)

    def dot(model: str, value: float, interval: tuple[float, float] | None) -> dict[str, Any]:
        start, stop = interval or (value, value)
        text = f"{100 * value:.1f}" + (
            f" [{100 * start:.1f}, {100 * stop:.1f}]" if interval else ""
        )
        where = {
            "at": place(value),
            "start": place(start),
            "length": round(place(stop) - place(start), 2),
        }
        return {"model": model, "text": text, **where}

    ticks = [low + step * number for number in range(1 + round((high - low) / step - 0.499))]
    return {
        "groups": [
            {
                "title": title,
                "note": note,
                "dots": [dot(model, *where) for model, where in models.items()],
            }
            for title, note, models in groups
        ],
        "ticks": [(place(tick), f"{100 * tick:.0f}%") for tick in ticks],
        "mark": MARKS.index(colour),  # the recipe's own colour, in every picture
    }


def _held_back(effect: MergeEffect | None) -> Iterator[_Values]:
    if effect is None:
        return
    models = effect.models
    unrelated = [name for name in effect.merged.corruptions if name not in effect.related]

    def values(kind: str) -> dict[str, tuple[float, tuple[float, float] | None]]:
        estimates: dict[str, Estimate] = {
            name: getattr(accuracy, kind) for name, accuracy in models.items()
        }
        return {name: (estimate.value, estimate.interval) for name, estimate in estimates.items()}

    counted = f"{effect.images:,} image{'s' * (effect.images > 1)} that the decision did not see"
    yield "Your images", counted, values("clean")
    views = f"{effect.corruptions_per_image} of {', '.join(unrelated)} for each image"
    yield (
        "Your images under unrelated corruptions",
        f"{views}; no recipe learns from these",
        values("corrupted"),
    )
    views = (
        f"{effect.related_per_image} of {', '.join(effect.related)} for each image; auto learns"
        " from milder forms"
    )
    yield "Your images under related corruptions", views, values("related")


def _other_task(task: OtherTaskScores) -> Iterator[_Values]:
    what = f"{task.captions:,} captions" if task.captions else f"{task.classes:,} classes"
    finetuned = [measures_of(score) for score in task.finetuned]
    merged = measures_of(task.merged)
    for measure, zeroshot in measures_of(task.zeroshot).items():
        if measure in DRAWN:
            shares = {"zero-shot": zeroshot, "fine-tuned": fmean(one[measure] for one in finetuned)}
            shares["merged"] = merged[measure]
            scores = {
                "zero-shot": task.zeroshot,
                "fine-tuned": task.finetuned[0],
                "merged": task.merged,
            }
            intervals = {
                name: score.accuracy.interval
                for name, score in scores.items()
                if score.accuracy and (name != "fine-tuned" or len(finetuned) == 1)
            }
            title = f"Other task: {task.name}" + ("" if measure == "accuracy" else f", {measure}")
            lost, back = shares["fine-tuned"] - zeroshot, shares["merged"] - shares["fine-tuned"]
            changes = (
                f"fine-tuning changed it by {100 * lost:+.1f} points, the merge gives back"
                f" {100 * back:+.1f}"
            )
            note = f"{task.images:,} images, {what}; {changes}"
            yield (
                title,
                note,
                {name: (share, intervals.get(name)) for name, share in shares.items()},
            )
