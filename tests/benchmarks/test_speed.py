"""Benchmarks of speed: random checkpoints have the architectures that they claim, and docs/cost.md has the results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import CLIPConfig, CLIPModel

from benchmarks.speed import checkpoints, decide_cases
from benchmarks.speed.decide_cases import CASES, PAGE, RESULTS, page_with, rows, totals


@pytest.mark.parametrize("size", ["b32", "l14"])
def test_shapes_are_those_of_transformers(size: str) -> None:
    config = checkpoints.clip_config(size)
    with torch.device("meta"):
        model = CLIPModel(CLIPConfig(**config))
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert checkpoints.clip_shapes(config) == expected


def test_a_sharded_checkpoint_has_the_size_asked_for_and_a_whole_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert checkpoints.weight_bytes(checkpoints.clip_config("sharded", 20)) == pytest.approx(20e9, rel=0.01)
    monkeypatch.setattr(checkpoints, "SHARD_BYTES", 1_000_000)
    config = checkpoints._config((32, 64, 3, 2, 32), (16, 32, 2, 2), 16)
    folder, _ = checkpoints.make_pair(tmp_path, config, sharded=True)
    from clipmerge.checkpoint import open_checkpoint

    opened = open_checkpoint(str(folder))
    assert len(opened.files) > 1
    assert {key: entry.shape for key, entry in opened.entries.items()} == checkpoints.clip_shapes(config)


def test_the_page_has_the_table_of_the_results() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page_with(page, [*rows(), "", *totals()]) == page


def test_every_result_is_of_a_case() -> None:
    names = {path.stem for path in RESULTS.glob("*.json")}
    assert names - {"shared", "against"} <= set(CASES)


def test_a_row_has_the_figures_of_its_measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"size": "b32", "towers": "both", "images": 64, "classes": 1000, "templates": 80}
    figures = {"seconds": 12.34, "joint_passes": 6.789, "private_mb": 1234.5}
    found = {"settings": settings | {"only": "path-barrier"}, "weights_mb": 605.1, "path-barrier": figures}
    (tmp_path / "path-64.json").write_text(json.dumps(found), encoding="utf-8")
    monkeypatch.setattr(decide_cases, "RESULTS", tmp_path)
    assert rows()[2:] == ["| `path-64` | B/32, both | 64, 1000 x 80 | path-barrier | 12.3 | 6.79 | 1234 (605) |"]


def test_memory_is_told_by_image_and_by_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, batch, classes in (("8", 8, 100), ("16", 16, 100), ("prompts", 8, 200)):
        peak = 300 + 1210.2 + 2 * batch * 30 + classes * 5
        settings = {"only": "auto", "batch": batch, "classes": classes}
        found = {"settings": settings, "weights_mb": 605.1, "idle_mb": 300, "tokens": 16, "auto": {"private_mb": peak}}
        (tmp_path / f"memory-both-{name}.json").write_text(json.dumps(found), encoding="utf-8")
    monkeypatch.setattr(decide_cases, "RESULTS", tmp_path)
    assert totals() == [
        "- Memory of `auto`, ViT-B/32, both, float32: 30 MB for each image of a step, "
        "5.0 MB for each prompt of 16 tokens, and 1210 MB beside them, 2.0 x the weights."
    ]
