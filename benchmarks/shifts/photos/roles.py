"""Which pictures are for what: no picture, and no near-copy of one, is in two roles of a pair."""

from __future__ import annotations

import io
import random
import shutil
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.shifts.photos.collection import CIFAR10, PACS, Picture
from clipmerge.images.shard_texts import CLASS_NAMES, TEMPLATES

#: PACS's domains, each a target and a shift of the others.
PACS_DOMAINS = ("photo", "art", "sketch")
TARGETS = (*PACS_DOMAINS, "cifar10")
#: Shares of each class of a PACS domain: tested if it is the target; tested too where it is OOD;
#: and seen, without labels, by our own zero-shot models.
_TEST, _MIDDLE = 0.30, 0.35
_CALIBRATION, _CALIBRATION_SHARE = 700, 0.45
#: OOD test pictures of one domain.
_MOST = 1000
_CIFAR10_FINETUNING, _CIFAR10_TEST, _CIFAR10_UNLABELLED = 3000, 2000, 3000
#: What CIFAR-10 and PACS both name.
_SHARED = tuple(sorted({*CIFAR10} & {*PACS}))


@dataclass(frozen=True)
class Roles:
    """Positions of the pictures of one target and seed.

    Attributes:
        classes: The target's class names.
        finetuning: Pictures that the fine-tuned model sees.
        calibration: Pictures that recipes may use.
        test: ID test pictures, the same for every seed.
        ood: OOD test pictures by domain.
    """

    classes: tuple[str, ...]
    finetuning: list[int]
    calibration: list[int]
    test: list[int]
    ood: dict[str, list[int]]

    def tested_on(self, most: int) -> Roles:
        """The same with a sample of each source of test pictures."""
        return replace(
            self,
            test=sampled(self.test, most),
            ood={name: sampled(tested, most) for name, tested in self.ood.items()},
        )


class Dealer:
    """Deals out a collection.

    Attributes:
        pictures: The collection.
        groups: Group of near-copies of each picture; see `grouped`.
    """

    def __init__(self, pictures: Sequence[Picture], groups: Sequence[int]) -> None:
        self.pictures, self.groups = pictures, groups
        self._part: dict[int, str] = {}
        rng = random.Random(0)
        for domain in PACS_DOMAINS:
            for label in PACS:
                ours = sorted({groups[at] for at in self._of(domain, (label,))})
                rng.shuffle(ours)
                for place, group in enumerate(ours):
                    share = place / len(ours)
                    part = (
                        "test"
                        if share < _TEST
                        else "middle"
                        if share < _TEST + _MIDDLE
                        else "unlabelled"
                    )
                    self._part.setdefault(group, part)

    def unlabelled(self) -> list[int]:
        """Pictures that our own zero-shot models see without labels; of these only ImageNet's are
        tested too."""
        tested = {self.groups[at] for at in self._of("cifar10")}
        cifar10 = [at for at in self._of("cifar10-train") if self.groups[at] not in tested]
        random.Random(1).shuffle(cifar10)
        seen = [at for domain in PACS_DOMAINS for at in self._parts(domain, "unlabelled")]
        return [*self._of("imagenet"), *sorted(seen), *sorted(cifar10[:_CIFAR10_UNLABELLED])]

    def deal(self, target: str, seed: int) -> Roles:
        """Deal out one target; seeds differ in fine-tuning and calibration."""
        photos = target != "cifar10"
        test = self._parts(target, "test") if photos else self._of("cifar10")
        pool = (
            self._parts(target, "middle", "unlabelled")
            if photos
            else self._apart(self._of("cifar10-train"), test)
        )
        if not photos:
            random.Random(7).shuffle(test)
            test = sorted(test[:_CIFAR10_TEST])
        calibration, finetuning = self._split(pool, seed)
        if not photos:
            finetuning = finetuning[:_CIFAR10_FINETUNING]
        others = [domain for domain in PACS_DOMAINS if domain != target]
        shown = PACS
        if not photos:
            others, shown = ["photo", "art"], _SHARED
        ood = {domain: self._parts(domain, "middle", "test", labels=shown) for domain in others}
        ood |= {} if photos else {"imagenet": self._of("imagenet")}
        used = [*calibration, *finetuning, *test]
        unseen = {domain: sampled(self._apart(tested, used)) for domain, tested in ood.items()}
        return Roles(PACS if photos else CIFAR10, finetuning, calibration, test, unseen)

    def _split(self, pool: list[int], seed: int) -> tuple[list[int], list[int]]:
        """Calibration and fine-tuning pictures, in random order, near-copies together."""
        rng = random.Random(100 + seed)
        members: dict[int, list[int]] = {}
        for at in pool:
            members.setdefault(self.groups[at], []).append(at)
        order = sorted(members)
        rng.shuffle(order)
        wanted = min(_CALIBRATION, round(_CALIBRATION_SHARE * len(pool)))
        calibration: list[int] = []
        finetuning: list[int] = []
        for group in order:
            (calibration if len(calibration) < wanted else finetuning).extend(members[group])
        return calibration, finetuning

    def _of(self, domain: str, labels: Sequence[str] = ()) -> list[int]:
        return [
            at
            for at, picture in enumerate(self.pictures)
            if picture.domain == domain and (not labels or picture.label in labels)
        ]

    def _parts(self, domain: str, *parts: str, labels: Sequence[str] = PACS) -> list[int]:
        return [at for at in self._of(domain, labels) if self._part[self.groups[at]] in parts]

    def _apart(self, pictures: Sequence[int], others: Sequence[int]) -> list[int]:
        """Those without a near-copy among the others."""
        taken = {self.groups[at] for at in others}
        return [at for at in pictures if self.groups[at] not in taken]


def sampled(tested: Sequence[int], most: int = _MOST) -> list[int]:
    """At most so many of them, always the same."""
    return sorted(random.Random(3).sample(tested, min(most, len(tested))))


def write_role(
    folder: Path,
    pictures: Sequence[Picture],
    chosen: Sequence[int],
    classes: Sequence[str],
    template: str,
) -> None:
    """Write pictures as a WebDataset with its class names and its prompt template, completely or
    not at all."""
    if folder.is_dir():
        return
    scratch = folder.with_name(f".{folder.name}")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    number = {
        name: classes.index(name) for name in classes
    }  # of a name that occurs twice the first, as models predict
    with tarfile.open(scratch / "0.tar", "w") as archive:
        for at in chosen:
            add = _adder(archive, f"{at:05d}-0")
            add("jpg", pictures[at].data)
            add("cls", str(number[pictures[at].label]).encode())
    (scratch / CLASS_NAMES).write_text("\n".join(classes) + "\n", encoding="utf-8")
    (scratch / TEMPLATES).write_text(template.replace("{}", "{c}") + "\n", encoding="utf-8")
    scratch.rename(folder)


def _adder(archive: tarfile.TarFile, key: str) -> Callable[[str, bytes], None]:
    def add(ending: str, data: bytes) -> None:
        member = tarfile.TarInfo(f"{key}.{ending}")
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))

    return add
