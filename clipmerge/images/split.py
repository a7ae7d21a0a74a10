"""Images held back from a decision, to measure its effect on unseen images."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from clipmerge.finding import Finding
from clipmerge.images.fingerprints import first_copies
from clipmerge.images.image_set import ImageSet
from clipmerge.images.sampling import balanced_sample
from clipmerge.types import Shape

#: Share of the sampled images that is held back.
SHARE = 0.2
#: Maximum number of images held back: more would cost time and narrow the intervals very little.
MAX_HELD_BACK = 256


Images = TypeVar("Images", bound=ImageSet)


@dataclass(frozen=True)
class Samples(Generic[Images]):
    """Sampled images, divided into those for a decision and those held back from it.

    Attributes:
        images: All of them.
        deciding: Positions of those for the decision.
        held_back_at: Positions of those held back, possibly none.
        copies: Number of copies left out.
    """

    images: Images
    deciding: list[int]
    held_back_at: list[int]
    copies: int

    @property
    def decide(self) -> Images:
        """The images for the decision."""
        return self.images.subset(self.deciding) if self.held_back_at else self.images

    @property
    def held_back(self) -> Images | None:
        """The images held back from it; ``None`` for none."""
        return self.images.subset(self.held_back_at) if self.held_back_at else None


def sample_and_hold_back(
    images: Images, count: int, seed: int, *, share: float = SHARE
) -> Samples[Images]:
    """Sample images for a decision, and others that it will not see.

    With enough images the decision gets the requested number, and the images held back are
    additional. With fewer, the available images are divided by the share. Of images that are copies
    of one another, one is used.
    """
    wanted = held_out_count(count, share)
    drawn = images.sample(count + wanted, seed)
    sampled = without_copies(drawn)
    copies = len(drawn) - len(sampled)
    # halves are rounded up, unlike in round(): a fifth of three to seven images is always one
    aside = min(wanted, int(len(sampled) * share + 0.5))
    back: set[int] = set()
    if aside and images.labels_are_classes:
        # classes of which the source has one image learn from it, and are not judged
        counts = Counter(images.labels)
        shared = [at for at, label in enumerate(sampled.labels) if counts[label] > 1]
        back_of_shared = held_back_positions(
            tuple(sampled.labels[at] for at in shared), aside, seed
        )
        back = {shared[at] for at in back_of_shared}
    elif aside:
        back = held_back_groups(sampled.labels, aside, seed)
    deciding = [at for at in range(len(sampled)) if at not in back]
    return Samples(sampled, deciding, sorted(back), copies)


def without_copies(images: Images) -> Images:
    """Drop images that are copies of an earlier one: they would count twice, or be seen and held
    back.
    """
    first = first_copies(images.store)
    return images if len(first) == len(images) else images.subset(first)


def copies_note(source: str, copies: int) -> Finding:
    """Say that copies were left out."""
    return Finding.of("sampled-copies", source=source, images=copies)


def held_out_count(count: int, share: float) -> int:
    """Number of images to hold back if there are enough."""
    return min(MAX_HELD_BACK, round(count * share / (1 - share)))


def held_back_positions(labels: Shape, count: int, seed: int) -> list[int]:
    """Pick the same share of every class; the only image of a class is picked last."""
    sizes = Counter(labels)
    seen: Counter[int] = Counter()
    turns = []
    for order, at in enumerate(balanced_sample(labels, len(labels), seed)):
        label = labels[at]
        seen[label] += 1
        # the k-th of a class's n images is picked at time (k - 1/2) / n; the last image of each
        # class comes after all others
        turns.append((seen[label] == sizes[label], (seen[label] - 0.5) / sizes[label], order, at))
    return [at for *_, at in sorted(turns)[:count]]


def held_back_groups(labels: Shape, count: int, seed: int) -> set[int]:
    """Pick at most ``count`` images at random, all images of one label or none: a caption that was
    seen would be known.
    """
    groups: dict[int, list[int]] = {}
    for at, label in enumerate(labels):
        groups.setdefault(label, []).append(at)
    back: set[int] = set()
    for label in np.random.default_rng(seed).permutation(sorted(groups)).tolist():
        if len(back) + len(groups[label]) <= count:
            back.update(groups[label])
    return back
