"""Count how often the verdict gives an advice, and how often it is right, over judged merges.

Run: python -m benchmarks.advice benchmarks/results/images-64 benchmarks/results/half-views/whole \
        benchmarks/results/half-views

A judged merge has two parts in its file: what its own test images said (merged minus fine-tuned,
and the same under corruptions), and the accuracies on hundreds of images that the merge never saw,
of the target (ID) and of a real shift (OOD). An advice is right if the merge is at least as
accurate as the fine-tuned model under the shift and loses at most 3 points on the target. Where
several folders hold one pair, the first counts.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from clipmerge.evaluation.verdict import recommend
from clipmerge.planning.verdict import Comparison, Difference, SourceComparison
from clipmerge.stats import wilson

_LIMIT = 3.0
_SIZES = {"64": (0, 100), "240 to 400": (100, 500), "1,024": (500, 2000), "all": (0, 2000)}
_UNKNOWN = Difference(value=0.0, interval=(-1.0, 1.0))


def judged_merges(folders: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Name, images, verdict, and changes under the shift and on the target, in points."""
    seen = set()
    for folder in folders:
        for path in sorted(folder.glob("*.json")):
            record = json.loads(path.read_text())
            if "curve" not in record:
                continue
            finetuned = next(row for row in record["curve"] if row["alpha"] == 1)
            zeroshot = next(row for row in record["curve"] if row["alpha"] == 0)
            for row in record.get("recipes", ()):
                if path.stem in seen or not row["name"].startswith("auto") or not row.get("choice"):
                    continue
                seen.add(path.stem)
                gain, corrupted = (
                    Difference(**row["over_finetuned"][kind]) for kind in ("clean", "corrupted")
                )
                rule = recommend(
                    SourceComparison(
                        models={},
                        gain=gain,
                        name="target",
                        source="",
                        images=row["choice"]["images"],
                    ),
                    Comparison(models={}, gain=corrupted),
                    max_loss=_LIMIT,
                    zeroshot_gain=_UNKNOWN,
                    chosen=True,
                )
                yield {
                    "name": path.stem,
                    "images": record["calibration_images"],
                    "recommendation": rule.recommendation,
                    "ood": 100 * (row["ood"] - finetuned["ood"]),
                    "id": 100 * (row["id"] - finetuned["id"]),
                    "helped": finetuned["ood"] > zeroshot["ood"],
                }


def is_right(merge: dict[str, Any]) -> bool:
    """Whether the merge is as good as the advice to use it says."""
    return merge["ood"] > -1e-9 and merge["id"] > -_LIMIT - 1e-9


def main(folders: Sequence[str]) -> None:
    """Print the tables."""
    merges = list(judged_merges([Path(folder) for folder in folders]))
    print("| images | merges | advice | `use` right | `probably-use` right |")
    print("|---|---|---|---|---|")
    for size, (low, high) in _SIZES.items():
        print(f"| {size} | {_row([m for m in merges if low <= m['images'] < high])} |")
    helped = [merge for merge in merges if merge["helped"]]
    print(f"| all, fine-tuning helped under the shift | {_row(helped)} |")
    for merge in merges:
        if merge["recommendation"] in ("use", "probably-use") and not is_right(merge):
            print(f"wrong: {merge['name']}, {merge['recommendation']},", end=" ")
            print(f"OOD {merge['ood']:+.1f}, ID {merge['id']:+.1f}")


def _row(merges: list[dict[str, Any]]) -> str:
    cells = [str(len(merges))]
    advised = [merge for merge in merges if merge["recommendation"] != "too-few-images"]
    cells.append(_share(len(advised), len(merges)))
    for kind in ("use", "probably-use"):
        of_kind = [merge for merge in merges if merge["recommendation"] == kind]
        cells.append(_share(sum(map(is_right, of_kind)), len(of_kind)))
    return " | ".join(cells)


def _share(count: int, total: int) -> str:
    if not total:
        return "0 of 0"
    low, high = wilson(count / total, total)
    return f"{count} of {total} [{100 * low:.0f}, {100 * high:.0f}]"


if __name__ == "__main__":
    main(sys.argv[1:])
