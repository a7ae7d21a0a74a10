"""Learned coefficients: entry by entry in float32 scalars, kept beside the plan, and refused when
they do not fit."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clipmerge.merging.torch_chunks import coefficients_of_run
from clipmerge.run import Run
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from clipmerge import methods
from clipmerge.api.apply import open_plan, write_merge
from clipmerge.api.merge import prepare, write_plan
from clipmerge.errors import OutputError, PlanError
from clipmerge.files.hashes import sha256_of
from clipmerge.methods import Decision, Task
from clipmerge.planning.plan import LayerPlan, Plan, read_plan, rows_shape
from clipmerge.progress import Progress
from clipmerge.report.text import texts_of
from tests.support.command import one_line
from tests.support.raw_safetensors import edit_json
from tests.support.tasks import in_chunks, request_for
from tests.support.tiny_clip import Folders, layer_of

FC1 = "vision_model.encoder.layers.1.mlp.fc1.weight"


def coefficients_for(
    task: Task, forms: tuple[str, ...] = ("whole", "row", "entry")
) -> dict[str, Tensor]:
    """The forms in turn, one per parameter, with exact zeros and ones among the numbers."""
    generator = torch.Generator().manual_seed(3)
    found = {}
    for place, (name, shape) in enumerate(sorted(task.shapes.items())):
        form = forms[place % len(forms)]
        wanted = {"whole": (), "row": rows_shape(shape), "entry": shape}[form]
        drawn = torch.rand(wanted, generator=generator) * 1.4 - 0.2
        found[name] = drawn.clamp(0, 1)
    return found


@pytest.fixture
def decided(pair: Folders, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make a run whose method gives the coefficients above."""

    def run(forms: tuple[str, ...] = ("whole", "row", "entry"), sets: tuple[str, ...] = ()) -> Run:
        def method(task: Task, **options: Any) -> Decision:
            layers = {layer: LayerPlan(alpha=0.5, reason="learned") for layer in task.layers}
            return Decision(layers, "learned", coefficients=coefficients_for(task, forms))

        monkeypatch.setattr(methods, "load_plugin", lambda package, name: method)
        made = prepare(request_for(pair, "wise-ft", *sets))
        monkeypatch.undo()
        return made

    return run


def slow_entry(theta_0: float, theta_1: float, coefficient: float) -> float:
    base, change = np.float32(theta_0), np.float32(np.float32(theta_1) - np.float32(theta_0))
    if coefficient in (0, 1):
        return theta_1 if coefficient else theta_0
    return float(np.float32(base + np.float32(change * np.float32(coefficient))))


def test_the_merge_is_the_formula_entry_by_entry(
    decided: Any, pair: Folders, tmp_path: Path
) -> None:
    run = decided()
    write_merge(run, tmp_path / "whole")
    zeroshot, finetuned, merged = (
        load_file(f / "model.safetensors") for f in (*pair, tmp_path / "whole")
    )
    coefficients = coefficients_for(Task(run.inputs))
    checked = 0
    for name in (FC1, FC1.replace("weight", "bias"), "logit_scale", "visual_projection.weight"):
        spread = coefficients[name].broadcast_to(merged[name].shape)
        for index in np.ndindex(tuple(merged[name].shape)):
            values = (float(tensor[index]) for tensor in (zeroshot[name], finetuned[name], spread))
            assert float(merged[name][index]) == slow_entry(*values), (name, index)
            checked += 1
    assert checked > 2000
    assert run.plan
    for name, tensor in in_chunks(run.inputs, run.plan, 17).items():
        assert torch.equal(tensor, merged[name])


@pytest.mark.uncounted
@pytest.mark.parametrize("value", [0, 1])
@pytest.mark.parametrize("form", ["whole", "row", "entry"])
def test_zeros_and_ones_are_a_sources_bytes(
    decided: Any, pair: Folders, tmp_path: Path, value: int, form: str
) -> None:
    run = decided((form,))
    for coefficient in run.plan.coefficients.values():
        coefficient.fill_(value)
    write_merge(run, tmp_path / "out")
    merged, source = (load_file(f / "model.safetensors") for f in (tmp_path / "out", pair[value]))
    for name, tensor in merged.items():
        assert torch.equal(
            tensor.view(-1).view(torch.uint8), source[name].view(-1).view(torch.uint8)
        ), name


def test_the_plan_tells_mean_and_range(decided: Any) -> None:
    run = decided()
    coefficients = coefficients_for(Task(run.inputs))
    for layer, names in Task(run.inputs).layers.items():
        entries = []
        for name in names:
            entries += (
                coefficients[name].broadcast_to(Task(run.inputs).shapes[name]).flatten().tolist()
            )
        told = run.plan.layers[layer]
        assert told.alpha == pytest.approx(sum(entries) / len(entries), abs=1e-7)
        assert told.alpha_range == (min(entries), max(entries))


def test_an_override_gives_its_layers_one_alpha(
    decided: Any, pair: Folders, tmp_path: Path
) -> None:
    run = decided(
        sets=("overrides=[{layers: vision.*, alpha: 0}, {layers: text.1.mlp, density: 0.5}]",)
    )
    assert not any(layer_of(name).startswith("vision.") for name in run.plan.coefficients)
    write_merge(run, tmp_path / "out")
    zeroshot, merged = (load_file(f / "model.safetensors") for f in (pair[0], tmp_path / "out"))
    for name, tensor in merged.items():
        if layer_of(name).startswith("vision."):
            assert torch.equal(tensor, zeroshot[name])
    fc1 = FC1.replace("vision", "text")
    coefficient = coefficients_for(Task(run.inputs))[fc1]
    intended = coefficient * (load_file(pair[1] / "model.safetensors")[fc1] - zeroshot[fc1])
    kept = merged[fc1] != zeroshot[fc1]
    assert int(kept.sum()) == pytest.approx(kept.numel() / 2, abs=1)
    assert float(intended.abs()[kept].min()) >= float(intended.abs()[~kept].max())


