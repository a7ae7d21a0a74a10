"""Split the sampled images once, before anything is learned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np

from clipmerge.images.copies import Thumbnails
from clipmerge.images.image_set import ImageSource, balanced_sample, positions_by_class
from clipmerge.types import Names, Shape

#: Share of the sampled images that judge the result, and share of the rest that choose it.
SHARE = 0.2
#: At most so many images judge: more would cost time and hardly narrow the intervals.
MAX_TEST = 256

Images = TypeVar("Images", bound=ImageSource)


@dataclass(frozen=True)
class Split(Generic[Images]):
    """Images of one source by their use. No two are copies of one picture.

    Attributes:
        train: Images for learning or measuring; ``None`` if there are none.
        val: Images that choose among learned results; ``None`` if there are too few. If fewer than
            `MAX_TEST` images judge, these choose too, because a few dozen alone choose by luck.
        test: Images that judge the result, from which nothing is learned; ``None`` if there are too
            few or none are wanted.
        thumbnails: Thumbnails of all images of the split.
        copies: Number of copies that were left out.
        test_chooses: Whether some test images are among those that choose.
        ood: Splits of the images of shifts and other tasks, by name: half may teach, half judge.
    """

    train: Images | None
    val: Images | None
    test: Images | None
    thumbnails: Thumbnails[Images]
    copies: int
    test_chooses: bool = False
    ood: Mapping[str, Split[Any]] = field(default_factory=dict)

    @property
    def notes(self) -> Names:
        """Note that copies were left out: they would count twice, or both teach and judge."""
        if not self.copies:
            return ()
        kept = self.thumbnails.images
        are = f"{self.copies} of the {len(kept) + self.copies} sampled images"
        return (f"{kept.source}: {are} show what another one shows; of such copies one is used",)


def split_images(
    images: Images, count: int, seed: int, *, val: float = SHARE, test: float = SHARE
) -> Split[Images]:
    """Draw images, and divide them into images that teach, choose and judge.

    If there are enough images, ``count`` of them teach and choose, and the rest judge. If there are
    fewer, the shares divide them. Only one of several copies is used, so that no picture both
    teaches and judges.

    Args:
        images: The source.
        count: Number of images that teach or choose.
        seed: Seed of the sample and of the split.
        val: Share of these images that choose; 0 for a recipe that does not learn.
        test: Share of all images that judge; may be 0.
    """
    wanted = min(MAX_TEST, round(count * test / (1 - test)))
    drawn = images.sample(count + wanted, seed)
    thumbnails = Thumbnails.read(drawn).without_copies()
    sampled = thumbnails.images
    # round() would round halves to even; a fifth of three to seven images must be one
    aside = min(wanted, int(len(sampled) * test + 0.5))
    judge = _pick_for_one_use(sampled, images.labels, aside, seed)
    others = sorted(set(range(len(sampled))) - set(judge))
    labels = [sampled.labels[at] for at in others]
    choose = [others[at] for at in held_out_positions(labels, val, seed)]
    train = sorted(set(others) - set(choose))
    test_chooses = bool(choose) and 0 < len(judge) < MAX_TEST
    if test_chooses:
        choose = [*judge, *choose]
        # but a caption that chooses may also belong to an image that is learned from
        if images.labels_are_classes:
            judge = choose[:MAX_TEST]
    return Split(
        train=sampled.subset(train),
        val=sampled.subset(choose) if choose else None,
        test=sampled.subset(judge) if judge else None,
        thumbnails=thumbnails,
        copies=len(drawn) - len(sampled),
        test_chooses=test_chooses,
    )


def split_shift(drawn: Thumbnails[Images], seed: int, *, teaches: bool) -> Split[Images]:
    """Let half of each class teach and half judge; without ``teaches`` all images judge."""
    alone = drawn.without_copies()
    images = alone.images
    teach: list[int] = []
    if teaches:
        teach = _pick_for_one_use(images, images.labels, len(images) // 2, seed)
    judge = sorted(set(range(len(images))) - set(teach))
    return Split(
        train=images.subset(teach) if teach else None,
        val=None,
        test=images.subset(judge),
        thumbnails=alone,
        copies=len(drawn.images) - len(images),
    )


def held_out_positions(labels: Sequence[int], share: float, seed: int) -> list[int]:
    """Choose images to hold out, in equal numbers from each class where possible. Return their
    positions in ascending order.

    A class gives more than half of its images only after every class has given half, and its last
    image only after all others.

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


def _pick_for_one_use(images: ImageSource, available: Shape, count: int, seed: int) -> list[int]:
    """Pick the same share of every class, or all images of some captions. Return their positions
    in ascending order. ``available`` has the labels of the whole source.
    """
    if images.labels_are_classes:
        return _pick_same_share(available, images.labels, count, seed)
    return _pick_whole_groups(images.labels, count, seed)


def _pick_same_share(available: Shape, labels: Shape, count: int, seed: int) -> list[int]:
    """Pick the same share of every class of a sample. Return positions in ascending order.

    A class's only image in the source is never picked, so that it can teach. A class's only image
    in the sample is picked last.
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
    """Yield each position, its rank among the images of its class, from 1, and the size of the
    class.
    """
    sizes = Counter(labels)
    seen = Counter[int]()
    for at in order:
        label = labels[at]
        seen[label] += 1
        yield at, seen[label], sizes[label]


def _pick_whole_groups(labels: Shape, count: int, seed: int) -> list[int]:
    """Pick labels at random, with at most ``count`` images. Return positions in ascending order.

    All images of a label are picked or none, so that no caption is used for learning and judging.
    """
    groups = positions_by_class(labels, range(len(labels)))
    rng = np.random.default_rng(seed)
    picked: list[int] = []
    for at in rng.permutation(len(groups)):
        group = groups[at]
        if len(picked) + len(group) <= count:
            picked += group
    return sorted(picked)
