"""Checkpoints as training libraries write them: each merges as a plain folder does, or names the way there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPModel, CLIPVisionModel

from clipmerge.checkpoint import open_checkpoint
from clipmerge.checkpoint.wrappers import unwrap
from clipmerge.errors import CheckpointError
from tests.support.command import clipmerge, refused

Folders = tuple[Path, Path]
Weights = dict[str, Tensor]


def weights_of(folder: Path) -> Weights:
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def expected(pair: Folders, tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """The merge of the plain folders."""
    output = tmp_path_factory.mktemp("expected") / "out"
    assert clipmerge("merge", *pair, "--recipe", "wise-ft", "--output", output).code == 0
    return weights_of(output)


def check_merge(pair: Folders, finetuned: Path | str, expected: Weights, output: Path, *flags: object) -> str:
    """Merge, compare with the plain merge, load the result with transformers, and return the warnings."""
    ended = clipmerge("merge", pair[0], finetuned, "--recipe", "wise-ft", "--output", output, *flags)
    assert ended.code == 0, ended.err
    found = weights_of(output)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    CLIPModel.from_pretrained(output)
    return " ".join(json.loads((output / "clipmerge.json").read_text())["warnings"])


def wrapped(weights: Weights) -> Weights:
    inside = {f"clip.{name}": value for name, value in weights.items()}
    return inside | {"head.weight": torch.ones(3, 16), "head.bias": torch.zeros(3)}


@pytest.mark.parametrize("form", ["pt", "safetensors", "lightning"])
def test_a_module_with_a_clip_and_a_head_of_its_own(
    pair: Folders, expected: Weights, tmp_path: Path, form: str
) -> None:
    state = wrapped(weights_of(pair[1]))
    file = tmp_path / ("model.safetensors" if form == "safetensors" else "last.ckpt")
    if form == "safetensors":
        save_file(state, file)
    elif form == "pt":
        torch.save(state, file)
    else:
        state = {f"net.{name}": value for name, value in state.items()}
        torch.save({"epoch": 3, "pytorch-lightning_version": "2.5.0", "state_dict": state, "loops": {}}, file)
    told = check_merge(pair, file, expected, tmp_path / "out")
    assert "the CLIP is what lies under" in told
    assert "2 tensors beside it are not part of a CLIP and are left out: " in told
    assert "head.weight" in told


def test_towers_under_names_of_their_own(pair: Folders, expected: Weights, tmp_path: Path) -> None:
    places = {"vision_model": "images", "visual_projection": "images"}
    state = {
        f"{places.get(name.partition('.')[0], 'words')}.{name}": value for name, value in weights_of(pair[1]).items()
    }
    torch.save(state, tmp_path / "x.pt")
    assert "images" in check_merge(pair, tmp_path / "x.pt", expected, tmp_path / "out")


@pytest.mark.parametrize("form", ["pt", "safetensors"])
def test_two_copies_in_one_state_dict(pair: Folders, expected: Weights, tmp_path: Path, form: str) -> None:
    """As Lightning modules have that keep a moving average: the first is taken, and the other is named."""
    zeroshot, finetuned = map(weights_of, pair)
    state = {f"model.{name}": value for name, value in zeroshot.items()}
    state |= {f"ema_model.{name}": value for name, value in finetuned.items()}
    file = tmp_path / f"x.{form}"
    save_file(state, file) if form == "safetensors" else torch.save(state, file)
    note = str(open_checkpoint(str(file)).note)
    assert "under model; ema_model holds the same parameters (--state-key ema_model takes it)" in note
    check_merge(pair, file, expected, tmp_path / "out", "--state-key", "ema_model")
    line = refused(clipmerge("merge", pair[0], file, "-r", "wise-ft", "-o", tmp_path / "no", "--state-key", "teacher"))
    assert "nothing" in line
    assert "teacher" in line


@pytest.mark.parametrize(
    ("ema", "key"), [(lambda w: w, "ema"), (lambda w: {"decay": 0.999, "shadow": w}, "ema.shadow")]
)
def test_model_and_moving_average_in_one_file(
    pair: Folders, expected: Weights, tmp_path: Path, ema: Callable[[Weights], Any], key: str
) -> None:
    zeroshot, finetuned = map(weights_of, pair)
    optimizer = {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 0.1}]}
    torch.save({"model": zeroshot, "ema": ema(finetuned), "optimizer": optimizer, "epoch": 3}, tmp_path / "x.pt")
    note = str(open_checkpoint(str(tmp_path / "x.pt")).note)
    assert note.endswith(f"the weights are those under model; {key} holds weights too (--state-key {key} takes them)")
    told = check_merge(pair, tmp_path / "x.pt", expected, tmp_path / "out", "--state-key", key)
    assert f"the weights are those under {key}" in told
    record = json.loads((tmp_path / "out" / "clipmerge.json").read_text())
    assert record["finetuned"][0]["source"] == f"{tmp_path / 'x.pt'}#{key}"
    assert f"--state-key {key}" in record["command"]
    line = refused(clipmerge("merge", pair[0], tmp_path / "x.pt", "-r", "wise-ft", "--state-key", "emma", "--dry-run"))
    assert "holds nothing under 'emma' (--state-key), but model, ema, optimizer, epoch" in line


def test_a_part_is_named_in_the_source_too(pair: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In plans, which are applied from another folder, and as a checkpoint that an output must not replace."""
    monkeypatch.chdir(tmp_path)
    zeroshot, finetuned = map(weights_of, pair)
    torch.save({"model": zeroshot, "ema": finetuned}, "x.pt")
    assert clipmerge("plan", pair[0], "x.pt#ema", "--recipe", "wise-ft", "--output", "plan.json").code == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert clipmerge("apply", tmp_path / "plan.json", "--output", "out").code == 0
    merged = weights_of(Path("out"))["visual_projection.weight"]
    both = (zeroshot["visual_projection.weight"], finetuned["visual_projection.weight"])
    assert torch.allclose(merged, (both[0] + both[1]) / 2, atol=1e-7)
    monkeypatch.chdir(tmp_path)
    shutil.move("x.pt", "y.pt#ema")
    assert str(open_checkpoint("y.pt#ema").note).endswith("ema holds weights too (--state-key ema takes them)")


