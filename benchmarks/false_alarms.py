"""Count what the checks of the inputs say of right inputs: every finding is a false alarm.

``python -m benchmarks.false_alarms pairs.txt --json alarms.json``

Each line of the file is a pair and its images: ``NAME ZEROSHOT FINETUNED SOURCE [CLASSES]``, with
blanks between. Of each source a few samples are drawn, of 128 images and of 32; a finding counts
once per sample. The pair itself is checked once, in the right order and swapped.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from clipmerge.checkpoint import Inputs, align_checkpoints, open_checkpoint
from clipmerge.checks import check_models, check_sources
from clipmerge.images.dataset import open_images
from clipmerge.images.image_set import LabelledImages
from clipmerge.planning.merge_effect import CONSEQUENCES
from clipmerge.progress import Progress
from clipmerge.request import Calibration

DRAWS = 3
SIZES = (128, 32)


def aligned(zeroshot: str, finetuned: str) -> Inputs:
    """Open a pair, whatever the dtypes."""
    first, second = (open_checkpoint(source) for source in (zeroshot, finetuned))
    return align_checkpoints(first, [second], mixed_dtypes=True)


def alarms(
    name: str, zeroshot: str, finetuned: str, source: str, classes: str = ""
) -> dict[str, Any]:
    """The findings about one pair and its images."""
    inputs = aligned(zeroshot, finetuned)
    images = open_images(source, Path(classes) if classes else None)
    settings = Calibration(device="cpu")
    found: dict[str, Counter[str]] = {}
    for size in SIZES:
        found[str(size)] = Counter(
            finding.kind
            for seed in range(DRAWS)
            for finding in check_sources(
                inputs, {"": images}, settings, Progress(), max_images=size, seed=seed
            )
        )
    return {
        "name": name,
        "classes": len(images.class_names) if isinstance(images, LabelledImages) else "captions",
        "pair": [finding.kind for finding in check_models(inputs)],
        "swapped": [finding.kind for finding in check_models(aligned(finetuned, zeroshot))],
        "samples": {size: dict(counted) for size, counted in found.items()},
    }


def main() -> None:
    """Check the pairs of a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--json", type=Path, help="where to write the counts")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines = [line.split() for line in arguments.pairs.read_text().splitlines() if line.strip()]
    results = []
    for line in lines:
        results.append(alarms(*line))
        print(json.dumps(results[-1]), flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    total: Counter[str] = Counter()
    for result in results:
        total.update(result["pair"])
        for counts in result["samples"].values():
            total.update(counts)
    for kind, count in sorted(total.items()):
        print(f"{kind} ({CONSEQUENCES[kind]}): {count}")
    print(f"{len(results)} pairs, {DRAWS * len(SIZES) * len(results)} samples")


if __name__ == "__main__":
    main()
