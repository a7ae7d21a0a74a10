"""Merges with learned coefficients, from the command to the written weights."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.command import printed
from tests.support.tiny_clip import Folders

FEW = (
    "--set=measure.steps=4",
    "--set=measure.held_back=0",
    "--batch-size",
    8,
)


@pytest.mark.parametrize("recipe", ["auto", "straggler-sparse"])
def test_a_merge_writes_what_was_learned_and_zero_shot_bytes_where_entries_dropped(
    pair: Folders, images: Path, tmp_path: Path, recipe: str
) -> None:
    output = tmp_path / "merged"
    record = printed("merge", *pair, "-r", recipe, *FEW, "--data", images, "-o", output)
    plan, measured = record["plan"], record["measurements"]
    held = load_file(output / "plan" / "plan.tensors.safetensors")
    zeroshot, finetuned, written = (load_file(f / "model.safetensors") for f in (*pair, output))
    dropped = 0.0
    for name, tensor in written.items():
        coefficient = held[f"coefficients:{name}"].double()
        change = finetuned[name].double() - zeroshot[name].double()
        expected = zeroshot[name].double() + coefficient * change
        assert torch.allclose(tensor.double(), expected, atol=1e-6, rtol=1e-6), name
        zero = coefficient == 0
        assert torch.equal(tensor[zero], zeroshot[name][zero]), name
        dropped = max(dropped, float(zero.double().mean()))
    assert record["measured"]["trace"]["cross_entropy"]
    assert bool(plan["stragglers"]) == (recipe == "straggler-sparse") == (0.5 <= dropped < 1)
    assert all(measured[layer]["at_zero"] >= 0.5 for layer in plan["stragglers"])
