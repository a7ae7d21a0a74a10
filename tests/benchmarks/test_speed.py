"""Benchmarks of speed: random checkpoints have the architectures that they claim, and docs/cost.md has the results."""

from pathlib import Path

import pytest
import torch
from transformers import CLIPConfig, CLIPModel

from benchmarks.speed import checkpoints
from benchmarks.speed.decide_cases import PAGE, page_with, rows, totals


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
