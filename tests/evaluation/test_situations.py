"""Situations in which a verdict would mislead, on the demo's trained models: what is said of each."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import clipmerge
from clipmerge.demo.pair import DemoPair, prepare
from clipmerge.errors import ClipmergeError

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoPair:
    return prepare(tmp_path_factory.mktemp("situations") / "demo")


def finetuned(demo: DemoPair, change: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Path:
    """A model fine-tuned in another way: made of each zero-shot tensor and the fine-tuned one."""
    folder = demo.zeroshot.parent / "other"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(demo.finetuned, folder)
    ends = [load_file(path / WEIGHTS) for path in (demo.zeroshot, demo.finetuned)]
    made = {name: change(value, ends[1][name]) for name, value in ends[0].items()}
    save_file(made, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


#: Zero-shot model, fine-tuned model and images, and the recommendation or the error.
SITUATIONS: dict[str, tuple[Callable[[DemoPair], tuple[Path, Path, Path]], str]] = {
    "a shift as the target": (
        lambda demo: (demo.zeroshot, demo.finetuned, demo.shifted["inversion"]),
        "check-images|zero-shot model recognises",
    ),
    "swapped": (lambda demo: (demo.finetuned, demo.zeroshot, demo.clean), "check-images|zero-shot"),
    "a near copy": (
        lambda demo: (
            demo.zeroshot,
            finetuned(demo, lambda value, other: value.lerp(other, 0.02)),
            demo.clean,
        ),
        "either",
    ),
}


@pytest.mark.parametrize("situation", SITUATIONS)
def test_nothing_wrong_is_said_with_confidence(situation: str, demo: DemoPair) -> None:
    make, expected = SITUATIONS[situation]
    zeroshot, other, images = make(demo)
    told: Any
    try:
        told = clipmerge.merge(zeroshot, other, "wise-ft", data=images).recommendation
    except ClipmergeError as error:
        told = str(error)
    assert any(each in told for each in expected.split("|")), told
