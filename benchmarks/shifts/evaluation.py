"""Every recipe on every pair by `clipmerge sweep`'s own machinery, one JSON file a pair."""

from __future__ import annotations

import base64
import json
import logging
import platform
import subprocess
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.shifts.experiment import TrainedPair
from clipmerge.data import load_images
from clipmerge.errors import RecipeError
from clipmerge.recipe import Recipe, load_recipe, recipe_names
from clipmerge.run import Calibration
from clipmerge.sweep import SweepRequest, sweep

_LOG = logging.getLogger("benchmarks")
CONTESTANTS = Path(__file__).with_name("contestants.yaml")
ALPHAS = tuple(round(0.1 * step, 1) for step in range(11))


def contestants(file: Path = CONTESTANTS, only: tuple[str, ...] = ()) -> tuple[Recipe, ...]:
    """Load the recipes to compare.

    Args:
        file: Name to a recipe and its ``--set`` assignments, as YAML.
        only: Names to take; empty for all.

    Raises:
        RecipeError: If a recipe does not exist or an option does not fit.
    """
    listed: dict[str, list[str]] = yaml.safe_load(file.read_text(encoding="utf-8"))
    unknown = [name for name in only if name not in listed]
    if unknown:
        raise RecipeError(f"{file.name} has no contestant '{unknown[0]}' (contestants: {', '.join(listed)})")
    absent = sorted({words[0] for words in listed.values()} - set(recipe_names()))
    if absent:
        raise RecipeError(f"{file.name}: no recipe '{absent[0]}' (recipes: {', '.join(recipe_names())})")
    return tuple(
        load_recipe(words[0], words[1:]).model_copy(update={"name": name})
        for name, words in listed.items()
        if not only or name in only
    )


@dataclass(frozen=True)
class Evaluation:
    """How every pair is evaluated.

    Attributes:
        alphas: Points of the curve.
        images: Calibration images.
        seed: Of the calibration sample, of what recipes learn and of random masks.
    """

    alphas: tuple[float, ...] = ALPHAS
    images: int = 1024
    seed: int = 0

    @property
    def told(self) -> dict[str, Any]:
        """As the file tells it; a file that tells something else is made anew."""
        return {"alphas": list(self.alphas), "calibration_images": self.images, "sweep_seed": self.seed}


def evaluate_pair(
    pair: TrainedPair,
    recipes: Sequence[Recipe],
    file: Path,
    how: Evaluation | None = None,
    *,
    again: Collection[str] = (),
) -> None:
    """Evaluate one pair into its JSON file: the curve once, and every recipe that the file has not with its settings.

    Args:
        pair: Checkpoints and pictures.
        recipes: What to put beside the curve.
        file: The JSON file, written anew after every recipe.
        how: What holds for every pair; by default the full size.
        again: Names of recipes to evaluate even so: the code behind one may change where its settings do not.
    """
    how = how or Evaluation()
    record = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if {key: record.get(key) for key in how.told} != how.told:
        record = _curve(pair, how)
        _write(record, file)
    had = {row["name"]: row["settings"] for row in record["recipes"]}
    missing = [each for each in recipes if each.name in again or had.get(each.name) != each.model_dump(mode="json")]
    for group in _by_measure(missing):
        begin = time.perf_counter()
        rows = _rows(pair, group, how)
        names = [row["name"] for row in rows]
        record["recipes"] = [row for row in record["recipes"] if row["name"] not in names] + rows
        _write(record, file)
        _LOG.info("%s: %s in %.0f s", file.stem, ", ".join(names), time.perf_counter() - begin)


def _by_measure(recipes: Iterable[Recipe]) -> list[list[Recipe]]:
    """Recipes that measure the same measure once, together."""
    groups: dict[str, list[Recipe]] = {}
    for recipe in recipes:
        groups.setdefault(json.dumps(recipe.measure, sort_keys=True), []).append(recipe)
    return list(groups.values())


