"""Evaluate every recipe on every pair with the code of `clipmerge sweep`; one JSON file per
pair."""

from __future__ import annotations

import base64
import json
import logging
import platform
import re
import subprocess
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.shifts.experiment import TrainedPair
from clipmerge.api.sweep import run_sweep
from clipmerge.errors import RecipeError
from clipmerge.files.paths import recipe_files
from clipmerge.images.dataset import open_images
from clipmerge.planning.recipe import Recipe, load_recipe
from clipmerge.request import Calibration, SweepRequest

_LOG = logging.getLogger("benchmarks")
CONTESTANTS = Path(__file__).with_name("contestants.yaml")
ALPHAS = tuple(round(0.1 * step, 1) for step in range(11))


@dataclass(frozen=True)
class Contestant:
    """A recipe with which pairs are merged.

    Attributes:
        recipe: The recipe, with its name in the results.
        pairs: Patterns for the names of the pairs that are merged with it.
        group: Its group in `contestants.yaml`.
        images: Number of calibration images, if it differs from the others'.
    """

    recipe: Recipe
    pairs: tuple[str, ...] = ("*",)
    group: str = ""
    images: int | None = None

    @property
    def name(self) -> str:
        """Name in the results."""
        return self.recipe.name

    def is_for(self, pair: str) -> bool:
        """Whether a pair of this name is merged with it."""
        return any(fnmatch(pair, pattern) for pattern in self.pairs)

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that determines its effect on a pair."""
        return self.recipe.model_dump(mode="json") | (
            {"images": self.images} if self.images else {}
        )


@cache  # a page asks for them at every table
def contestants(file: Path = CONTESTANTS, only: tuple[str, ...] = ()) -> tuple[Contestant, ...]:
    """Load the recipes to compare."""
    groups: dict[str, dict[str, Any]] = yaml.safe_load(file.read_text(encoding="utf-8"))
    listed = {name: words for group in groups.values() for name, words in group["recipes"].items()}
    unknown = [name for name in only if name not in listed]
    if unknown:
        raise RecipeError(
            f"{file.name} has no contestant '{unknown[0]}' (contestants: {', '.join(listed)})"
        )
    absent = sorted({words[0] for words in listed.values()} - set(recipe_files()))
    if absent:
        raise RecipeError(
            f"{file.name}: no recipe '{absent[0]}' (recipes: {', '.join(recipe_files())})"
        )
    return tuple(
        _contestant(name, words, tuple(group["pairs"]), title)
        for title, group in groups.items()
        for name, words in group["recipes"].items()
        if not only or name in only
    )


def _contestant(name: str, words: list[str], pairs: tuple[str, ...], group: str) -> Contestant:
    images = [int(word.removeprefix("images=")) for word in words if word.startswith("images=")]
    assignments = [word for word in words[1:] if not word.startswith("images=")]
    recipe = load_recipe(words[0], assignments).model_copy(update={"name": name})
    return Contestant(recipe, pairs, group, images[0] if images else None)


@dataclass(frozen=True)
class Evaluation:
    """How every pair is evaluated.

    Attributes:
        alphas: Points of the curve.
        images: Calibration images.
        seed: Seed of the calibration sample, of learning and of random masks.
        labels: Whether the calibration images have labels; only a judge that merges can do without.
    """

    alphas: tuple[float, ...] = ALPHAS
    images: int = 1024
    seed: int = 0
    labels: bool = True

    def file_in(self, folder: Path, pair: str) -> Path:
        """The JSON file of a pair that is merged on a given number of images."""
        return folder / f"{pair}-{self.images}{'' if self.labels else '-no-labels'}.json"

    @property
    def told(self) -> dict[str, Any]:
        """The settings as written in the file; a file with different settings is made again."""
        return {
            "alphas": list(self.alphas),
            "calibration_images": self.images,
            "sweep_seed": self.seed,
        }


def evaluate_pair(
    pair: TrainedPair,
    entered: Sequence[Contestant],
    file: Path,
    how: Evaluation | None = None,
    *,
    again: Collection[str] = (),
    judge: Callable[[TrainedPair, Contestant, Evaluation], dict[str, Any]] | None = None,
) -> None:
    """Evaluate one pair into its JSON file: the curve once, and every recipe that the file lacks in
    these settings.

    ``judge`` makes the row of one recipe; by default recipes of one measure are swept together.
    """
    how = how or Evaluation()
    record = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    told = how.told | {"made_of": pair.made_of}
    if {key: record.get(key) for key in told} != told:
        record = _curve_record(pair, how)
        _write(record, file)
    had = {row["name"]: row["settings"] for row in record["recipes"]}
    ours = [each for each in entered if each.is_for(pair.name)]
    missing = [each for each in ours if each.name in again or had.get(each.name) != each.settings]
    for group in [[each] for each in missing] if judge else _by_measure(missing):
        begin = time.perf_counter()
        in_these = replace(how, images=group[0].images or how.images)
        rows = [judge(pair, group[0], in_these)] if judge else _rows(pair, group, in_these)
        names = [row["name"] for row in rows]
        record["recipes"] = [row for row in record["recipes"] if row["name"] not in names] + rows
        _write(record, file)
        _LOG.info("%s: %s in %.0f s", file.stem, ", ".join(names), time.perf_counter() - begin)


def _by_measure(entered: Iterable[Contestant]) -> list[list[Contestant]]:
    """Group recipes that measure the same on the same images."""
    groups: dict[str, list[Contestant]] = {}
    for each in entered:
        groups.setdefault(
            json.dumps([each.recipe.measure, each.images], sort_keys=True), []
        ).append(each)
    return list(groups.values())


def request_of(
    pair: TrainedPair, how: Evaluation, recipes: Sequence[Recipe], alphas: tuple[float, ...]
) -> SweepRequest:
    """A sweep over a pair's test pictures; recipes decide on all calibration images."""
    return SweepRequest(
        zeroshot=str(pair.zeroshot),
        finetuned=(str(pair.finetuned),),
        id_sources={"test": str(pair.test)},
        ood_sources={name: str(folder) for name, folder in pair.ood.items()},
        recipes=tuple(recipes),
        alphas=alphas,
        calibration=Calibration(
            source=str(pair.calibration), images=how.images, device="cpu", held_back=0.0
        ),
        seed=how.seed,
    )


