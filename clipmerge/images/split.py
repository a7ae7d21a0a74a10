"""One split of the sampled images, decided before anything is learned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np

from clipmerge.images.copies import without_copies
from clipmerge.images.image_set import ImageSource, balanced_sample, positions_by_class
from clipmerge.types import Names, Shape

#: Share of the sampled images that judge the result, and of the others that choose it.
SHARE = 0.2
#: Number of images that judge, at most: more would cost time and narrow the intervals very little.
MAX_TEST = 256

Images = TypeVar("Images", bound=ImageSource)


@dataclass(frozen=True)
class Split(Generic[Images]):
    """Images of one source by their use; none is a copy of another.

    Attributes:
        train: Images to learn from, or to measure on; ``None`` to do neither.
        val: Images that choose among what was learned; with fewer than `MAX_TEST` test images,
            these too, because a few dozen images choose by luck. ``None`` if there are too few.
        test: Images that judge the result, which nothing was learned from; ``None`` if there are
            too few, or none are wanted.
        copies: Number of copies left out.
        notes: Sentences for the user.
        ood: By name, the images of shifts or other tasks: half may teach, the others judge.
    """

    train: Images | None
    val: Images | None
    test: Images | None
    copies: int
    notes: Names
    ood: Mapping[str, Split[Any]] = field(default_factory=dict)


def split_images(
    images: Images, count: int, seed: int, *, val: float = SHARE, test: float = SHARE
) -> Split[Images]:
    """Sample images, and divide them for learning, choosing and judging.

    With enough images ``count`` of them are for learning and choosing, and those that judge are
    additional. With fewer, the available images are divided by the shares. Of images that are
    copies of one another, one is used, so that none is on two sides.

    Args:
        images: The source.
        count: Number of images for learning and choosing.
        seed: Of the sample and of the split.
        val: Share of the images for learning that choose; 0 for a recipe that does not learn.
        test: Share of all images that judge; 0 to judge by none.
    """
    wanted = min(MAX_TEST, round(count * test / (1 - test)))
    drawn = images.sample(count + wanted, seed)
    sampled, notes = without_copies(drawn)
    # halves are rounded up, unlike in round(): a fifth of three to seven images is always one
    aside = min(wanted, int(len(sampled) * test + 0.5))
    if images.labels_are_classes:
        judge = _pick_same_share(images.labels, sampled.labels, aside, seed)
    else:
        judge = _pick_whole_groups(sampled.labels, aside, seed)
    others = sorted(set(range(len(sampled))) - set(judge))
    labels = [sampled.labels[at] for at in others]
    choose = [others[at] for at in held_out_positions(labels, val, seed)]
    train = sorted(set(others) - set(choose))
    if choose and 0 < len(judge) < MAX_TEST:
        choose = [*judge, *choose]
        # captions that are held out may also belong to images that learning sees
        if images.labels_are_classes:
            judge = choose[:MAX_TEST]
    return Split(
        train=sampled.subset(train),
        val=sampled.subset(choose) if choose else None,
        test=sampled.subset(judge) if judge else None,
        copies=len(drawn) - len(sampled),
        notes=notes,
    )


def sample_for_judging(images: Images, count: int, seed: int) -> Split[Images]:
    """Sample images that judge a merge for which nothing is measured."""
    drawn = images.sample(count, seed)
    return split_shift(drawn, seed, teaches=False)


def split_shift(images: Images, seed: int, *, teaches: bool) -> Split[Images]:
    """Split images of a shift: all judge, or if they also teach, half of each class does."""
    alone, notes = without_copies(images)
    teach: list[int] = []
    if teaches:
        half = len(alone) // 2
        if images.labels_are_classes:
            teach = _pick_same_share(alone.labels, alone.labels, half, seed)
        else:
            teach = _pick_whole_groups(alone.labels, half, seed)
    judge = sorted(set(range(len(alone))) - set(teach))
    return Split(
        train=alone.subset(teach) if teach else None,
        val=None,
        test=alone.subset(judge),
        copies=len(images) - len(alone),
        notes=notes,
    )


def held_out_positions(labels: Sequence[int], share: float, seed: int) -> list[int]:
    """Choose images to hold out, ascending: equally many per class if possible, more than half of a
    class only after half of all, and its last one at the very last.

    Example:
        >>> labels = (0,) * 4 + (1,) * 4
        >>> [labels[position] for position in held_out_positions(labels, 0.25, seed=0)]
        [0, 1]
    """
    import torch

    if not share:
        return []
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator).tolist()
    ranks = {
        at: (place == size, 2 * place > size, place)
        for at, place, size in _places_in_class(order, labels)
    }
    count = max(1, round(share * len(labels)))
    count = min(count, len(labels) - 1)
    return sorted(sorted(order, key=ranks.__getitem__)[:count])


def _pick_same_share(available: Shape, labels: Shape, count: int, seed: int) -> list[int]:
    """Pick the same share of every class of a sample, ascending; classes of which the source has
    one image learn from it, and the only one of a class in the sample is picked last.
    """
    there = Counter(available)
    shared = [at for at, label in enumerate(labels) if there[label] > 1]
    shared_labels = tuple(labels[at] for at in shared)
    order = balanced_sample(shared_labels, len(shared), seed)
    # the k-th of a class's n images is picked at time (k - 1/2) / n; the last image of each class
    # comes after all others
    ranks = {
        at: (place == size, (place - 0.5) / size)
        for at, place, size in _places_in_class(order, shared_labels)
    }
    ranked = sorted(order, key=ranks.__getitem__)
    return sorted(shared[at] for at in ranked[:count])


def _places_in_class(order: Iterable[int], labels: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Each position in an order, which image of its class it is there, counted from 1, and how many
    the class has.
    """
    sizes = Counter(labels)
    seen = Counter[int]()
    for at in order:
        label = labels[at]
        seen[label] += 1
        yield at, seen[label], sizes[label]


def _pick_whole_groups(labels: Shape, count: int, seed: int) -> list[int]:
    """Pick at most ``count`` images at random, ascending, all of one label or none: a caption that
    was seen would be known.
    """
    groups = positions_by_class(labels, range(len(labels)))
    rng = np.random.default_rng(seed)
    picked: list[int] = []
    for at in rng.permutation(len(groups)):
        group = groups[at]
        if len(picked) + len(group) <= count:
            picked += group
    return sorted(picked)
