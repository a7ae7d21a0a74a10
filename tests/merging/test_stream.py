"""The streamed merge: layers that a plan does not name, tensors that cannot be averaged, and NaN in
any place."""

from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from clipmerge.checkpoint import Inputs
from clipmerge.errors import CheckpointError, UsageError
from clipmerge.files.writer import RUN
from clipmerge.planning.plan import LayerPlan, Plan
from tests.support.raw_safetensors import edit
from tests.support.tasks import in_runs, inputs_of, plan_with
from tests.support.tiny_clip import Folders, layer_of

FC1 = "vision_model.encoder.layers.1.mlp.fc1.weight"
IDS = "text_model.embeddings.position_ids"


def plan_for(inputs: Inputs, layer: LayerPlan | None = None, **options: Any) -> Plan:
    layers = options.pop("layers", None)
    return plan_with(
        dict.fromkeys(inputs.layers, layer or LayerPlan(alpha=0.5)) if layers is None else layers,
        **options,
    )


def stream(
    inputs: Inputs, plan: Plan, scores: dict[str, Tensor] | None = None, *, run: int = RUN
) -> dict[str, Tensor]:
    plan = plan.with_tensors(scores or {}, {})
    return in_runs(inputs, plan, run)


@pytest.mark.uncounted
@pytest.mark.parametrize("mask", [None, "magnitude", "random", "n-m", "spectral"])
def test_chunks_never_show(pair: Folders, mask: str | None) -> None:
    opened_pair = inputs_of(pair)
    layer = LayerPlan(alpha=0.3, mask=mask, density=0.5 if mask in ("magnitude", "random") else 1)
    whole = stream(opened_pair, plan_for(opened_pair, layer))
    for name, tensor in stream(opened_pair, plan_for(opened_pair, layer), run=17).items():
        assert torch.equal(tensor, whole[name])


LAYERS = {
    "alpha 0": LayerPlan(alpha=0),
    "alpha 0.5": LayerPlan(alpha=0.5),
    "alpha 1": LayerPlan(alpha=1),
    "alpha tiny": LayerPlan(alpha=1e-300),
    "magnitude": LayerPlan(alpha=0.5, mask="magnitude", density=0.5),
    "random": LayerPlan(alpha=0.5, mask="random", density=0.01),
    "spectral": LayerPlan(alpha=0.5, mask="spectral"),
    "not named": None,
}


@pytest.mark.parametrize(("value", "kind"), [("nan", "NaN"), ("inf", "Inf"), ("-inf", "Inf")])
@pytest.mark.parametrize("which", [0, 1])
def test_nan_and_inf_are_found_and_named(
    copies: Folders, value: str, kind: str, which: int
) -> None:
    expected = rf"{copies[which]}: tensor {FC1} holds {kind}; the checkpoint is broken"
    for start, dtype in enumerate((torch.float32, torch.float16, torch.bfloat16, torch.float64)):
        tensors = [load_file(folder / "model.safetensors")[FC1].to(dtype) for folder in copies]
        tensors[which].view(-1)[1234] = float(value)
        for folder, tensor in zip(copies, tensors, strict=True):
            edit(folder, **{FC1: tensor})
        broken = inputs_of(copies)
        for layer in list(LAYERS)[start % 2 :: 2]:  # every layer in two dtypes
            plan = plan_for(broken, layers={"vision.1.mlp": LAYERS[layer]} if LAYERS[layer] else {})
            with pytest.raises(CheckpointError, match=expected):
                stream(broken, plan, run=100)
        for folder, tensor in zip(copies, tensors, strict=True):
            edit(folder, **{FC1: torch.nan_to_num(tensor, 0, 0, 0)})