def swept(request: SweepRequest) -> tuple[dict[str, Any], dict[str, NDArray[np.bool_]]]:
    """Run a sweep on one pair."""
    # over 17 patches the fused kernel's backward pass takes ten times as long as plain matrix
    # products
    with sdpa_kernel(SDPBackend.MATH):
        return run_sweep(request)


def _curve_record(pair: TrainedPair, how: Evaluation) -> dict[str, Any]:
    """A pair's record with the curve and without recipes."""
    request = request_of(pair, how, (), how.alphas)
    record, correct = swept(request)
    sorted_ = {name: by_drawing(right, _source(request, name)) for name, right in correct.items()}
    return {
        "regime": pair.regime,
        "seed": pair.seed,
        **({"target": pair.target, "all_things": pair.things} if pair.target else {}),
        "tuning": pair.tuning,
        **how.told,
        "made_of": pair.made_of,
        **{key: record[key] for key in ("id", "ood", "images", "clipmerge")},
        "curve": record["curve"],
        "things": {name: each.things for name, each in sorted_.items()},
        "correct": {name: packed(each) for name, each in sorted_.items()},
        "machine": machine(),
        "recipes": [],
    }


def row_of(
    contestant: Contestant,
    row: dict[str, Any],
    right: Mapping[str, NDArray[np.bool_]],
    request: SweepRequest,
) -> dict[str, Any]:
    """What a record says of any contestant: its accuracies, and which pictures it recognised.

    Args:
        contestant: The contestant.
        row: The sweep's row.
        right: By source, whether each image was recognised, shape (1, images).
        request: The sweep.
    """
    shown = {key: row[key] for key in ("accuracy", "id", "ood")}
    bits = {name: packed(by_drawing(each, _source(request, name))) for name, each in right.items()}
    return {"name": contestant.name, **shown, "settings": contestant.settings, "correct": bits}


