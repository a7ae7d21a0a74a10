"""How often the verdict advises, and how often it is right, over judged merges.

`results/advice.json` has merges of `auto`, by five commits, on pairs of all kinds: what their own
test images said (merged minus fine-tuned, and the same under corruptions, with intervals), and the
changes on hundreds of images that the merge never saw, of the target and of a real shift. What
fine-tuning gained is that on as many other images of the target. `results/interpolations.json`
has merges of which no images chose how far they go, and `results/shifts.json` merges of both kinds
that 50 or 100 labelled images of one shift judge as well: the changes are on all others.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.pair_results import FOLDER
from clipmerge.evaluation.verdict import recommend
from clipmerge.planning.record import Comparison, Estimate

MERGES = FOLDER / "advice.json"
INTERPOLATIONS = FOLDER / "interpolations.json"
SHIFTS = FOLDER / "shifts.json"
_LIMIT = 3.0
# Of a pair that is not recorded: a fine-tuned model is usually the better one on its target.
_USUAL = (0.5, 0.01, 0.99)
Merge = dict[str, Any]
#: By advice: how many merges are right, and how many there are.
Counts = dict[str, tuple[int, int]]


def advised(merge: Merge) -> str:
    """What the verdict's rules recommend of a merge, or did where no more of it was kept."""
    if "told" in merge:
        return str(merge["told"])
    recommendation, *_ = recommend(
        _comparison("gain", merge),
        _comparison("corrupted", merge),
        [_comparison("shift", merge)] if "shift" in merge else (),
        max_loss=_LIMIT,
        chosen="recipe" not in merge,
        same_answers=merge.get("same_answers", False),
    )
    return recommendation


def _comparison(key: str, merge: Merge) -> Comparison:
    usual = _estimate(_USUAL)
    return Comparison(
        name=key,
        source="",
        images=merge.get(f"{key}_images", merge["judging"]),
        models=dict.fromkeys(("zero-shot", "merged"), usual),
        gain=_estimate(merge[key]),
        finetuning_gain=_estimate(merge.get("finetuning_gain", _USUAL)),
    )


def _estimate(told: Iterable[float]) -> Estimate:
    value, low, high = told
    return Estimate(value=value, interval=(low, high))


def is_right(merge: Merge) -> bool:
    """Whether it loses at most 3 points on the target, and nothing under the shift."""
    return bool(merge["ood"] > -1e-9 and 100 * merge["id"] > -_LIMIT - 1e-9)


def read_merges(file: Path = MERGES) -> list[Merge]:
    return json.loads(file.read_text(encoding="utf-8"))


def by_images(merge: Merge) -> str:
    """How many images it was given."""
    images = merge["images"]
    if images < 100:
        return "64"
    return "240 to 412" if images < 500 else "697 to 1,040"


def counted(merges: Sequence[Merge]) -> dict[str, Counts]:
    """Counts by number of images, and of all."""
    found: dict[str, Counts] = {}
    for merge in sorted(merges, key=lambda each: each["images"]):
        found.setdefault(by_images(merge), {})
    found["all"] = {}
    for merge in merges:
        advice = advised(merge)
        for name in (by_images(merge), "all"):
            right, count = found[name].get(advice, (0, 0))
            found[name][advice] = (right + is_right(merge), count + 1)
    return found
