"""A tiny pair with pictures, evaluated like those of the benchmarks, and records made of shares of
drawings."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.shifts import pictures
from benchmarks.shifts.evaluation import ByDrawing, Evaluation, contestants, evaluate_pair, packed
from benchmarks.shifts.experiment import TrainedPair
from tests.support.tiny_clip import CLASSES, save_pair

PLUGINS = Path(__file__).parents[2] / "benchmarks" / "plugins"
SIZE = 32
SMALL = Evaluation(alphas=(0.0, 0.5, 1.0), images=24)


@pytest.fixture(scope="session")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainedPair, Path]:
    """A pair merged by three recipes, and its JSON file; read only."""
    folder = tmp_path_factory.mktemp("evaluated")
    generator = torch.Generator().manual_seed(0)
    drawings = torch.randint(
        0, 256, (12, 4, 2 * SIZE, 2 * SIZE), generator=generator, dtype=torch.uint8
    )
    for seed, name in enumerate(("calibration", "test", "odd")):
        taken = pictures.Pictures(drawings, torch.arange(12) % 3, 2, seed, None, torch.arange(12))
        pictures.write_pictures(folder / name, CLASSES, taken)
    ends = save_pair(folder, change=1.0)
    pair = TrainedPair(
        "aggressive", 1, *ends, folder / "calibration", folder / "test", {"odd": folder / "odd"}
    )
    file = folder / "results" / "aggressive-1.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLIPMERGE_PLUGINS", str(PLUGINS))
        evaluate_pair(pair, contestants(only=("wise-ft", "lines", "monosoup")), file, SMALL)
    return pair, file


@pytest.fixture(autouse=True)
def _plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """The controls and baselines of the benchmarks are found."""
    monkeypatch.setenv("CLIPMERGE_PLUGINS", str(PLUGINS))


def record_of(
    correct: dict[str, Any], recipes: dict[str, int], *, curve: int = 3, **told: Any
) -> dict[str, Any]:
    things = {name: list(range(right.shape[1])) for name, right in correct.items()}

    def part(points: list[int]) -> dict[str, Any]:
        rows = {name: right[points].reshape(len(points), -1) for name, right in correct.items()}
        return {name: packed(ByDrawing(right, things[name])) for name, right in rows.items()}

    rows = [{"name": name, "correct": part([point])} for name, point in recipes.items()]
    oods = [name for name in correct if name != "test"]
    base = {
        "things": things,
        "regime": "mild",
        "seed": 1,
        "tuning": False,
        "id": ["test"],
        "ood": oods,
    }
    return {
        **base,
        "correct": part(list(range(curve))),
        "recipes": rows,
        "curve": [{}] * curve,
        **told,
    }


def bits(shares: list[float], drawings: int = 50, copies: int = 2) -> Any:
    """The first share of the drawings is recognised."""
    return np.array(
        [[[place < share * drawings] * copies for place in range(drawings)] for share in shares]
    )