def _request(pair: TrainedPair, how: Evaluation, recipes: Sequence[Recipe], alphas: tuple[float, ...]) -> SweepRequest:
    return SweepRequest(
        zeroshot=str(pair.zeroshot),
        finetuned=str(pair.finetuned),
        id_sources={"test": str(pair.test)},
        ood_sources={name: str(folder) for name, folder in pair.ood.items()},
        recipes=tuple(recipes),
        alphas=alphas,
        calibration=Calibration(source=str(pair.calibration), images=how.images, device="cpu"),
        seed=how.seed,
    )


def _swept(request: SweepRequest) -> tuple[dict[str, Any], dict[str, NDArray[np.bool_]]]:
    # over 17 patches the fused kernel's backward pass takes ten times as long as plain matrix products
    with sdpa_kernel(SDPBackend.MATH):
        return sweep(request)


def _curve(pair: TrainedPair, how: Evaluation) -> dict[str, Any]:
    request = _request(pair, how, (), how.alphas)
    record, correct = _swept(request)
    return {
        "regime": pair.regime,
        "seed": pair.seed,
        "tuning": pair.tuning,
        **how.told,
        **{key: record[key] for key in ("id", "ood", "images", "clipmerge")},
        "curve": record["curve"],
        "correct": {name: packed(*by_drawing(right, _source(request, name))) for name, right in correct.items()},
        "machine": machine(),
        "recipes": [],
    }


def _rows(pair: TrainedPair, recipes: Sequence[Recipe], how: Evaluation) -> list[dict[str, Any]]:
    """Evaluate recipes beside the shortest curve that a sweep takes; what it says against that curve is left out."""
    request = _request(pair, how, recipes, (0.0, 1.0))
    record, correct = _swept(request)
    rows = []
    for recipe, row in zip(recipes, record["recipes"], strict=True):
        alone = {name: right[[row["point"]]] for name, right in correct.items()}
        rows.append(
            {key: row[key] for key in ("name", "accuracy", "id", "ood", "verdict")}
            | {"settings": recipe.model_dump(mode="json"), "seconds": record["seconds"]["plan"]}
            | {"correct": {name: packed(*by_drawing(right, _source(request, name))) for name, right in alone.items()}}
        )
    return rows


def _write(record: dict[str, Any], file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    scratch = file.with_suffix(".part")
    scratch.write_text(json.dumps(record, allow_nan=False) + "\n", encoding="utf-8")
    scratch.rename(file)


def _source(request: SweepRequest, name: str) -> Path:
    return Path({**request.id_sources, **request.ood_sources}[name])


def by_drawing(right: NDArray[np.bool_], source: Path) -> tuple[NDArray[np.bool_], int]:
    """Sort images by the drawing that they show, so that drawings can be resampled.

    Args:
        right: Whether each image was recognised, shape (points, images), in the order of their paths.
        source: Folder of the images.

    Returns:
        The same, a drawing's copies side by side; and how many copies each has.
    """
    stems = [Path(path).stem for path in load_images(str(source)).paths]
    order = np.array(sorted(range(len(stems)), key=lambda place: stems[place]))
    return right[:, order], len(stems) // len({stem.partition("-")[0] for stem in stems})


def packed(right: NDArray[np.bool_], copies: int) -> dict[str, Any]:
    """Write whether each image was recognised, shape (points, drawings * copies), as `unpacked` reads it."""
    bits = base64.b64encode(np.packbits(right).tobytes()).decode()
    return {"shape": [right.shape[0], right.shape[1] // copies, copies], "bits": bits}


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
    cpu = next((line for line in _lines("lscpu") if line.startswith("Model name")), "").partition(":")[2].strip()
    libraries = {name: version(name) for name in ("torch", "transformers", "numpy")}
    return {"cpu": cpu or platform.processor(), "python": platform.python_version(), "threads": "1", **libraries}


def _lines(command: str) -> list[str]:
    try:
        return subprocess.run([command], capture_output=True, text=True, check=False).stdout.splitlines()
    except OSError:
        return []