@pytest.mark.parametrize("shape", [(5, 7), (5, 1), (), (1,)])
@pytest.mark.parametrize(("start", "stop"), [(0, 35), (0, 7), (3, 4), (6, 23), (34, 35)])
def test_a_run_gets_its_own_coefficients(shape: tuple[int, ...], start: int, stop: int) -> None:
    coefficient = torch.arange(1.0, 1 + max(1, int(np.prod(shape)))).view(shape)
    found = coefficients_of_run(coefficient, (5, 7), start, stop)
    expected = coefficient.broadcast_to(5, 7).flatten()[start:stop]
    assert torch.equal(torch.as_tensor(found).broadcast_to(stop - start), expected)


@pytest.fixture
def planned(decided: Any, tmp_path: Path) -> Path:
    write_plan(decided(), tmp_path / "plan.json")
    return tmp_path / "plan.json"


def rewrite(plan: Path, **changes: Tensor | None) -> None:
    """Change the tensors beside a plan and the hash in it, as a meddler would."""
    file = plan.with_suffix(".tensors.safetensors")
    held = {**load_file(file), **changes}
    save_file({name: tensor for name, tensor in held.items() if tensor is not None}, file)
    edit_json(plan, tensors={"sha256": sha256_of(file)})


def opened(plan: Path) -> Run:
    return open_plan(Plan.load(plan), Progress(), name=str(plan), hashed=True)


def test_a_plan_whose_coefficients_are_gone_or_changed_is_refused(planned: Path) -> None:
    file = planned.with_suffix(".tensors.safetensors")
    shutil.copy(file, file.with_name("other_tasks"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(
        PlanError, match="the tensors beside the plan: the file has changed; plan again"
    ):
        opened(planned)
    file.unlink()
    with pytest.raises(
        PlanError, match="the tensors beside the plan: the file is missing; plan again"
    ):
        opened(planned)
    file.with_name("other_tasks").rename(file)
    opened(planned)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"alpha": 0.123},
            r"'vision.1.mlp': alpha 0.123 and alpha_range are not .* remove alpha_range",
        ),
        ({"alpha_range": [0.5, 0.6]}, "are not the mean and range of its coefficients"),
        ({"alpha_range": [0.5]}, r"alpha_range"),
        ({"alpha_range": [0, "x"]}, r"alpha_range"),
    ],
)
def test_a_hand_edit_against_the_coefficients_is_refused(
    planned: Path, changes: dict[str, Any], message: str
) -> None:
    edit_json(planned, layers={"vision.1.mlp": changes})
    with one_line(PlanError, message):
        opened(planned)


def test_a_hand_edit_gives_a_layer_one_alpha(planned: Path, pair: Folders, tmp_path: Path) -> None:
    edit_json(planned, layers={"vision.1.mlp": {"alpha": 1, "alpha_range": None}})
    write_merge(opened(planned), tmp_path / "out")
    finetuned, merged = (load_file(f / "model.safetensors") for f in (pair[1], tmp_path / "out"))
    assert torch.equal(merged[FC1], finetuned[FC1])


def test_a_layer_that_a_plan_does_not_name_stays_zeroshot_and_is_told(planned: Path) -> None:
    data = json.loads(planned.read_text())
    del data["layers"]["logit_scale"]
    planned.write_text(json.dumps(data))
    run = opened(planned)
    told = "does not name 1 layer, which will stay zero-shot: logit_scale"
    assert told in " ".join(texts_of(run.plan.warnings if run.plan else ()))


def test_the_record_of_a_merge_is_told_as_that(tmp_path: Path) -> None:
    (tmp_path / "clipmerge.json").write_text('{"format": "clipmerge-record/3"}')
    with one_line(PlanError, "cannot be read .it is the record of a merge.; make one with"):
        read_plan(tmp_path / "clipmerge.json")


def test_a_full_disk_is_told_of_a_plans_tensors_too(
    decided: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left (os error 28)")

    run = decided()
    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OutputError, match="the disk is full; nothing was left behind"):
        write_plan(run, tmp_path / "plan.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {f"coefficients:{FC1}": torch.ones(1, 32)},
            r"of vision\S+fc1.weight have shape \(1, 32\), but the parameter",
        ),
        ({f"coefficients:{FC1}": torch.full((64, 32), float("nan"))}, "are not finite numbers"),
        ({f"coefficients:{FC1}": torch.ones(64, 32, dtype=torch.int64)}, "are not finite numbers"),
        ({"coefficients:nothing": torch.ones(1)}, "coefficients for nothing, which does not exist"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    planned: Path, changes: dict[str, Tensor], message: str
) -> None:
    rewrite(planned, **changes)
    with pytest.raises(PlanError, match=message):
        opened(planned)


def test_a_range_without_coefficients_is_refused(planned: Path) -> None:
    held = load_file(planned.with_suffix(".tensors.safetensors"))
    rewrite(
        planned, **{key: None for key in held if layer_of(key.partition(":")[2]) == "vision.1.mlp"}
    )
    with pytest.raises(
        PlanError, match=r"'vision.1.mlp' has an alpha_range, but the plan holds no coefficients"
    ):
        opened(planned)
    edit_json(planned, tensors=None)
    with pytest.raises(PlanError, match="has an alpha_range, but the plan holds no coefficients"):
        opened(planned)
    assert read_plan(planned).tensors is None
