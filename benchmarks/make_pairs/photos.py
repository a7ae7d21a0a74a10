"""Real pictures: photographs, paintings and sketches of five things, and CIFAR-10."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from pathlib import Path

from benchmarks.make_pairs.backbone import (
    IMAGENET,
    TEMPLATE,
    classifier_of,
    features_of,
    teach_zeroshot,
)
from benchmarks.make_pairs.pair import Pair, Places, Roles, Spec, sampled, write_pair
from benchmarks.make_pairs.pictures import (
    Picture,
    alike_features,
    alike_pixels,
    by_group,
    grouped,
    read_tar,
    taken,
)
from benchmarks.models import Regime
from clipmerge.errors import DataError

_PACS = ("dog", "elephant", "guitar", "horse", "house")
_CIFAR10 = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
#: Tar file of each domain; PACS and CIFAR-10 hold CLASS/NAME.jpg, ImageNet one picture of each
#: class in class order.
_TARS = {
    "photo": "pacs-photo.tar",
    "art": "pacs-art.tar",
    "sketch": "pacs-sketch.tar",
    "imagenet": "imagenet-samples.tar",
    "cifar10-train": "cifar10-train.tar",
    "cifar10": "cifar10-test.tar",
}
_DOMAINS = ("photo", "art", "sketch")
REGIMES = {
    "aggressive": Regime(1e-3, 5),
    "mild": Regime(2e-4, 2),
    "both-towers": Regime(1e-3, 5, text=True),
}
#: CIFAR-10 has more pictures, so it sees each less often.
_CIFAR10_AGGRESSIVE = Regime(5e-4, 1.5)
#: Shares of each class of a PACS domain: tested if it is the target; tested too where it is OOD;
#: the rest is seen, without labels, by our own zero-shot models.
_TEST, _MIDDLE = 0.30, 0.35
_VAL, _VAL_SHARE = 700, 0.45
#: Test pictures of one source: at most so many are dealt, and so many of them are tested.
_MOST, _TESTED = 1000, 400
_CIFAR10_TRAIN, _CIFAR10_TEST, _CIFAR10_UNLABELLED = 3000, 2000, 3000
#: What CIFAR-10 and PACS both name.
_SHARED = ("dog", "horse")
# A pair of pictures is alike if its features are, or if its features and its pixels nearly are;
# CIFAR-10's are too small for features.
_ALIKE, _NEARLY_ALIKE, _ALIKE_CIFAR10 = 0.93, 0.90, 0.95


def _spec(regime: str, target: str, seed: int, *, tuned: bool = False) -> Spec:
    return Spec(f"{regime}-{target}-{seed}", target, "lite0", REGIMES[regime], seed, tuned)


_BOTH = ("aggressive", "mild")
#: Recipes were tuned on sketches and CIFAR-10 of seeds 0 and 1 with Lite0, on paintings of seed 0
#: and on mild sketches with Lite2; two more pairs were held out until a recipe gained nothing
#: there, or lost, and was changed; parts of `auto` were taken out on aggressive photographs.
PAIRS = (
    *(_spec(how, "art", seed, tuned=seed == 0) for seed in (0, 1, 2, 3) for how in _BOTH),
    _spec("both-towers", "art", 0),
    *(
        _spec(how, "photo", seed, tuned=how == "aggressive" and seed < 2)
        for seed in (0, 1, 2, 3)
        for how in _BOTH
    ),
    _spec("mild", "sketch", 2),
    Spec("aggressive-cifar10-2", "cifar10", "lite0", _CIFAR10_AGGRESSIVE, 2),
    Spec("lite2-aggressive-sketch-0", "sketch", "lite2", REGIMES["aggressive"]),
    Spec("lite2-aggressive-art-0", "art", "lite2", REGIMES["aggressive"], tuned=True),
    Spec("lite2-mild-art-0", "art", "lite2", REGIMES["mild"], tuned=True),
    Spec("lite2-aggressive-cifar10-0", "cifar10", "lite2", _CIFAR10_AGGRESSIVE),
)


def make_pair(spec: Spec, places: Places) -> Pair:
    """Make one pair, each part once."""
    pictures = load_pictures(places)
    dealer = Dealer(pictures, _groups(pictures, places.cache))
    zeroshot = places.zeroshots.get(spec.model, places.cache / f"zeroshot-{spec.model}")
    seen = [pictures[at] for at in dealer.unlabelled()]
    if not zeroshot.is_dir():
        features = features_of(classifier_of(spec.model), seen)
        teach_zeroshot(spec.model, features, zeroshot)
    roles = dealer.deal(spec.target, spec.seed).tested_on(_TESTED)
    return write_pair(spec, places.cache, zeroshot, TEMPLATE, pictures, roles)


def load_pictures(places: Places) -> list[Picture]:
    """Read every picture; the order, and so the position of a picture, depends on the files
    alone."""
    found: list[Picture] = []
    for domain, name in _TARS.items():
        file = (places.pictures or Path()) / name
        if not file.is_file():
            raise DataError(f"{file}: not found; benchmarks/README.md says what --pictures holds")
        read = read_tar(file)
        labels = [name.partition("/")[0] for name, _ in read]
        if domain == "imagenet":
            labels = list(IMAGENET)
        found += [
            Picture(domain, label, data) for label, (_, data) in zip(labels, read, strict=True)
        ]
    return found


def _groups(pictures: Sequence[Picture], cache: Path) -> list[int]:
    """Groups of near-copies, looked for once."""
    data = b"".join(each.data for each in pictures)
    digest = hashlib.sha256(data).hexdigest()[:8]
    file = cache / f"groups-{digest}.json"
    if not file.is_file():
        alike = _alike_pairs(pictures)
        cache.mkdir(parents=True, exist_ok=True)
        text = json.dumps(grouped(len(pictures), alike))
        file.write_text(text, encoding="utf-8")
    return json.loads(file.read_text(encoding="utf-8"))


def _alike_pairs(pictures: Sequence[Picture]) -> list[tuple[int, int]]:
    """Positions of near-copies, two by two."""
    small = []
    large = []
    for at, each in enumerate(pictures):
        (small if each.domain.startswith("cifar10") else large).append(at)
    of_large = [pictures[at] for at in large]
    features = alike_features(features_of(classifier_of("lite0"), of_large), _NEARLY_ALIKE)
    pixels = alike_pixels(of_large, _NEARLY_ALIKE)
    found = []
    for (one, other), cosine in features.items():
        if cosine > _ALIKE or (one, other) in pixels:
            found.append((large[one], large[other]))
    of_small = [pictures[at] for at in small]
    for one, other in alike_pixels(of_small, _ALIKE_CIFAR10):
        found.append((small[one], small[other]))
    return found


class Dealer:
    """Deals out a collection.

    Attributes:
        pictures: The collection.
        groups: Group of near-copies of each picture.
    """

    def __init__(self, pictures: Sequence[Picture], groups: Sequence[int]) -> None:
        self.pictures, self.groups = pictures, groups
        self._part: dict[int, str] = {}
        rng = random.Random(0)
        for domain in _DOMAINS:
            for label in _PACS:
                ours = sorted({groups[at] for at in self._of(domain, (label,))})
                rng.shuffle(ours)
                for place, group in enumerate(ours):
                    share = place / len(ours)
                    part = "test" if share < _TEST else "middle"
                    if share >= _TEST + _MIDDLE:
                        part = "unlabelled"
                    self._part.setdefault(group, part)

    def unlabelled(self) -> list[int]:
        """Pictures that our own zero-shot models see without labels; of these only ImageNet's are
        tested too."""
        tested = self._of("cifar10")
        cifar10 = self._apart(self._of("cifar10-train"), tested)
        random.Random(1).shuffle(cifar10)
        seen = [at for domain in _DOMAINS for at in self._parts(domain, "unlabelled")]
        return [*self._of("imagenet"), *sorted(seen), *sorted(cifar10[:_CIFAR10_UNLABELLED])]

    def deal(self, target: str, seed: int) -> Roles:
        """Deal out one target; seeds differ in train and val."""
        if target == "cifar10":
            classes, others = _CIFAR10, {"photo": _SHARED, "art": _SHARED}
            test = self._of("cifar10")
            pool = self._apart(self._of("cifar10-train"), test)
            random.Random(7).shuffle(test)
            test = sorted(test[:_CIFAR10_TEST])
        else:
            classes, others = _PACS, {name: _PACS for name in _DOMAINS if name != target}
            test = self._parts(target, "test")
            pool = self._parts(target, "middle", "unlabelled")
        val, train = self._split(pool, seed)
        shifts = {}
        for name, shown in others.items():
            shifts[name] = self._parts(name, "middle", "test", labels=shown)
        if target == "cifar10":
            train = train[:_CIFAR10_TRAIN]
        positions = {"train": train, "val": val, "test": test}
        used = [*val, *train, *test]
        for name, tested in shifts.items():
            positions[f"ood-{name}"] = sampled(self._apart(tested, used), _MOST)
        return Roles(classes, positions, groups=self.groups)

    def _split(self, pool: list[int], seed: int) -> tuple[list[int], list[int]]:
        """Val and train, in random order, near-copies together."""
        rng = random.Random(100 + seed)
        members = by_group(pool, self.groups)
        order = sorted(members)
        rng.shuffle(order)
        order.reverse()
        val = taken(members, order, min(_VAL, round(_VAL_SHARE * len(pool))))
        train = [at for group in reversed(order) for at in members[group]]
        return val, train

    def _of(self, domain: str, labels: Sequence[str] = ()) -> list[int]:
        return [
            at
            for at, picture in enumerate(self.pictures)
            if picture.domain == domain and (not labels or picture.label in labels)
        ]

    def _parts(self, domain: str, *parts: str, labels: Sequence[str] = _PACS) -> list[int]:
        return [at for at in self._of(domain, labels) if self._part[self.groups[at]] in parts]

    def _apart(self, pictures: Sequence[int], others: Sequence[int]) -> list[int]:
        """Those without a near-copy among the others."""
        taken = {self.groups[at] for at in others}
        return [at for at in pictures if self.groups[at] not in taken]
