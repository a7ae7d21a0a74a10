"""Merges without torch: the formula in Python's own floats, torch's bytes, and torch really not imported."""

import json
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from clipmerge.merging import chunks
from clipmerge.merging.formula import weighted_change
from clipmerge.merging.numpy_chunks import can_copy
from clipmerge.merging.stream import merged_tensors
from clipmerge.merging.tensor import merge_tensor
from clipmerge.planning.layer_plan import LayerPlan
from tests.support.tasks import inputs_of, plan_with

Folders = tuple[Path, Path]
# Prints which of the modules that a light command has no use for were imported all the same.
LIGHT = """
import sys
from clipmerge.cli.app import main
try:
    main()
finally:
    heavy = {"torch", "transformers", "accelerate", "datasets", "matplotlib", "sklearn"}
    print(sorted(heavy & set(sys.modules)), file=sys.stderr)
"""


def light(*arguments: object) -> list[str]:
    command = [sys.executable, "-c", LIGHT, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    heavy: list[str] = json.loads(result.stderr.splitlines()[-1].replace("'", '"'))
    return heavy


@pytest.mark.parametrize("recipe", [pytest.param("wise-ft", marks=pytest.mark.slow), "lines"])
def test_a_data_free_merge_imports_nothing_heavy(pair: Folders, tmp_path: Path, recipe: str) -> None:
    output = tmp_path / "out"
    assert light("merge", *pair, "--recipe", recipe, "--output", output, "--format", "json") == []
    assert (output / "model.safetensors").exists()
    plan = tmp_path / "plan.json"
    assert light("plan", *pair, "--recipe", recipe, "--output", plan, "--format", "json") == []
    assert light("apply", plan, "--output", tmp_path / "again", "--format", "json") == []
    files = [(folder / "model.safetensors").read_bytes() for folder in (output, tmp_path / "again")]
    assert files[0] == files[1]


def rounded(value: Fraction) -> Fraction:
    """To the nearest float32, by way of the exact value: numpy rounds a Python integer or float once."""
    return Fraction(float(np.float32(float(value))))


@pytest.mark.parametrize("alpha", [0.3, 0.5, 1.5, -0.25])
@pytest.mark.parametrize("weights", [(1.0,), (0.25, 0.5)])
def test_every_step_is_rounded_as_exact_arithmetic_says(alpha: float, weights: tuple[float, ...]) -> None:
    rng = np.random.default_rng(0)
    theta_0, *finetuned = (rng.standard_normal(200).astype(np.float32) for _ in range(1 + len(weights)))
    found = weighted_change(np, theta_0, finetuned, alpha=alpha, weights=weights)
    for place in range(200):
        base, *others = (Fraction(float(values[place])) for values in (theta_0, *finetuned))
        # the products of two float32 are exact in float64, and so are these small sums' operands
        change = rounded(rounded(others[0] - base) * rounded(Fraction(weights[0])))
        for other, weight in zip(others[1:], weights[1:], strict=True):
            change = rounded(change + rounded(rounded(other - base) * rounded(Fraction(weight))))
        assert Fraction(float(found[place])) == rounded(change * rounded(Fraction(alpha)))


def with_dtype(folders: Folders, place: Path, dtype: torch.dtype) -> list[Path]:
    made = []
    for folder in folders:
        tensors = {name: tensor.to(dtype) for name, tensor in load_file(folder / "model.safetensors").items()}
        (place / folder.name).mkdir()
        save_file(tensors, place / folder.name / "model.safetensors", metadata={"format": "pt"})
        made.append(place / folder.name)
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0, 1.7])
def test_bytes_are_those_of_the_merge_by_torch(
    pair: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, alpha: float
) -> None:
    monkeypatch.setattr(chunks, "CHUNK", 37)
    folders = with_dtype(pair, tmp_path, dtype)
    opened = inputs_of(folders)
    plan = plan_with({layer: LayerPlan(alpha=alpha) for layer in opened.layers if layer != "text.0.mlp"})
    zeroshot, finetuned = (load_file(folder / "model.safetensors") for folder in folders)
    for tensor in merged_tensors(opened, plan):
        left_alone = tensor.name.startswith("text_model.encoder.layers.0.mlp") or (
            tensor.name.startswith("text_model.encoder.layers.0.layer_norm2")
        )
        expected = merge_tensor(zeroshot[tensor.key], finetuned[tensor.key], alpha=0.0 if left_alone else alpha)
        found = tensor.tensor(tensor.chunks(np.empty))
        assert found.dtype == dtype
        assert found.numpy().tobytes() == expected.numpy().tobytes(), tensor.key


def test_a_narrow_result_is_stored_as_its_bits(pair: Folders) -> None:
    opened = inputs_of(pair)
    plan = plan_with(dict.fromkeys(opened.layers, LayerPlan(alpha=0.5)), dtype="bfloat16")
    for tensor in merged_tensors(opened, plan):
        stored = np.concatenate(list(tensor.chunks(np.empty)))
        assert stored.dtype == np.uint16
        assert torch.equal(torch.from_numpy(stored).view(torch.bfloat16).view(tensor.shape), tensor.tensor([stored]))


def test_numpy_copies_only_where_it_can_compare_every_tensor() -> None:
    """A bfloat16 among float32 would be compared as the integers that store it."""
    assert can_copy(["F32", "F32", "F64"])
    assert can_copy(["I64", "BOOL"])
    assert not can_copy(["F32", "BF16"])
    assert not can_copy(["F16"])
