"""The first screen of the results page, and gain against density."""

from __future__ import annotations

import io
from typing import Any

import pytest
from PIL import Image

from benchmarks.shifts import densities, standing, summary
from tests.support.shift_records import bits, record_of


def pair_of(recipes: dict[str, float], **told: Any) -> standing.Resampled:
    """A pair whose recipes have ID accuracy 0.8, where the curve's OOD accuracy is 0.7, and these OOD accuracies."""
    correct = {
        "test": bits([0.4, 0.6, 1.0, *(0.8 for _ in recipes)]),
        "far": bits([0.8, 0.9, 0.5, *recipes.values()]),
    }
    places = {name: 3 + number for number, name in enumerate(recipes)}
    return standing.resampled(record_of(correct, places, **told), resamples=50)


def test_the_first_screen_has_the_held_out_pairs_of_every_testbed() -> None:
    pairs = {
        "letters": [pair_of({"auto": 0.76, "straggler-sparse": 0.72}), pair_of({"auto": 0.78}, seed=2)],
        "clothes": [
            pair_of({"auto": 0.7}, regime="aggressive"),
            pair_of({"auto": 0.9}, tuning=True),
            pair_of({"lines": 0.7}),
        ],
    }
    groups = summary.held_out(pairs)
    assert [(key, len(each)) for key, each in groups.items()] == [
        (("clothes", "aggressive"), 1),
        (("letters", "mild"), 2),
    ]
    row = summary.rows(groups)[1]
    assert row[:4] == ["letters, mild (2)", "40.0 / 80.0", "100.0 / 50.0", "80.0 / 77.0"]
    assert row[4].startswith("+7.0 [")
    assert row[5].startswith("+2.0 [")
    assert row[6] == "none"
    with Image.open(io.BytesIO(summary.summary_png(groups))) as picture:
        assert picture.width > 500


def test_gain_against_density_averages_random_sets() -> None:
    recipes = {
        "sharpest 0.5": 0.76,
        "flattest 0.5": 0.7,
        "random-1 0.5": 0.72,
        "random-2 0.5": 0.78,
        "random-1 0.1": 0.6,
    }
    pair = pair_of({**recipes, "random-matched": 0.9})
    curves = densities.curves(pair)
    assert curves["sharpest"][0.5].value == pytest.approx(0.06)
    assert curves["random"][0.5].value == pytest.approx(0.05)
    assert curves["random"][0.5].pairs == 2
    assert list(curves["random"]) == [0.5, 0.1]
    rows = densities.rows(pair)
    assert [row[0] for row in rows] == ["0.5", "0.1"]
    assert rows[0][3].endswith("(2 sets)")
    assert rows[1][1:3] == ["", ""]
    assert densities.curves(pair_of({"auto": 0.9})) == {}
    with Image.open(io.BytesIO(densities.densities_png([pair]))) as picture:
        assert picture.width > 300
