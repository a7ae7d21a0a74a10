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
    standing,
)


def _accuracies(*points: tuple[float, float]) -> Accuracies:
    return Accuracies(*(np.array([side]) for side in zip(*points, strict=True)))


_CURVE = _accuracies((0.2, 0.70), (0.6, 0.80), (0.8, 0.50))


@pytest.mark.parametrize(
    ("point", "stands", "above"),
    [
        ((0.9, 0.81), "beats", 0.31),
        ((0.9, 0.60), "neither", 0.10),
        ((0.6, 0.80), "neither", 0.00),
        ((0.5, 0.79), "beaten", -0.01),  # more accurate alphas count too
        ((0.7, 0.70), "neither", 0.05),
        ((0.1, 0.90), "neither", 0.10),
    ],
)
def test_standing_and_gain(point: tuple[float, float], stands: str, above: float) -> None:
    found = _accuracies(point)
    assert standing(found, _CURVE) == stands
    assert gain(found, _CURVE)[0] == pytest.approx(above)


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
    """The merge is the curve's middle, and right on one picture more."""
    rows = [[0, 0, 0, 1], [0, 1, 1, 0], [1, 1, 1, 0]]
    things = {"test": [0, 1, 2, 3], "ood-x": [4, 5, 6, 7]}
    results = _results({"test": rows, "ood-x": rows[::-1], "val": rows}, things)
    results = Results(Path("mild-waste-0.json"), {**results.told, "tuned": False, "regime": "mild"})
    merged = {name: packed(np.array([[1, 1, 1, 0]], bool)) for name in things}
    results.methods["auto"] = {"correct": merged, "recommendation": "use"}
    results.methods["auto images=64"] = results.methods["auto"]
    shown = {row[0]: row[1] for row in tables.new_targets([results])}
    assert shown["zero-shot"] == "25.0 / 75.0"
    assert shown["wise-ft, alpha 0.5"] == "50.0 / 50.0"
    assert shown["auto"] == "75.0 / 75.0"
    assert shown["gain, auto"].startswith("+50.0 [")
    assert shown["beats/beaten/neither, auto"] == "0/0/1"
    assert shown["advice on auto"] == "use: right"
    (_, small, held_out) = tables.smaller([results])
    assert small[0] == "a, mild (1)"
    assert held_out[1].startswith("+50.0 [")
    assert tables.face([results])[1][:4] == ["1 of real pictures", "25 / 75", "75 / 25", "75 / 75"]
    stands = {row[0]: row[3] for row in tables.merged([results])}
    assert stands == {
        "target (pairs)": "beats/beaten/neither",
        "a (1)": "0/0/1",
        "**all** (1)": "0/0/1",
    }


def test_roles_share_no_group() -> None:
    own = [Picture("own", f"class {at % 5}", b"") for at in range(300)]
    others = [Picture("far", f"class {at % 5}", b"") for at in range(50)]
    groups = [*(at - at % 2 for at in range(300)), *range(300, 350)]  # near-copies come in twos
    parts = list(natural.deal([*own, *others], groups, 0).positions.values())
    seen = [{groups[at] for at in part} for part in parts]
    assert sum(map(len, seen)) == len(set().union(*seen))
    assert {at for part in parts[:3] for at in part} == set(range(300))
