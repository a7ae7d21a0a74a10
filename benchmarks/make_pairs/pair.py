"""One pair of models with its pictures, and how it is written."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path

from PIL import Image

from benchmarks.make_pairs.pictures import Picture, Source, read_source, write_source
from benchmarks.models import Regime, finetune, load

_SEEN = ("train", "val")
_CAPTIONS = (
    "a photo of a {}",
    "a picture of the {}",
    "this is a {}",
    "one {}, seen from near",
    "a {} in its place",
)


@dataclass(frozen=True)
class Spec:
    """What a pair is, before it is made.

    Attributes:
        name: Name in the results.
        target: What it was fine-tuned on; pairs of one target share test pictures.
        model: Name of its zero-shot model.
        regime: How it was fine-tuned.
        seed: Seed of fine-tuning, and of its split from the validation pictures.
        tuned: Whether recipes were tuned on it.
    """

    name: str
    target: str
    model: str
    regime: Regime
    seed: int = 0
    tuned: bool = False


@dataclass(frozen=True)
class Places:
    """Where things come from and are kept.

    Attributes:
        cache: Folder of what is made here.
        pictures: Folder of the tar files of real pictures.
        clones: Folder of the clones of public repositories.
        zeroshots: Ready zero-shot models by name.
    """

    cache: Path
    pictures: Path | None = None
    clones: Path | None = None
    zeroshots: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class Roles:
    """Pictures of one target, by what they are for; no near-copy of a picture is in two roles.

    Attributes:
        classes: The target's class names.
        positions: Positions of the pictures by name of the source: ``train`` are those that the
            fine-tuned model sees, ``val`` those that recipes may use; ``test``, of the target, and
            ``ood-NAME``, of each shift, and ``task-NAME``, of other tasks, only the judge uses;
            ``labels-NAME`` are other pictures of a shift, which recipes may use, too.
        other_classes: Class names of a source that has others.
        group: Group of near-copies of each position; by default each is its own.
    """

    classes: tuple[str, ...]
    positions: dict[str, list[int]]
    other_classes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    group: Sequence[int] = ()

    def tested_on(self, most: int) -> Roles:
        """The same with a sample of each source of test pictures."""
        fewer = {}
        for name, chosen in self.positions.items():
            fewer[name] = chosen if name in _SEEN else sampled(chosen, most)
        return replace(self, positions=fewer)


def sampled(chosen: Sequence[int], most: int) -> list[int]:
    """At most so many of them, always the same."""
    count = min(most, len(chosen))
    return sorted(random.Random(3).sample(list(chosen), count))


@dataclass(frozen=True)
class Pair:
    """A pair that was made.

    Attributes:
        spec: What it is.
        folder: Folder of its pictures and its fine-tuned model.
        zeroshot: Folder of the zero-shot model.
        template: Template of the class prompts.
    """

    spec: Spec
    folder: Path
    zeroshot: Path
    template: str

    @property
    def finetuned(self) -> Path:
        return self.folder / "finetuned"

    @property
    def ood(self) -> list[str]:
        """Names of the shifts."""
        return sorted(file.stem.removeprefix("ood-") for file in self.folder.glob("ood-*.parquet"))

    def file(self, source: str) -> Path:
        """File of the source ``train``, ``val``, ``test`` or ``ood-NAME``."""
        return self.folder / f"{source}.parquet"

    def source(self, name: str) -> Source:
        return read_source(self.file(name))

    def tested(self) -> dict[str, Source]:
        """What the judge tests on: ``test``, the shifts by name, other tasks as ``task-NAME``."""
        found = {"test": self.source("test")}
        for name in self.ood:
            found[name] = self.source(f"ood-{name}")
        for file in sorted(self.folder.glob("task-*.parquet")):
            found[file.stem] = read_source(file)
        return found

    @property
    def best_labelled(self) -> str:
        """The shift with the most labelled pictures that are not tested."""
        return max(self.ood, key=lambda shift: len(self.source(f"labels-{shift}").labels))

    def labelled(self, source: str, count: int, seed: int, captions: bool = False) -> Path:
        """A folder with labelled pictures of a source that merging may use.

        With ``captions``, it has no classes, but each picture has a sentence that names its class.
        """
        folder = self.folder / f"{source}-{count}-{seed}{'-captions' * captions}"
        if not folder.is_dir():
            scratch = folder.with_suffix(".part")
            counts = Counter[str]()
            for number, (label, image) in enumerate(self.drawn(source, count, seed)):
                file = scratch / ("" if captions else label) / f"{number:04}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                image.save(file)
                if captions:
                    # a class gets each wording in turn, so that none of them tells the class
                    caption = _CAPTIONS[counts[label] % len(_CAPTIONS)].format(label)
                    counts[label] += 1
                    file.with_suffix(".txt").write_text(caption + "\n", encoding="utf-8")
            scratch.rename(folder)
        return folder

    def drawn(self, name: str, count: int, seed: int) -> list[tuple[str, Image.Image]]:
        """Class and picture of a draw of a source's pictures: one of each class in turn."""
        source = self.source(name)
        of_class: dict[int, list[int]] = {}
        for at, label in enumerate(source.labels.tolist()):
            of_class.setdefault(label, []).append(at)
        rng = random.Random(seed + 17)
        for ours in of_class.values():
            rng.shuffle(ours)
        rounds = zip_longest(*of_class.values())
        order = [at for each in rounds for at in each if at is not None]
        return [(source.classes[source.labels[at]], source.images[at]) for at in order[:count]]


def write_pair(
    spec: Spec,
    cache: Path,
    zeroshot: Path,
    template: str,
    pictures: Sequence[Picture],
    roles: Roles,
) -> Pair:
    """Write the pictures of a pair and fine-tune its model, unless that was done."""
    pair = Pair(spec, cache / spec.name, zeroshot, template)
    group = roles.group or range(len(pictures))
    for name, chosen in roles.positions.items():
        if not pair.file(name).is_file():
            # pictures are resampled by themselves, near-copies are split by their group
            things = [group[at] if name in _SEEN else at for at in chosen]
            classes = roles.other_classes.get(name, roles.classes)
            write_source(pair.file(name), [pictures[at] for at in chosen], things, classes)
    finetune(zeroshot, spec.regime, spec.seed, pair.source("train"), template, pair.finetuned)
    return pair


def resized(folder: Path, size: int, into: Path) -> Path:
    """The same OpenCLIP model for pictures of another size, which a convolutional tower takes."""
    if not into.is_dir():
        model = load(folder)
        model.write(into)
        file = into / "open_clip_config.json"
        config = json.loads(file.read_text(encoding="utf-8"))
        config["model_cfg"]["vision_cfg"]["image_size"] = size
        text = json.dumps(config, indent=1) + "\n"
        file.write_text(text, encoding="utf-8")
    return into
