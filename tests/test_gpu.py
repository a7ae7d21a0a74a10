"""Measures, the merge and evaluation on a CUDA device; the CPU, whose values other tests check, is
the reference.

Skipped without a device. Two kinds of processor sum in different orders, so values are compared to
1e-3 of the largest of their statistic; what is written is computed on the CPU everywhere (but for a
zero-shot head, whose plan names its device), so bytes are compared exactly.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPModel

import clipmerge
from clipmerge.distributed import DistributedContext
from clipmerge.planning.measurements import Measurements
from clipmerge.plugins import load_plugin
from clipmerge.progress import Progress
from tests.support.command import python
from tests.support.small_objective import make_batches, objective_for, save_ends
from tests.support.tiny_clip import Folders

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
SIZES = (4, 4, 3)


def measure(name: str, ends: Folders, device: str) -> Measurements:
    objective = objective_for(ends, make_batches(SIZES), context=DistributedContext(device))
    assert objective.path.device.type == device
    return load_plugin("measures", name)(objective)


@pytest.mark.parametrize("name", ["path-barrier", "sharpness"])
def test_a_measure_is_that_of_the_cpu(ends: Folders, name: str) -> None:
    found, expected = measure(name, ends, "cuda"), measure(name, ends, "cpu")
    for statistic in next(iter(expected.layers.values())):
        largest = max(abs(values[statistic]) for values in expected.layers.values())
        for layer, values in expected.layers.items():
            near = pytest.approx(values[statistic], abs=1e-3 * largest)
            assert found.layers[layer][statistic] == near, (layer, statistic)


def on_both(*arguments: object) -> list[Any]:
    """The records of a command on the card and on the CPU, in new processes."""
    return [
        json.loads(
            python("-m", "clipmerge", *arguments, "--device", device, "--json", check=True).stdout
        )
        for device in ("cuda", "cpu")
    ]


def test_a_merge_decides_and_writes_as_on_the_cpu(
    pair: Folders, images: Path, tmp_path: Path
) -> None:
    recipe = ("--recipe", "straggler-outlier", "--batch-size", 7)
    flags = ("--overwrite", "--output", tmp_path / "out")
    there, here = on_both("merge", *pair, "--data", images, *recipe, *flags)
    for part in ("stragglers", "layers"):
        assert there["plan"][part] == here["plan"][part]
    assert there["files"]["model.safetensors"] == here["files"]["model.safetensors"]


def test_evaluation_counts_as_on_the_cpu(pair: Folders, images: Path) -> None:
    there, here = on_both("evaluate", pair[0], "--data", f"val={images}")
    near = pytest.approx(here["accuracy"], abs=0.05)  # near ties may turn
    assert there["accuracy"] == near


class Peaks(Progress):
    """Keeps the most bytes that tensors took in each stage."""

    def __init__(self) -> None:
        self.bytes: dict[str, int] = {}
        self._stage = "read"

    def stage(self, name: str) -> None:
        self.bytes[self._stage] = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        self._stage = name


def test_auto_learns_chooses_and_judges(images: Path, tmp_path: Path) -> None:
    """Weights are large beside activations, so that peaks show what is held."""
    ends = save_ends(tmp_path, width=256)
    peaks, settings = Peaks(), ["measure.steps=8", "measure.batch_size=4"]
    there, here = (
        clipmerge.merge(
            *ends,
            data=images,
            device=device,
            batch_size=8,
            allow=["at-chance", "swapped"],
            set=settings,
            output=tmp_path / device,
            progress=peaks if device == "cuda" else None,
        )
        for device in ("cuda", "cpu")
    )
    assert there.plan.recipe.name == "auto"
    models, expected = (result.verdict.target.models for result in (there, here))
    for name in ("zero-shot", "fine-tuned"):  # near ties may turn
        assert models[name].value == pytest.approx(expected[name].value, abs=0.1)
    first, merged = (
        load_file(folder / "model.safetensors") for folder in (ends[0], tmp_path / "cuda")
    )
    assert any(not torch.equal(value, first[name]) for name, value in merged.items())
    weights = sum(
        parameter.numel() for parameter in CLIPModel.from_pretrained(ends[0]).parameters()
    )
    # coefficients, their gradients and their moments are 12 bytes per weight
    assert peaks.bytes["judge"] < peaks.bytes["learn"] - 8 * weights
