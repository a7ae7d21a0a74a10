"""Figures of results, against values worked out by hand, and roles of pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import tables
from benchmarks.make_pairs import natural
from benchmarks.make_pairs.pictures import Picture
from benchmarks.pair_results import Results, packed
from benchmarks.statistics import (
    Accuracies,
    accuracies,
    chosen_alpha,
    curve_of,
    gain,
    over_targets,
)


def _accuracies(*points: tuple[float, float]) -> Accuracies:
    return Accuracies(*(np.array([side]) for side in zip(*points, strict=True)))


_CURVE = _accuracies((0.2, 0.70), (0.6, 0.80), (0.8, 0.50))


@pytest.mark.parametrize(
    ("point", "above"),
    [
        ((0.9, 0.81), 0.31),
        ((0.9, 0.60), 0.10),
        ((0.6, 0.80), 0.00),
        ((0.5, 0.79), -0.01),  # more accurate alphas count too
        ((0.7, 0.70), 0.05),
        ((0.1, 0.90), 0.10),
    ],
)
def test_gain(point: tuple[float, float], above: float) -> None:
    assert gain(_accuracies(point), _CURVE)[0] == pytest.approx(above)


def test_targets_count_once_and_are_resampled() -> None:
    def same(value: float) -> np.ndarray:
        return np.full(101, value)

    pairs = [("a", same(0.1)), ("a", same(0.1)), ("a", same(0.1)), ("b", same(0.3))]
    found = over_targets(pairs)
    assert found.value == pytest.approx(20)
    assert (found.low, found.high) == (pytest.approx(10), pytest.approx(30))
    one = over_targets(pairs[:3])
    assert (one.low, one.high) == (pytest.approx(10), pytest.approx(10))


def _results(correct: dict[str, list[list[int]]], things: dict[str, list[int]]) -> Results:
    bits = {name: packed(np.array(rows, bool)) for name, rows in correct.items()}
    curve = {"alphas": [0.0, 0.5, 1.0], "correct": bits}
    told = {"target": "a", "things": things, "methods": {"wise-ft": curve}}
    return Results(Path("a.json"), json.loads(json.dumps(told)))


def test_accuracies_of_a_file() -> None:
    rows = [[0, 0, 0, 1], [0, 1, 1, 1], [1, 1, 1, 1]]
    results = _results(
        {"test": rows, "ood-x": rows[::-1], "ood-y": rows, "val": rows},
        {"test": [0, 1, 2, 3], "ood-x": [4, 5, 6, 7], "ood-y": [8, 8, 9, 9]},
    )
    found = curve_of(results)
    assert found.id[0].tolist() == [0.25, 0.75, 1.0]
    assert found.ood[0].tolist() == [0.625, 0.75, 0.625]
    # pictures of one thing are drawn together
    one_thing = _results({"test": rows, "ood-y": rows}, {"test": [0] * 4, "ood-y": [1] * 4})
    assert (accuracies(one_thing, "wise-ft").id[:, 0] == 0.25).all()
    assert chosen_alpha(results, "wise-ft", "val") == 2
    assert chosen_alpha(results, "wise-ft", "val", max_loss=0.25) == 1


def test_tables_of_one_pair() -> None:
    """The merges are the curve's middle, and right on one picture more; with labels on two."""
    rows = [[0, 0, 0, 1], [0, 1, 1, 0], [1, 1, 1, 0]]
    names = ("test", "x", "y", "task-z")
    things = {name: [*range(4 * at, 4 * at + 4)] for at, name in enumerate(names)}
    sources = {"test": rows, "x": rows[::-1], "y": rows[::-1], "task-z": rows[::-1], "val": rows}
    results = _results(sources, things)
    results = Results(Path("mild-waste-0.json"), {**results.told, "tuned": False, "regime": "mild"})
    merged = {name: packed(np.array([[1, 1, 1, 0]], bool)) for name in things}
    results.methods["auto"] = {"correct": merged}
    taught = merged | {"x": packed(np.ones((1, 4), bool))}
    results.methods["auto labels=100"] = {"correct": taught, "shift": "x"}
    shown = {row[0]: row[1:] for row in tables.face([results])}
    assert shown["zero-shot"] == ["25.0", "75.0", "75.0", "", ""]
    assert shown["plain interpolation, chosen alpha"] == ["75.0", "25.0", "25.0", "+0.0", "+0.0"]
    assert shown["auto, 100 labels of a shift"] == ["75.0", "87.5", "75.0", "+62.5", "+50.0"]
    (_, pair) = tables.pairs([results])
    assert pair[:4] == [
        "mild-waste-0",
        "25.0 / 75.0 / 75.0",
        "75.0 / 25.0 / 25.0",
        "75.0 / 75.0 / 75.0",
    ]
    gains = {
        row[0]: [cell.partition(" ")[0] for cell in row[1:]] for row in tables.gains([results])
    }
    assert gains["**zero-shot is better under the shifts** (1)"][:4] == [
        "+50.0",
        "+50.0",
        "+62.5",
        "+50.0",
    ]
    (_, changes) = tables.labels([results])
    means = [cell.partition(" ")[0] for cell in changes]
    assert means == ["auto,", "+0.0", "+12.5", "+0.0", "+25.0", "+0.0", "+62.5", "+50.0"]


def test_roles_share_no_group() -> None:
    own = [Picture("own", f"class {at % 5}", b"") for at in range(300)]
    others = [Picture("far", f"class {at % 5}", b"") for at in range(50)]
    groups = [*(at - at % 2 for at in range(300)), *range(300, 350)]  # near-copies come in twos
    parts = list(natural.deal([*own, *others], groups, 0).positions.values())
    seen = [{groups[at] for at in part} for part in parts]
    assert sum(map(len, seen)) == len(set().union(*seen))
    assert {at for part in parts[:3] for at in part} == set(range(300))
