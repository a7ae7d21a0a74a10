"""The demo's command on models that have seen a handful of images, merged without learning."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from clipmerge.api import demo as of_the_api
from clipmerge.api.merge import merge
from clipmerge.demo.pair import prepare
from tests.demo.test_pair import BRIEF
from tests.support.command import clipmerge


@pytest.mark.slow
def test_it_merges_by_each_recipe_prints_a_table_and_trains_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes: list[str] = []

    def without_learning(zeroshot: Path, finetuned: Path, recipe: str, *, data: Path, **options: Any) -> Any:
        assert data.is_dir()
        recipes.append(recipe)
        return merge(zeroshot, finetuned, "wise-ft", **options)

    monkeypatch.setattr(of_the_api, "prepare", partial(prepare, training=BRIEF))
    monkeypatch.setattr(of_the_api, "merge", without_learning)
    first, second = (clipmerge("demo", "--output", tmp_path / "demo") for _ in range(2))
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert recipes == 2 * ["wise-ft", "straggler-sparse", "auto"]
    assert first.out == second.out
    assert "trained earlier" not in first.err
    assert f"trained earlier in {tmp_path / 'demo'}" in second.err
    heads, *rows = first.out.splitlines()[:6]
    assert heads.split()[2:] == ["clean", "noise", "inversion", "rotation", "blur", "mean", "shifted"]
    assert [row.split()[0] for row in rows] == ["zero-shot", "fine-tuned", *recipes[:3]]
    assert first.out.splitlines()[-1].split()[:2] == ["clipmerge", "merge"]
