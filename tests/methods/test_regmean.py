"""RegMean: inputs against hooks on transformers' own model, the merge against least squares on
stacked inputs."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import clipmerge
from clipmerge.planning.measurements import Measurements
from clipmerge.plugins import load_plugin
from tests.support.small_objective import Ends, Reference, make_batches, objective_for
from tests.support.tasks import decide, task_of
from tests.support.tiny_open_clip import model_config, save_open_clip_pair

BATCHES = make_batches((4, 3))
VISION, TEXT = (
    "vision_model.encoder.layers.1.mlp.fc2.weight",
    "text_model.encoder.layers.0.self_attn.k_proj.weight",
)
CLASSES = ("bird", "cat", "a longer name")


@pytest.fixture(scope="module")
def found(ends: Ends) -> Measurements:
    measured: Measurements = load_plugin("measures", "gram")(
        objective_for(ends, BATCHES, classes=CLASSES)
    )
    return measured


def rows_into(ends: Ends, name: str, alpha: float) -> Tensor:
    """All inputs of one linear map, (rows, inputs), float64, by a hook in ``CLIPModel.forward``;
    padding left out."""
    reference = Reference(ends, classes=CLASSES).at(alpha)
    seen: list[Tensor] = []
    module = reference.model.get_submodule(name.removesuffix(".weight"))
    module.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0].detach()))
    pixels = torch.cat([batch.pixels for batch in BATCHES]).double()
    with torch.no_grad():
        reference.model(pixel_values=pixels, **reference.tokens)
    (inputs,) = seen
    if name.startswith("text_model"):
        kept = reference.tokens["attention_mask"].bool()
        assert not bool(kept.all())  # otherwise there is no padding to leave out
        return inputs[kept]
    return inputs.reshape(-1, inputs.shape[-1])


@pytest.mark.parametrize(
    "name", [VISION, TEXT, "visual_projection.weight", "text_projection.weight"]
)
def test_gram_matrices_are_those_of_all_inputs(ends: Ends, found: Measurements, name: str) -> None:
    for statistic, alpha in (("gram_zeroshot", 0.0), ("gram_finetuned", 1.0)):
        rows = rows_into(ends, name, alpha)
        assert torch.allclose(
            found.tensors[statistic][name].double(), rows.T @ rows, rtol=1e-4, atol=1e-3
        )
    assert set(found.tensors["gram_zeroshot"]) == set(found.tensors["gram_finetuned"])
    assert "vision_model.embeddings.patch_embedding.weight" not in found.tensors["gram_zeroshot"]
    assert found.notes == ("4 weights of two or more dimensions are not linear maps",)


@pytest.mark.parametrize(("name", "alpha"), [(VISION, 0.2), (TEXT, 0.5)])
def test_the_merge_is_least_squares_on_the_outputs(
    ends: Ends, found: Measurements, name: str, alpha: float
) -> None:
    """Inputs and outputs of both checkpoints stacked, weighted by alpha, and solved without a Gram
    matrix."""
    decision = decide(task_of(ends, found), "regmean", alpha=alpha, off_diagonal=1.0)
    factor = decision.scores[name].astype(np.float64)
    weights = [load_file(folder / "model.safetensors")[name].double().numpy() for folder in ends]
    rows = [rows_into(ends, name, end).numpy() for end in (0.0, 1.0)]
    # a ridge, which keeps the weights where the inputs are zero
    ridge = np.sqrt(1e-6 * np.mean([(each**2).sum(axis=0).mean() for each in rows]))
    inputs = [
        np.sqrt(share) * np.vstack([each, ridge * np.eye(each.shape[1])])
        for share, each in zip((1 - alpha, alpha), rows, strict=True)
    ]
    targets = [each @ weight.T for each, weight in zip(inputs, weights, strict=True)]
    expected = np.linalg.lstsq(np.vstack(inputs), np.vstack(targets), rcond=None)[0].T
    change = weights[1] - weights[0]
    error = np.abs(weights[0] + alpha * change @ factor - expected).max()
    assert error <= 5e-3 * np.abs(change).max()
    # otherwise the factor has no effect
    assert np.abs(weights[0] + alpha * change - expected).max() > 20 * error


def test_a_map_that_torch_multiplies_by_itself_is_not_regressed(
    images: Path, tmp_path: Path
) -> None:
    """Hooks of the output projection of torch's attention never run."""
    pair = save_open_clip_pair(tmp_path, model_config())
    plan = clipmerge.plan(*pair, "regmean", data=images, verdict=False, allow=["at-chance"])
    assert any(
        "attn.in_proj" in name for name in load_file(pair[0] / "open_clip_model.safetensors")
    )
    assert plan.scores
    for name, score in plan.scores.items():
        assert not np.array_equal(score, np.eye(len(score))), name
