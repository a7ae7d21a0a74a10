"""The streamed merge: runs of any length, NaN and overflow, and integer tensors."""

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from clipmerge.errors import CheckpointError, UsageError
from clipmerge.planning.plan import LayerPlan
from tests.support.raw_safetensors import edit
from tests.support.tasks import in_runs, inputs_of, plan_with
from tests.support.tiny_clip import Folders, layer_of

FC1 = "vision_model.encoder.layers.1.mlp.fc1.weight"
IDS = "text_model.embeddings.position_ids"
HALF = LayerPlan(alpha=0.5)


def stream(
    folders: Folders, layer: LayerPlan | None = HALF, *, only: str = "", run: int = 1 << 20
) -> dict[str, Tensor]:
    """Merge all layers, or one, in runs of so many elements; no plan names the others."""
    inputs = inputs_of(folders)
    layers = dict.fromkeys([only] if only else inputs.layers, layer) if layer else {}
    return in_runs(inputs, plan_with(layers), run)


@pytest.mark.uncounted
@pytest.mark.parametrize("mask", [None, "magnitude", "random", "n-m", "spectral"])
def test_results_do_not_depend_on_chunks(pair: Folders, mask: str | None) -> None:
    layer = LayerPlan(alpha=0.3, mask=mask, density=0.5 if mask in ("magnitude", "random") else 1)
    whole = stream(pair, layer)
    for name, tensor in stream(pair, layer, run=17).items():
        assert torch.equal(tensor, whole[name])


#: Settings that use the weights of one model only, or drop some.
LAYERS = [
    *(LayerPlan(alpha=alpha) for alpha in (0, 1)),
    LayerPlan(alpha=0.5, mask="magnitude", density=0.5),
]


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("which", [0, 1])
def test_nan_and_inf_are_found_and_named(copies: Folders, value: str, which: int) -> None:
    kind = "NaN" if value == "nan" else "Inf"
    expected = rf"{copies[which]}: tensor {FC1} holds {kind}; the checkpoint is broken"
    whole = [load_file(folder / "model.safetensors")[FC1] for folder in copies]
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        tensors = [tensor.to(dtype, copy=True) for tensor in whole]
        tensors[which].view(-1)[1234] = float(value)
        for folder, tensor in zip(copies, tensors, strict=True):
            edit(folder, **{FC1: tensor})
        for layer in LAYERS:
            with pytest.raises(CheckpointError, match=expected):
                stream(copies, layer, only="vision.1.mlp", run=100)


@pytest.mark.parametrize("layer", [None, *(LayerPlan(alpha=alpha) for alpha in (0, 0.5, 1))])
def test_an_overflow_is_reported_with_a_wider_dtype(
    copies: Folders, layer: LayerPlan | None
) -> None:
    for folder in copies:
        edit(folder, **{FC1: torch.full((64, 32), 1e30)})
    message = f"tensor {FC1} overflows float16 when merged; use `dtype=float32`, or use an alpha"
    plan = plan_with({"vision.1.mlp": layer} if layer else {}, dtype="float16")
    with pytest.raises(CheckpointError, match=message):
        in_runs(inputs_of(copies), plan)


def test_a_change_that_overflows_is_an_error_and_a_large_sum_is_none(copies: Folders) -> None:
    large = torch.full((64, 32), 3e38)
    for folder in copies:
        edit(folder, **{FC1: large})
    assert torch.equal(stream(copies, LayerPlan(alpha=1))[FC1], large)
    edit(copies[0], **{FC1: torch.zeros(64, 32)})
    with pytest.raises(CheckpointError, match=f"tensor {FC1} overflows float32 when merged"):
        stream(copies, LayerPlan(alpha=1e10, mask="magnitude", density=0.5))


@pytest.mark.parametrize(
    ("dtype_0", "dtype_1"),
    [("int64", "int32"), ("int64", "float32"), ("float32", "int64"), ("int64", "bfloat16")],
)
def test_equal_position_ids_are_copied(copies: Folders, dtype_0: str, dtype_1: str) -> None:
    ids = torch.arange(32)[None]
    for folder, dtype in zip(copies, (dtype_0, dtype_1), strict=True):
        edit(folder, **{IDS: ids.to(getattr(torch, dtype))})
    assert torch.equal(stream(copies)[IDS], ids.to(getattr(torch, dtype_0)))
    message = f"{copies[1]}: integer tensor {IDS} differs from the zero-shot one"
    for other in (ids + 1, ids[:, :31]):
        edit(copies[1], **{IDS: other.to(getattr(torch, dtype_1))})
        with pytest.raises(CheckpointError, match=message):
            stream(copies)


@pytest.mark.parametrize("which", [0, 1])
def test_position_ids_of_one_side_are_kept_if_it_is_zero_shot(copies: Folders, which: int) -> None:
    edit(copies[which], **{IDS: torch.arange(32)[None]})
    assert (IDS in stream(copies)) is (which == 0)


def test_a_saliency_mask_without_scores_is_refused_unless_nothing_changed(copies: Folders) -> None:
    layer = LayerPlan(alpha=0.5, mask="saliency", density=0.5)
    message = r"'vision\.1\.mlp' has the mask 'saliency', but the plan holds no scores for"
    with pytest.raises(UsageError, match=message):
        stream(copies, layer, only="vision.1.mlp")
    zeroshot = load_file(copies[0] / "model.safetensors")
    same = {name: zeroshot[name] for name in zeroshot if layer_of(name) == "vision.1.mlp"}
    edit(copies[1], **same)
    merged = stream(copies, layer, only="vision.1.mlp")
    assert all(torch.equal(merged[name], tensor) for name, tensor in same.items())
