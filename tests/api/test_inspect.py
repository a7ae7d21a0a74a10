"""The output of `clipmerge inspect` for pairs with equal shapes that still cannot be merged."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.command import clipmerge, printed
from tests.support.raw_safetensors import edit
from tests.support.tiny_clip import save_pair

WEIGHT = "text_model.encoder.layers.0.mlp.fc1.weight"
PROJECTION = "text_projection.weight"
POSITIONS = "text_model.embeddings.position_ids"


def spoilt(folder: Path, which: int, value: float) -> tuple[Path, Path]:
    """A pair with one entry of one weight set."""
    pair = save_pair(folder)
    weight = load_file(pair[which] / "model.safetensors")[WEIGHT]
    weight[3, 1] = value
    edit(pair[which], **{WEIGHT: weight})
    return pair


@pytest.mark.parametrize(("which", "value"), [(0, math.nan), (1, math.nan), (1, -math.inf)])
def test_nan_and_inf_are_told_by_name_as_merge_does(tmp_path: Path, which: int, value: float) -> None:
    pair = spoilt(tmp_path, which, value)
    record = printed("inspect", *pair)
    (fault,) = record["mismatches"]
    assert fault.startswith(f"{pair[which]}: tensor {WEIGHT} holds {'NaN' if math.isnan(value) else 'Inf'}")
    assert record["layers"]["text.0.mlp"]["change"] is None
    merged = clipmerge("merge", *pair, "-r", "wise-ft", "-o", tmp_path / "out")
    assert fault in merged.err
    assert "they can be merged" not in clipmerge("inspect", *pair).out


def test_other_integers_and_positions_are_told_but_no_layer_that_was_zero(tmp_path: Path) -> None:
    pair = save_pair(tmp_path)
    count = torch.arange(16)[None]
    for folder, positions in zip(pair, (count, count + 1), strict=True):
        edit(folder, **{POSITIONS: positions})
    told = printed("inspect", *pair)["mismatches"]
    assert len(told) == 1
    assert POSITIONS in told[0]
    edit(pair[1], **{POSITIONS: count[:, :3]})
    told = printed("inspect", *pair)["mismatches"]
    assert "differs in shape" in told[0]
    edit(pair[1], **{POSITIONS: count})
    edit(pair[0], text_projection__weight=torch.zeros(load_file(pair[0] / "model.safetensors")[PROJECTION].shape))
    assert printed("inspect", *pair)["mismatches"] == []
    assert "The two match" in clipmerge("inspect", *pair).out


def test_without_weights_nothing_is_said_of_their_angles(pair: tuple[Path, Path]) -> None:
    whole, names = (" ".join(clipmerge("inspect", *pair, *flags).out.split()) for flags in ((), ("--no-weights",)))
    assert "median cosine between their matrices: " in whole
    assert "cosine" not in names
    assert names.endswith("The two match: they can be merged.")
