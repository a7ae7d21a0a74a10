"""What is said of a measure's cost."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.command import clipmerge

FEW = ("--set", "measure.steps=2")


@pytest.mark.parametrize(
    ("recipe", "more", "cheaper"),
    [
        ("straggler-outlier", (), "fewer --images cost less"),
        ("auto", FEW, "a smaller measure.steps costs less"),
        ("straggler-sparse", FEW, "a smaller measure.steps costs less"),
        ("tpgm", FEW, "a smaller measure.steps costs less"),
    ],
)
def test_the_stated_cost_names_what_makes_it_less(
    pair: tuple[Path, Path],
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    recipe: str,
    more: tuple[str, ...],
    cheaper: str,
) -> None:
    monkeypatch.setattr("clipmerge.progress._LONG", -1.0)  # a short time is stated too
    planned = clipmerge("plan", *pair, "-r", recipe, *more, "--data", images, "--device", "cpu", "-o", tmp_path / "p")
    assert planned.code == 0, planned.err
    (said,) = [line for line in planned.err.splitlines() if line.startswith("note: measuring 24 images")]
    assert said.endswith(f"({cheaper})")
