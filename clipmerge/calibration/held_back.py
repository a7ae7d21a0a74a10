"""Choose calibration images to hold back from learning, to judge the result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

#: With fewer images than this nothing is held back: neither part would be informative.
FEWEST = 8


def held_back(labels: Sequence[int], share: float, seed: int) -> list[int]:
    """Choose images to hold back, equally many per class if possible; the last image of a class is taken last.

    Args:
        labels: Class of each image.
        share: Share of the images that is held back, in [0, 1).
        seed: The same seed and labels give the same choice.

    Returns:
        Their positions, ascending; empty with fewer than `FEWEST` images.

    Example:
        >>> [label for label in map([0, 0, 0, 0, 1, 1, 1, 1].__getitem__, held_back([0, 0, 0, 0, 1, 1, 1, 1], 0.25, 0))]
        [0, 1]
    """
    if len(labels) < FEWEST or share == 0:
        return []
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).tolist()
    images, seen = Counter(labels), Counter[int]()
    ranked = []
    for place, position in enumerate(order):
        label = labels[position]
        seen[label] += 1
        ranked.append((seen[label] == images[label], seen[label], place, position))
    count = max(1, round(share * len(labels)))
    return sorted(position for *_, position in sorted(ranked)[:count])
