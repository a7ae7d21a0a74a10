"""Where both ends of the weights are read: from mapped files, or from memory."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from clipmerge.checkpoint.alignment import align
from clipmerge.checkpoint.opening import open_checkpoint
from clipmerge.checkpoint.source import Checkpoint, DerivedCheckpoint, LazyTensor, stored_array
from clipmerge.learning.weights import InterpolatedWeights

NAME = "text_model.embeddings.token_embedding.weight"


class OneWeight:
    """A model of one weight, large enough to be mapped."""

    def __init__(self, value: Tensor) -> None:
        self.module = torch.nn.Module()
        self.parameters = {NAME: torch.nn.Parameter(value.clone())}

    def load(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("stored", ["in a file", "as factors"])
def test_a_weight_that_must_be_formed_is_formed_once(tmp_path: Path, stored: str) -> None:
    base, factors = torch.randn(700, 100), (torch.randn(700, 2), torch.randn(2, 100))
    save_file({NAME: base}, tmp_path / "zeroshot.safetensors")
    save_file({NAME: base + factors[0] @ factors[1]}, tmp_path / "finetuned.safetensors")
    zeroshot = open_checkpoint(str(tmp_path / "zeroshot.safetensors"))
    formed = []

    def form() -> Any:
        formed.append(NAME)
        return stored_array((base + factors[0] @ factors[1]).flatten())

    finetuned: Checkpoint = open_checkpoint(str(tmp_path / "finetuned.safetensors"))
    if stored == "as factors":
        finetuned = DerivedCheckpoint.of(zeroshot, {NAME: LazyTensor((NAME,), form)})
    model: Any = OneWeight(base)
    weights = InterpolatedWeights(model, align(zeroshot, [finetuned]), torch.device("cpu"))
    assert bool(weights.task_vector.nbytes) == (stored == "as factors")
    formed.clear()
    for alpha in (0.25, 0.75):
        coefficients = torch.full((700, 1), alpha)
        weights.set_coefficients(lambda _name, values=coefficients: values, [NAME])
        torch.testing.assert_close(
            model.parameters[NAME].data, base + alpha * factors[0] @ factors[1]
        )
    assert not formed
