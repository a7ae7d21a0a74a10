"""Merges with learned coefficients, from the command to the written weights."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.support.command import printed
from tests.support.tiny_clip import Folders

# the zero-shot model of these tests knows nothing, and nothing would be learned
FEW = (
    "--set=measure.steps=4",
    "--set=measure.distill=predictions",
    "--set=measure.held_back=0",
    "--batch-size",
    8,
)


def test_a_merge_by_the_recipe_writes_what_was_learned_and_tells_numbers(
    pair: Folders, images: Path, tmp_path: Path
) -> None:
    record = printed(
        "merge", *pair, "--recipe", "auto", *FEW, "--data", images, "--output", tmp_path / "merged"
    )
    for layer, entry in record["plan"]["layers"].items():
        low, high = entry["alpha_range"]
        assert 0 <= low <= entry["alpha"] <= high <= 2, layer
        assert entry["density"] == 1
        assert set(record["measurements"][layer]) == {"at_zero", "at_one", "change"}
    assert record["plan"]["stragglers"] == []
    plan = tmp_path / "merged" / "plan"
    assert record["measured"]["trace"]["cross_entropy"]
    held = load_file(plan / "plan.tensors.safetensors")
    zeroshot, finetuned, written = (
        load_file(f / "model.safetensors") for f in (*pair, tmp_path / "merged")
    )
    for name, tensor in written.items():
        coefficient = held[f"coefficients:{name}"].double()
        expected = zeroshot[name].double() + coefficient * (
            finetuned[name].double() - zeroshot[name].double()
        )
        assert torch.allclose(tensor.double(), expected, atol=1e-6, rtol=1e-6), name


def test_a_merge_writes_zero_shot_bytes_where_a_straggler_dropped(
    pair: Folders, images: Path, tmp_path: Path
) -> None:
    flags = (*FEW, "--data", images, "--output", tmp_path / "out")
    record = printed("merge", *pair, "--recipe", "straggler-sparse", *flags)
    assert record["plan"]["stragglers"]
    zeroshot, finetuned, written = (
        load_file(f / "model.safetensors") for f in (*pair, tmp_path / "out")
    )
    held = load_file(tmp_path / "out" / "plan" / "plan.tensors.safetensors")
    zeros = {
        name: held[f"coefficients:{name}"] == 0
        for name in written
        if f"coefficients:{name}" in held
    }
    half = [name for name, zero in zeros.items() if float(zero.double().mean()) >= 0.5]
    assert half
    for name, zero in zeros.items():
        assert torch.equal(written[name][zero], zeroshot[name][zero]), name
    moved = sum(int((written[name] != zeroshot[name]).sum()) for name in half)
    assert 0 < moved <= sum(written[name].numel() for name in half) / 2
    assert any(not torch.equal(written[name], finetuned[name]) for name in written)
    for layer in record["plan"]["stragglers"]:
        assert record["measurements"][layer]["at_zero"] >= 0.5
