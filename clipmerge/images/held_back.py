"""Images held back from a decision, to measure its effect on unseen images."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from clipmerge.images.sampling import balanced_sample

if TYPE_CHECKING:
    from clipmerge.images.dataset import LabelledImages

#: Share of the sampled images that is held back.
SHARE = 0.2
#: Maximum number of images held back: more would cost time and narrow the intervals very little.
MOST = 256


def sample_and_hold_back(
    images: LabelledImages, count: int, seed: int, *, share: float = SHARE, most: int = MOST
) -> tuple[LabelledImages, LabelledImages | None]:
    """Sample images for a decision, and others that it will not see.

    With enough images the decision gets the requested number, and the images held back are additional. With fewer, the
    available images are divided by the share.
    """
    wanted = wanted_back(count, share, most=most)
    sampled = images.sample(count + wanted, seed)
    # halves are rounded up, unlike in round(): a fifth of three to seven images is always one
    aside = min(wanted, int(len(sampled) * share + 0.5))
    if aside == 0:
        return sampled, None
    held = set(held_back_positions(sampled.labels, aside, seed))
    decide = [at for at in range(len(sampled)) if at not in held]
    return sampled.subset(decide), sampled.subset(sorted(held))


def wanted_back(count: int, share: float, *, most: int = MOST) -> int:
    """Number of images to hold back if there are enough.

    Example:
        >>> wanted_back(1024, 0.2), wanted_back(100, 0.2)
        (256, 25)
    """
    return min(most, round(count * share / (1 - share)))


def held_back_positions(labels: tuple[int, ...], count: int, seed: int) -> list[int]:
    """Pick the same share of every class; the only image of a class is picked last.

    Example:
        >>> sorted(labels[at] for labels in [(0, 0, 0, 0, 1, 1, 2)] for at in held_back_positions(labels, 3, seed=0))
        [0, 0, 1]
    """
    sizes = Counter(labels)
    seen: Counter[int] = Counter()
    turns = []
    for order, at in enumerate(balanced_sample(labels, len(labels), seed)):
        label = labels[at]
        seen[label] += 1
        # the k-th of a class's n images is picked at time (k - 1/2) / n; the last image of each class comes after all
        # others
        turns.append((seen[label] == sizes[label], (seen[label] - 0.5) / sizes[label], order, at))
    return [at for *_, at in sorted(turns)[:count]]