def test_a_folder_of_sentence_transformers(pair: Folders, expected: Weights, tmp_path: Path) -> None:
    """The layout until version 5: the CLIP in a folder of the first module."""
    folder = tmp_path / "st"
    shutil.copytree(pair[1], folder / "0_CLIPModel")
    module = {"idx": 0, "name": "0", "path": "0_CLIPModel", "type": "sentence_transformers.models.CLIPModel"}
    (folder / "modules.json").write_text(json.dumps([module]))
    (folder / "config_sentence_transformers.json").write_text('{"__version__": {"sentence_transformers": "4.1.0"}}')
    told = check_merge(pair, folder, expected, tmp_path / "out")
    assert "is a folder of sentence-transformers, and its CLIP is 0_CLIPModel" in told
    for modules in ("[]", "{", '[{"path": "../elsewhere"}]', '[{"path": 3}, 4]'):
        (folder / "modules.json").write_text(modules)
        with pytest.raises(CheckpointError, match=r"no model\.safetensors in"):
            open_checkpoint(str(folder))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("below", ["", "pytorch_model_fsdp_0"])
def test_a_distributed_checkpoint_names_the_command_that_works(
    pair: Folders, expected: Weights, tmp_path: Path, below: str
) -> None:
    from torch.distributed import checkpoint as dcp
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    folder = tmp_path / "step-100"
    dcp.save({"model": weights_of(pair[1])}, checkpoint_id=folder / below)
    line = refused(clipmerge("merge", pair[0], folder, "-r", "wise-ft", "-o", tmp_path / "no"))
    target = f"{folder / below}.pt"
    command = f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {folder / below} {target}"
    assert "is a checkpoint of torch.distributed.checkpoint (FSDP), whose weights lie in pieces; put them" in line
    assert f"`{command}`" in line
    piece = next((folder / below).glob("*.distcp"))
    assert command in refused(clipmerge("merge", pair[0], piece, "-r", "wise-ft", "-o", tmp_path / "no"))
    dcp_to_torch_save(folder / below, target)
    check_merge(pair, target, expected, tmp_path / "out")


