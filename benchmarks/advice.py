"""How often the verdict advises, and how often it is right, over judged merges.

`results/advice.json` has merges of `auto`, by two commits, on pairs of all kinds: what their own
test images said (merged minus fine-tuned, and the same under corruptions, with intervals), and the
changes on hundreds of images that the merge never saw, of the target and of a real shift.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.pair_results import FOLDER
from clipmerge.evaluation.verdict import recommend
from clipmerge.planning.record import Comparison, Estimate

FILE = FOLDER / "advice.json"
_LIMIT = 3.0
_SIZES = {"64": (0, 100), "240 to 400": (100, 500), "697 to 1,024": (500, 2000), "all": (0, 2000)}


def advised(merge: dict[str, Any]) -> str:
    """What the verdict's rules recommend of a merge."""
    target, corrupted = (_comparison(key, merge) for key in ("gain", "corrupted"))
    recommendation, *_ = recommend(
        target,
        corrupted,
        max_loss=_LIMIT,
        chosen=True,
        same_answers=merge.get("same_answers", False),
    )
    return recommendation


def _comparison(key: str, merge: dict[str, Any]) -> Comparison:
    value, *interval = merge[key]
    gain = Estimate(value=value, interval=tuple(interval))
    # not recorded; a fine-tuned model is usually the better one on its target
    usual = Estimate(value=0.5, interval=(0.01, 0.99))
    models = dict.fromkeys(("zero-shot", "merged"), usual)
    return Comparison(
        name=key,
        source="",
        images=merge["judging"],
        models=models,
        gain=gain,
        finetuning_gain=usual,
    )


def is_right(merge: dict[str, Any]) -> bool:
    """Whether it loses at most 3 points on the target, and nothing under the shift."""
    return bool(merge["ood"] > -1e-9 and 100 * merge["id"] > -_LIMIT - 1e-9)


def counted(file: Path = FILE) -> dict[str, dict[str, tuple[int, int]]]:
    """By number of images and advice: how many merges are right, and how many there are."""
    merges = [(each, advised(each)) for each in json.loads(file.read_text(encoding="utf-8"))]
    found: dict[str, dict[str, tuple[int, int]]] = {}
    for size, (low, high) in _SIZES.items():
        ours = [(merge, said) for merge, said in merges if low <= merge["images"] < high]
        found[size] = {
            advice: (
                sum(is_right(merge) for merge, said in ours if said == advice),
                sum(said == advice for _, said in ours),
            )
            for advice in sorted({said for _, said in merges})
        }
    return found