def _rows(
    pair: TrainedPair, entered: Sequence[Contestant], how: Evaluation
) -> list[dict[str, Any]]:
    """Evaluate recipes with the shortest curve that a sweep accepts; comparisons with that curve
    are left out."""
    request = request_of(pair, how, [each.recipe for each in entered], (0.0, 1.0))
    record, correct = swept(request)
    rows = []
    for each, row in zip(entered, record["recipes"], strict=True):
        alone = {name: right[[row["point"]]] for name, right in correct.items()}
        # a verdict may name models, and their local paths must not be published
        verdict = row["decision"]["text"].replace(f"{pair.finetuned.parent}/", "")
        rows.append(
            row_of(each, row, alone, request)
            | {"verdict": verdict, "seconds": record["seconds"]["plan"]}
        )
    return rows


def _write(record: dict[str, Any], file: Path) -> None:
    """Write a pair's JSON file, completely or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    scratch = file.with_suffix(".part")
    scratch.write_text(json.dumps(record, allow_nan=False) + "\n", encoding="utf-8")
    scratch.rename(file)


def _source(request: SweepRequest, name: str) -> Path:
    return Path({**request.id_sources, **request.ood_sources}[name])


@dataclass(frozen=True)
class ByDrawing:
    """Whether each picture was recognised, with the copies of a drawing next to each other.

    Attributes:
        right: Shape (points, drawings * copies).
        things: Index of the thing that each drawing shows, in the order of the drawings.
    """

    right: NDArray[np.bool_]
    things: list[int]


def by_drawing(right: NDArray[Any], source: Path) -> ByDrawing:
    """Sort images by the thing that they show, so that things can be resampled.

    Args:
        right: Whether each image was recognised, shape (points, images), in the order of their
            paths; of images with one caption each, the mean of finding and being found, which
            become two answers.
        source: Folder of the images.
    """
    images = open_images(str(source))
    numbers = [_thing_and_copy(images.store.name(place)) for place in range(len(images))]
    order = np.array(sorted(range(len(numbers)), key=numbers.__getitem__))
    sorted_ = right[:, order]
    if sorted_.dtype != np.bool_:
        sorted_ = np.stack([sorted_ > 0, sorted_ == 1], axis=2).reshape(len(right), -1)
    return ByDrawing(sorted_, sorted({thing for thing, _ in numbers}))


def _thing_and_copy(name: str) -> tuple[int, int]:
    """Numbers of the thing and of its picture, with which the name of a picture's file ends."""
    thing, copy = name.rpartition(".")[0].rsplit("-", 1)
    return int(re.split(r"\D", thing)[-1]), int(copy)


def packed(drawings: ByDrawing) -> dict[str, Any]:
    """Write whether each image was recognised, as `unpacked` reads it."""
    points, pictures = drawings.right.shape
    count = len(drawings.things)
    bits = base64.b64encode(np.packbits(drawings.right).tobytes()).decode()
    return {"shape": [points, count, pictures // count], "bits": bits}


def unpacked(told: dict[str, Any]) -> NDArray[np.bool_]:
    """Read whether each image was recognised.

    Args:
        told: Shape and bits of one source.

    Returns:
        Shape (points, drawings, copies).
    """
    shape = told["shape"]
    bits = np.frombuffer(base64.b64decode(told["bits"]), dtype=np.uint8)
    return np.unpackbits(bits, count=int(np.prod(shape))).astype(np.bool_).reshape(shape)


def machine() -> dict[str, str]:
    """Describe what this runs on."""
    cpu = (
        next((line for line in _lines("lscpu") if line.startswith("Model name")), "")
        .partition(":")[2]
        .strip()
    )
    libraries = {name: version(name) for name in ("torch", "transformers", "numpy")}
    return {
        "cpu": cpu or platform.processor(),
        "python": platform.python_version(),
        "threads": "1",
        **libraries,
    }


def _lines(command: str) -> list[str]:
    try:
        return subprocess.run(
            [command], capture_output=True, text=True, check=False
        ).stdout.splitlines()
    except OSError:
        return []
