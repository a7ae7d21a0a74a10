"""A new measure is one file: its column, its sign and its sum reach the report and the straggler rule."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from clipmerge.plugins import plugin_names
from tests.support.command import clipmerge as command
from tests.support.command import done
from tests.support.plugged import plugged

NEW = '''
"""How far each layer tilts, made up for a test."""

from clipmerge.measures import Measurements, Objective, statistic
from clipmerge.plugins import Positive

FAR = "vision.1.mlp"


def tilt(objective: Objective, *, scale: Positive = 1.0) -> Measurements:
    batches = {}
    for place, layer in enumerate(objective.path.layers):
        value = 100.0 if layer == FAR else -1.0 - 0.1 * (7 * place % 5)
        batches[layer] = [scale * value] * len(objective.shares.batch_sizes)
    found = statistic(
        objective,
        "tilt",
        batches,
        signed=True,
        additive=True,
        unit="degrees",
        title="tilt of the layer",
        symbol="T_l",
        about="how far the layer tilts.",
    )
    return Measurements(measure="tilt", statistics=(found,), batch_sizes=objective.shares.batch_sizes)
'''
RECIPE = """
measure: {name: tilt, scale: 2}
method: {name: straggler-outlier, statistic: tilt, mask: magnitude, mirror: 0}
"""


@pytest.fixture
def new_measure(tmp_path: Path) -> Iterator[Path]:
    """A file that is found beside those of the package."""
    file = tmp_path / "measures" / "tilt.py"
    file.parent.mkdir()
    file.write_text(NEW)
    with plugged([file]):
        yield file


def test_a_signed_measure_with_its_column_touches_one_file(
    new_measure: Path, pair: tuple[Path, Path], images: Path, tmp_path: Path
) -> None:
    assert "tilt" in plugin_names("measures")
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "out"
    recipe.write_text(RECIPE)
    calibration = ("--data", images, "--images", "12", "--batch-size", "3", "--device", "cpu")
    merged = done("merge", *pair, "-r", recipe, *calibration, "-o", out, "--format", "json")
    # the straggler rule compares signed values as they are; in logarithms the others would be left out
    assert merged.json["stragglers"] == ["vision.1.mlp"]
    assert len(merged.json["straggler_scores"]) > 8
    values = {layer: row["tilt"] for layer, row in merged.json["measurements"].items()}
    assert values["vision.1.mlp"] == 200
    # the record says how to read it, so that the report can be drawn where the measure is not installed
    assert merged.json["statistics"]["tilt"]["signed"] is True
    page = (out / "report.html").read_text()
    assert '<th scope="col" class="number">tilt of the layer<span><i>T</i><sub>l</sub>, degrees</span></th>' in page
    assert "<b>Tilt of the layer <i>T</i><sub>l</sub></b>: how far the layer tilts." in page
    assert "+200" in page
    assert 'class="bar neg"' in page
    vision = sum(value for layer, value in values.items() if layer.startswith("vision."))
    assert f"sum of <i>T</i><sub>l</sub>: +{vision:.0f} degrees" in page
    again = command("report", out, "--format", "json")
    assert again.json == json.loads((out / "clipmerge.json").read_text())
