"""Split the sampled images once, before anything is learned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from clipmerge.images.copies import Thumbnails
from clipmerge.images.image_set import (
    CaptionedImages,
    Images,
    balanced_sample,
    positions_by_class,
)
from clipmerge.types import Names, Shape

#: Share of the sampled images that judge the result, and share of the rest that choose it.
SHARE = 0.2
#: Largest number of images that judge. More would cost time and hardly narrow the intervals.
MAX_TEST = 256


@dataclass(frozen=True)
class Split:
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
    thumbnails: Thumbnails
    copies: int
    test_chooses: bool = False
    ood: Mapping[str, Split] = field(default_factory=dict)

    @property
    def notes(self) -> Names:
        """A note if copies were left out, which would count twice, or both teach and judge."""
        if not self.copies:
            return ()
        kept = self.thumbnails.images
        sampled = len(kept) + self.copies
        are = f"{self.copies} of the {sampled} sampled images are copies of others"
        return (f"{kept.source}: {are}, and are left out",)


def split_images(
    images: Images, count: int, seed: int, *, val: float = SHARE, test: float = SHARE
) -> Split:
    """Draw images, and divide them into images that teach, choose and judge.

    If there are enough images, ``count`` of them teach and choose, and the rest judge. If there are
    fewer, the shares divide them. Of several copies, only the first is used. So no picture both
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
        if not isinstance(images, CaptionedImages):
            judge = choose[:MAX_TEST]
    return Split(
        train=sampled.subset(train),
        val=sampled.subset(choose) if choose else None,
        test=sampled.subset(judge) if judge else None,
        thumbnails=thumbnails,
        copies=len(drawn) - len(sampled),
        test_chooses=test_chooses,
    )


def split_shift(drawn: Thumbnails, seed: int, *, teaches: bool) -> Split:
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
    count = max(1, round(share * len(labels)))
    count = min(count, len(labels) - 1)
    return _pick_first(
        order, labels, count, lambda place, size: (place == size, 2 * place > size, place)
    )


def _pick_for_one_use(images: Images, available: Shape, count: int, seed: int) -> list[int]:
    """Pick images of a sample, and return their positions in ascending order.

    With classes, the same share of every class is picked. A class's only image in the source is
    never picked, so that it can teach. A class's only image in the sample is picked last.

    With captions, all images of a caption are picked or none, so that no caption is used for
    learning and judging.

    Args:
        images: The sample.
        available: Labels of all images of the source.
        count: Number of images to pick, at most.
        seed: Seed of the order.
    """
    if isinstance(images, CaptionedImages):
        return _pick_whole_groups(images.labels, count, seed)
    there = Counter(available)
    shared = [at for at, label in enumerate(images.labels) if there[label] > 1]
    labels = tuple(images.labels[at] for at in shared)
    order = balanced_sample(labels, len(shared), seed)
    # the k-th of a class's n images comes at time (k - 1/2) / n
    picked = _pick_first(
        order, labels, count, lambda place, size: (place == size, (place - 0.5) / size)
    )
    return [shared[at] for at in picked]


def _pick_first(
    order: Sequence[int],
    labels: Sequence[int],
    count: int,
    rank: Callable[[int, int], tuple[float, ...]],
) -> list[int]:
    """Pick the ``count`` images of lowest rank, and return their positions in ascending order.

    An image's rank depends on its place in its class, from 1 in the given order, and on the size of
    the class.
    """
    sizes = Counter(labels)
    seen = Counter[int]()
    ranks: dict[int, tuple[float, ...]] = {}
    for at in order:
        label = labels[at]
        seen[label] += 1
        ranks[at] = rank(seen[label], sizes[label])
    return sorted(sorted(order, key=ranks.__getitem__)[:count])


def _pick_whole_groups(labels: Shape, count: int, seed: int) -> list[int]:
    """Pick labels at random, with at most ``count`` images. Return the images' positions in
    ascending order.
    """
    groups = positions_by_class(labels, range(len(labels)))
    rng = np.random.default_rng(seed)
    picked: list[int] = []
    for at in rng.permutation(len(groups)):
        group = groups[at]
        if len(picked) + len(group) <= count:
            picked += group
    return sorted(picked)
