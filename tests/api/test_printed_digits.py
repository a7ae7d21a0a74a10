"""On a path with a valley in the middle, lost accuracy is always reported: real checkpoints, trained here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import clipmerge, refused
from tests.support.printed_digits import PrintedPair, save_printed_pair

pytestmark = [pytest.mark.slow, pytest.mark.uncounted]


@pytest.fixture(scope="module")
def printed_pair(tmp_path_factory: pytest.TempPathFactory) -> PrintedPair:
    return save_printed_pair(tmp_path_factory.mktemp("printed"))


def merged(pair: PrintedPair, recipe: str, output: Path, *flags: object) -> dict[str, Any]:
    given = (pair.zeroshot, pair.finetuned, "--recipe", recipe, "--data", pair.images, "--output", output)
    ended = clipmerge("merge", *given, *flags, "--format", "json")
    assert ended.code == 0, ended.err
    record: dict[str, Any] = ended.json
    return record


def test_a_data_free_recipe_that_falls_into_the_valley_says_so(printed_pair: PrintedPair, tmp_path: Path) -> None:
    record = merged(printed_pair, "wise-ft", tmp_path / "half")
    bought = record["bought"]
    lost = bought["finetuned"][0]["clean"]["value"] - bought["merged"]["clean"]["value"]
    assert lost > 0.3  # the valley is there
    assert bought["recommendation"] == "prefer-finetuned"
    assert bought["verdict"].startswith("Do not use it: keep the fine-tuned model.")
    assert any(f"loses {100 * lost:.1f} points" in warning for warning in record["warnings"])
    given = (printed_pair.zeroshot, printed_pair.finetuned, "--recipe", "wise-ft", "--data", printed_pair.images)
    refused(clipmerge("merge", *given, "--strict", "--output", tmp_path / "strict"))
    assert not (tmp_path / "strict").exists()


@pytest.mark.parametrize("recipe", ["auto", "straggler-sparse", "wise-ft-id"])
def test_no_recipe_with_data_loses_more_than_it_may_in_silence(
    printed_pair: PrintedPair, tmp_path: Path, recipe: str
) -> None:
    few = () if recipe == "wise-ft-id" else ("--set", "measure.steps=40")  # of 200: the rule holds after any number
    record = merged(printed_pair, recipe, tmp_path / "out", *few)
    bought = record["bought"]
    lost = 100 * (bought["finetuned"][0]["clean"]["value"] - bought["merged"]["clean"]["value"])
    warned = [text for text in record["warnings"] if "--max-loss" in text]
    assert bool(warned) == (lost > 3 + 1e-6)
    card = (tmp_path / "out" / "README.md").read_text()
    assert ("**Warning:**" in card) == bool(warned)
    assert json.loads((tmp_path / "out" / "clipmerge.json").read_text())["bought"] == bought