def test_a_deepspeed_folder_names_its_own_script(pair: Folders, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-500"
    step = folder / "global_step500"
    step.mkdir(parents=True)
    (folder / "latest").write_text("global_step500")
    torch.save({"module": {}}, step / "zero_pp_rank_0_mp_rank_00_model_states.pt")
    torch.save({"optimizer_state_dict": {}}, step / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt")
    flags = ("--recipe", "wise-ft", "--output", tmp_path / "no")
    line = refused(clipmerge("merge", pair[0], folder, *flags))
    assert f"`python -m deepspeed.utils.zero_to_fp32 {folder} {folder}-weights`" in line
    (folder / "zero_to_fp32.py").write_text("")
    for place in (folder, step):
        line = refused(clipmerge("merge", pair[0], place, *flags))
        assert "is a DeepSpeed checkpoint, whose weights lie in pieces; put them together with " in line
        assert f"`python {folder / 'zero_to_fp32.py'} {folder} {folder}-weights`, and give the result" in line


def test_accelerate_saves_folders_that_merge(pair: Folders, expected: Weights, tmp_path: Path) -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model = accelerator.prepare(CLIPModel.from_pretrained(pair[1]))
    accelerator.save_model(model, tmp_path / "saved")
    accelerator.save_state(tmp_path / "state")
    for place in ("saved", "state"):
        check_merge(pair, tmp_path / place, expected, tmp_path / f"out-{place}")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.compile's own imports
@pytest.mark.parametrize("form", ["parallel", "compiled"])
def test_wrapped_by_pytorch(pair: Folders, expected: Weights, tmp_path: Path, form: str) -> None:
    model = CLIPModel.from_pretrained(pair[1])
    holder = torch.nn.DataParallel(model) if form == "parallel" else torch.compile(model)
    state = holder.state_dict()
    assert next(iter(state)).startswith(("module.", "_orig_mod."))
    torch.save({"model_state_dict": state, "epoch": 1}, tmp_path / "x.pt")
    assert "CLIP is what lies" not in check_merge(pair, tmp_path / "x.pt", expected, tmp_path / "out")


def test_the_vision_tower_alone(pair: Folders, expected: Weights, tmp_path: Path) -> None:
    CLIPVisionModel.from_pretrained(pair[1]).save_pretrained(tmp_path / "vision")
    assert clipmerge("merge", pair[0], tmp_path / "vision", "-r", "wise-ft", "-o", tmp_path / "out").code == 0
    merged, base = weights_of(tmp_path / "out"), weights_of(pair[0])
    for name, value in merged.items():
        assert torch.equal(value, (expected if name.startswith("vision_model") else base)[name]), name


def test_a_clip_by_itself_stays_as_it_is() -> None:
    for keys in (["visual.proj", "logit_scale"], ["clip.visual.proj", "clip.logit_scale"], ["a", "b.c"]):
        assert unwrap(keys).keys == dict(zip(keys, keys, strict=True))
        assert unwrap(keys).note is None
    assert list(unwrap(["model.visual.proj", "classification_head.weight"]).keys) == [
        "visual.proj",
        "classification_head.weight",
    ]
    assert unwrap(["visual.proj", "ema.visual.proj", "ema.scale"]).keys == {"visual.proj": "visual.proj"}


def test_of_a_part_the_weights_are_searched_in_it_alone(tmp_path: Path) -> None:
    one, other = ({"visual.w": torch.full((2,), value)} for value in (1.0, 2.0))
    torch.save({"run": {"state_dict": one, "ema": other}, "state_dict": other}, tmp_path / "x.pt")
    found = open_checkpoint(f"{tmp_path / 'x.pt'}#run")
    assert torch.equal(found.tensor("visual.w"), one["visual.w"])
    assert str(found.note).endswith("the weights are those under run.state_dict")  # the user has chosen


def test_settings_beside_the_weights_are_no_other_weights(tmp_path: Path) -> None:
    content = {"model": {"visual.w": torch.ones(2)}, "hyper": {"rate": {"base": 0.1}}, "ema": {"decay": 0.99}}
    torch.save(content, tmp_path / "x.pt")
    assert str(open_checkpoint(str(tmp_path / "x.pt")).note).endswith("the weights are those under model")
