"""Split the sampled images once, before anything is learned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import numpy as np

from clipmerge.images.copies import without_copies
from clipmerge.images.image_set import ImageSource, balanced_sample, positions_by_class
from clipmerge.types import Names, Shape

#: Share of the sampled images that judge the result, and share of the rest that choose it.
SHARE = 0.2
#: At most so many images judge: more would cost time and hardly narrow the intervals.
MAX_TEST = 256

Images = TypeVar("Images", bound=ImageSource)


@dataclass(frozen=True)
class Split(Generic[Images]):
    """Images of one source by use. No image is a copy of another.

    Attributes:
        train: Images to learn from or to measure on, if any.
        val: Images that choose among the learned results. They include the test images if those are
            fewer than `MAX_TEST`, because a few dozen images choose by luck. ``None`` if there are
            too few.
        test: Images that judge the result; nothing was learned from them. ``None`` if there are too
            few or none are wanted.
        available: Number of images of the source.
        copies: Number of copies that were left out.
        notes: Sentences for the user.
        ood: Splits of the images of shifts and other tasks, by name: half may teach, half judge.
    """

    train: Images | None
    val: Images | None
    test: Images | None
    available: int
    copies: int
    notes: Names
    ood: Mapping[str, Split[Any]] = field(default_factory=dict)

    @property
    def test_chooses(self) -> bool:
        """Whether some test images are among those that choose."""
        if self.val is None or self.test is None:
            return False
        return not set(self.val.pictures.items).isdisjoint(self.test.pictures.items)


def split_images(
    images: Images, count: int, seed: int, *, val: float = SHARE, test: float = SHARE
) -> Split[Images]:
    """Sample images and divide them into images that learn, choose and judge.

    If there are enough images, ``count`` of them learn and choose, and others judge. If there are
    fewer, they are divided by the shares. Only one of several copies is used, so that no picture is
    on two sides.

    Args:
        images: The source.
        count: Number of images for learning and choosing.
        seed: Seed of the sample and of the split.
        val: Share of the images for learning that choose instead; 0 for a recipe that does not
            learn.
        test: Share of all images that judge; may be 0.
    """
    wanted = min(MAX_TEST, round(count * test / (1 - test)))
    drawn = images.sample(count + wanted, seed)
    sampled, notes = without_copies(drawn)
    # round() would round halves to even; a fifth of three to seven images must be one
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
        # but a caption that chooses may also belong to an image that is learned from
        if images.labels_are_classes:
            judge = choose[:MAX_TEST]
    return Split(
        train=sampled.subset(train),
        val=sampled.subset(choose) if choose else None,
        test=sampled.subset(judge) if judge else None,
        available=len(images),
        copies=len(drawn) - len(sampled),
        notes=notes,
    )


def sample_for_judging(images: Images, count: int, seed: int) -> Split[Images]:
    """Sample images to judge a merge that measures nothing."""
    drawn = images.sample(count, seed)
    return replace(split_shift(drawn, seed, teaches=False), available=len(images))


def split_shift(images: Images, seed: int, *, teaches: bool) -> Split[Images]:
    """Split images of a shift. If ``teaches`` is set, half of each class teaches; all others
    judge.
    """
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
        available=len(images),
        copies=len(images) - len(alone),
        notes=notes,
    )


def held_out_positions(labels: Sequence[int], share: float, seed: int) -> list[int]:
    """Choose images to hold out, as many of each class as possible, and return ascending positions.

    More than half of a class is held out only after half of every class, and its last image after
    all others.

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
    """Pick the same share of every class of a sample, and return ascending positions.

    A class with one image in the source is never picked, so that it can be learned from. The only
    image of a class in the sample is picked last.
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
    """For each position: the position, its number among the images of its class, counted from 1,
    and the size of the class.
    """
    sizes = Counter(labels)
    seen = Counter[int]()
    for at in order:
        label = labels[at]
        seen[label] += 1
        yield at, seen[label], sizes[label]


def _pick_whole_groups(labels: Shape, count: int, seed: int) -> list[int]:
    """Pick at most ``count`` images at random, and return ascending positions.

    All images of a label are picked or none, because learning must not see a caption that judges.
    """
    groups = positions_by_class(labels, range(len(labels)))
    rng = np.random.default_rng(seed)
    picked: list[int] = []
    for at in rng.permutation(len(groups)):
        group = groups[at]
        if len(picked) + len(group) <= count:
            picked += group
    return sorted(picked)