def test_what_a_narrow_output_cannot_hold_is_reported_to_overflow(copies: Folders) -> None:
    for folder in copies:
        edit(folder, **{FC1: torch.full((64, 32), 1e30)})
    told = f"tensor {FC1} overflows float16 when merged; use `dtype=float32`, or use an alpha"
    for named in ({}, *({"vision.1.mlp": LayerPlan(alpha=alpha)} for alpha in (0, 0.5, 1))):
        with pytest.raises(CheckpointError, match=told):
            stream(inputs_of(copies), plan_for(inputs_of(copies), layers=named, dtype="float16"))


def test_finite_values_whose_sum_overflows_are_no_fault(copies: Folders) -> None:
    large = torch.full((64, 32), 3e38)
    for folder in copies:
        edit(folder, **{FC1: large})
    plan = plan_for(inputs_of(copies), LayerPlan(alpha=1))  # which looks for NaN in the inputs
    assert torch.equal(stream(inputs_of(copies), plan)[FC1], large)


def test_a_masked_change_that_overflows_is_told_so_too(copies: Folders) -> None:
    for folder, value in zip(copies, (0.0, 1e30), strict=True):
        edit(folder, **{FC1: torch.full((64, 32), value)})
    layer = LayerPlan(alpha=1e10, mask="magnitude", density=0.5)
    with pytest.raises(CheckpointError, match=f"tensor {FC1} overflows float32 when merged"):
        stream(inputs_of(copies), plan_for(inputs_of(copies), layer))


@pytest.mark.parametrize(
    ("dtype_0", "dtype_1"),
    [
        ("int64", "int64"),
        ("int64", "int32"),
        ("int64", "float32"),
        ("float32", "int64"),
        ("int64", "bfloat16"),
    ],
)
def test_position_ids_are_copied_when_they_say_the_same(
    copies: Folders, dtype_0: str, dtype_1: str
) -> None:
    for folder, dtype in zip(copies, (dtype_0, dtype_1), strict=True):
        edit(folder, **{IDS: torch.arange(32).to(getattr(torch, dtype))[None]})
    merged = stream(inputs_of(copies), plan_for(inputs_of(copies)))
    assert torch.equal(merged[IDS], torch.arange(32).to(getattr(torch, dtype_0))[None])
    edit(copies[1], **{IDS: torch.arange(1, 33).to(getattr(torch, dtype_1))[None]})
    with pytest.raises(
        CheckpointError, match=f"integer tensor {IDS} differs from the zero-shot one"
    ):
        stream(inputs_of(copies), plan_for(inputs_of(copies)))


def test_position_ids_of_one_side_or_of_another_length(copies: Folders) -> None:
    for which in (0, 1):
        edit(copies[which], **{IDS: torch.arange(32)[None]})
        inputs = inputs_of(copies)
        assert not inputs.merges(IDS)
        assert (IDS in stream(inputs, plan_for(inputs))) is (which == 0)
        edit(copies[which], **{IDS: None})
    for folder, length in zip(copies, (32, 31), strict=True):
        edit(folder, **{IDS: torch.arange(length)[None]})
    with pytest.raises(CheckpointError, match=f"tensor {IDS} differs in shape"):
        stream(inputs_of(copies), plan_for(inputs_of(copies)))


def test_a_saliency_mask_without_scores_is_refused_unless_nothing_changed(
    pair: Folders, copies: Folders
) -> None:
    layers = {"vision.1.mlp": LayerPlan(alpha=0.5, mask="saliency", density=0.5)}
    with pytest.raises(
        UsageError,
        match=r"'vision\.1\.mlp' has the mask 'saliency', but the plan holds no scores for",
    ):
        stream(inputs_of(pair), plan_for(inputs_of(pair), layers=layers))
    same = {
        k: v
        for k, v in load_file(pair[0] / "model.safetensors").items()
        if layer_of(k) == "vision.1.mlp"
    }
    edit(copies[1], **same)
    merged = stream(inputs_of(copies), plan_for(inputs_of(copies), layers=layers))
    assert all(torch.equal(merged[name], tensor) for name, tensor in same.items())
