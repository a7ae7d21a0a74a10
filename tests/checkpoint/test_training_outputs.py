"""Checkpoints as training libraries write them: each is read as a plain folder is, or names the way
there."""

import argparse
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from transformers import CLIPModel

from clipmerge.checkpoint import open_checkpoint
from clipmerge.errors import CheckpointError
from clipmerge.report.text import texts_of
from tests.support.command import anywhere, clipmerge, done, refused
from tests.support.tasks import inputs_of
from tests.support.tiny_clip import Folders

Weights = dict[str, Tensor]


def weights_of(folder: Path) -> Weights:
    return load_file(folder / "model.safetensors")


def read(pair: Folders, source: Path | str, expected: Weights | None = None) -> str:
    """Check that a source has the fine-tuned weights under the pair's names; its notes."""
    inputs = inputs_of((pair[0], Path(source)))
    expected = expected or weights_of(pair[1])
    assert inputs.finetuned_keys[0].keys() == expected.keys()
    assert all(torch.equal(inputs.theta_1(name), value) for name, value in expected.items())
    return " ".join(texts_of(inputs.notes))


def under(prefix: str, weights: Weights) -> Weights:
    return {f"{prefix}.{name}": value for name, value in weights.items()}


def with_head(weights: Weights) -> Weights:
    """A module with a CLIP and a head of its own."""
    return {**under("clip", weights), "head.weight": torch.ones(3, 16), "head.bias": torch.zeros(3)}


def with_towers_apart(weights: Weights) -> Weights:
    places = {"vision_model": "images", "visual_projection": "images"}
    return {
        f"{places.get(name.partition('.')[0], 'words')}.{name}": value
        for name, value in weights.items()
    }


STEP = torch.tensor(9)
# each block under FSDP, each MLP in a checkpoint of activations
WRAPPED, WRAPPERS = (
    re.compile(r"(layers\.\d+\.)(mlp\.)?"),
    r"\1_fsdp_wrapped_module.\2_checkpoint_wrapped_module.",
)
HEAD_LEFT = "left out 2 tensors beside it, not part of a CLIP: "
#: What is saved, and a part of the note.
FORMS: dict[str, tuple[Callable[[Weights], Any], str]] = {
    "beside other things": (lambda w: {**w, "_metadata": {"version": 1}, "step": 3}, ""),
    "parallel, then compiled": (lambda w: under("_orig_mod.module", w), ""),
    "a loss and a step among the weights": (
        lambda w: {**w, "train_loss": torch.tensor(0.3), "global_step": STEP},
        "",
    ),
    "the most copied loop for openai/CLIP": (
        lambda w: {
            "epoch": 3,
            "model_state_dict": w,
            "optimizer_state_dict": {"state": {}},
            "loss": torch.tensor(0.3),
        },
        "are those under model_state_dict",
    ),
    "PyTorch's ImageNet example": (
        lambda w: {
            "arch": "clip",
            "state_dict": under("module", w),
            "best_acc1": torch.tensor(71.2),
            "optimizer": {},
        },
        "are those under state_dict",
    ),
    "Lightning": (
        lambda w: {
            "global_step": STEP,
            "callbacks": {},
            "state_dict": under("model", w),
            "loops": {"fit_loop": {}},
        },
        "are those under state_dict",
    ),
    "options, numbers and paths beside the weights": (
        lambda w: {
            "model": w,
            "args": argparse.Namespace(lr=1e-5, output=Path("runs/1")),
            "best": np.float64(0.7),
            "steps": np.int64(3),
            "where": Path("runs"),
        },
        "are those under model",
    ),
    "a step inside, and nested": (
        lambda w: {"step": STEP, "state_dict": {"model": w}},
        "under state_dict.model",
    ),
    "settings that are no other weights": (
        lambda w: {
            "model": w,
            "optimizer": {"w": torch.zeros(2)},
            "hyper": {"rate": {"base": 0.1}},
            "ema": {"d": 0.9},
        },
        "are those under model",
    ),
    "an average of wrapped modules": (
        lambda w: {
            "n_averaged": STEP,
            **{f"module.{WRAPPED.sub(WRAPPERS, name)}": value for name, value in w.items()},
        },
        "",
    ),
    "a head of its own": (with_head, HEAD_LEFT),
    "towers apart": (with_towers_apart, "the CLIP is what lies under"),
}


@pytest.mark.parametrize("form", FORMS)
def test_what_training_saves_is_read(pair: Folders, tmp_path: Path, form: str) -> None:
    content, note = FORMS[form]
    saved = content(weights_of(pair[1]))
    torch.save(saved, tmp_path / "x.pt")
    said = read(pair, tmp_path / "x.pt")
    assert note in said
    assert ("CLIP is what lies" in said) is (form.startswith(("a head", "towers")))
    assert "holds weights too" not in said
    if all(isinstance(value, Tensor) for value in saved.values()):
        save_file(saved, tmp_path / "x.safetensors")
        assert note in read(pair, tmp_path / "x.safetensors")


def test_a_loss_beside_weights_of_an_unknown_name_is_not_taken_for_them(tmp_path: Path) -> None:
    content = {
        "mine": {"visual.proj": torch.ones(2), "visual.a": torch.ones(2)},
        "loss": torch.ones(1),
    }
    torch.save(content, tmp_path / "x")
    line = refused(clipmerge("inspect", tmp_path / "x"))
    assert "holds no weights under a known name" in line
    assert line.endswith("or name what holds them with --state-key mine")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.compile's own imports
def test_wrapped_by_pytorch_and_saved_by_accelerate(pair: Folders, tmp_path: Path) -> None:
    model = CLIPModel.from_pretrained(pair[1])
    for holder in (torch.nn.DataParallel(model), torch.compile(model)):
        state = holder.state_dict()
        assert next(iter(state)).startswith(("module.", "_orig_mod."))
        torch.save({"model_state_dict": state, "epoch": 1}, tmp_path / "x.pt")
        assert "CLIP is what lies" not in read(pair, tmp_path / "x.pt")
        save_file(under("ema", state), tmp_path / "x.safetensors")
        read(pair, f"{tmp_path / 'x.safetensors'}#ema")
    accelerator = Accelerator(cpu=True)
    model = accelerator.prepare(model)
    accelerator.save_model(model, tmp_path / "saved")
    accelerator.save_state(tmp_path / "state")
    for place in ("saved", "state"):
        read(pair, tmp_path / place)


@pytest.mark.parametrize("form", ["pt", "safetensors"])
def test_two_copies_in_one_state_dict(pair: Folders, tmp_path: Path, form: str) -> None:
    """As Lightning modules have that keep a moving average: the first is taken, and the other is
    named."""
    zeroshot, finetuned = map(weights_of, pair)
    state, file = under("model", zeroshot) | under("ema_model", finetuned), tmp_path / f"x.{form}"
    save_file(state, file) if form == "safetensors" else torch.save(state, file)
    note = read(pair, file, zeroshot)
    assert (
        "under model; ema_model holds the same parameters (`state_key` ema_model takes it)" in note
    )
    read(pair, f"{file}#ema_model")
    line = refused(
        clipmerge(
            "merge", pair[0], file, "-r", "wise-ft", "-o", tmp_path / "no", "--state-key", "teacher"
        )
    )
    assert "nothing" in line
    assert "teacher" in line


@pytest.mark.parametrize(
    ("ema", "key"), [(lambda w: w, "ema"), (lambda w: {"decay": 0.9, "shadow": w}, "ema.shadow")]
)
def test_model_and_average_in_one_file(
    pair: Folders, tmp_path: Path, ema: Callable[[Weights], Any], key: str
) -> None:
    zeroshot, finetuned = map(weights_of, pair)
    optimizer = {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 0.1}]}
    file, output = tmp_path / "x.pt", tmp_path / "out"
    torch.save({"model": zeroshot, "ema": ema(finetuned), "optimizer": optimizer, "epoch": 3}, file)
    note = read(pair, file, zeroshot)
    assert (
        f"the weights are those under model; {key} holds weights too (`state_key` {key} takes them)"
        in note
    )
    merge = ("merge", pair[0], file, "--recipe", "wise-ft", "--output", output, "--state-key")
    done(*merge, key)
    done("merge", *pair, "--recipe", "wise-ft", "--output", tmp_path / "plain")
    assert (output / "model.safetensors").read_bytes() == (
        tmp_path / "plain" / "model.safetensors"
    ).read_bytes()
    record = json.loads((output / "clipmerge.json").read_text())
    assert f"the weights are those under {key}" in " ".join(
        warning["text"] for warning in record["warnings"]
    )
    assert record["finetuned"][0]["source"] == f"{file}#{key}"
    assert f"--state-key {key}" in record["command"]
    line = refused(clipmerge(*merge, "emma", *anywhere()))
    assert "holds nothing under 'emma' (--state-key), but model, ema, optimizer, epoch" in line


def test_a_part_is_named_in_the_source_too(
    pair: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In plans, which are applied from another folder, and as a checkpoint that an output must not
    replace."""
    monkeypatch.chdir(tmp_path)
    zeroshot, finetuned = map(weights_of, pair)
    torch.save({"model": zeroshot, "ema": finetuned}, "x.pt")
    done("plan", pair[0], "x.pt#ema", "--recipe", "wise-ft", "--output", "plan.json")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    done("apply", tmp_path / "plan.json", "--output", "out")
    name = "visual_projection.weight"
    assert torch.allclose(
        weights_of(Path("out"))[name], (zeroshot[name] + finetuned[name]) / 2, atol=1e-7
    )
    monkeypatch.chdir(tmp_path)
    shutil.move("x.pt", "y.pt#ema")
    assert "; ".join(texts_of(open_checkpoint("y.pt#ema").notes)).endswith(
        "ema holds weights too (`state_key` ema takes them)"
    )


def test_of_a_part_the_weights_are_searched_in_it_alone(tmp_path: Path) -> None:
    one, other = ({"visual.w": torch.full((2,), value)} for value in (1.0, 2.0))
    torch.save({"run": {"state_dict": one, "ema": other}, "state_dict": other}, tmp_path / "x.pt")
    found = open_checkpoint(f"{tmp_path / 'x.pt'}#run")
    assert torch.equal(found.tensor("visual.w"), one["visual.w"])
    assert "; ".join(texts_of(found.notes)).endswith(
        "the weights are those under run.state_dict"
    )  # the user has chosen
    torch.save([torch.zeros(2)], tmp_path / "x.pt")
    with pytest.raises(
        CheckpointError, match=r"holds nothing under 'ema' \(`state_key`\), but a list$"
    ):
        open_checkpoint(f"{tmp_path / 'x.pt'}#ema")


def test_a_folder_of_sentence_transformers(pair: Folders, tmp_path: Path) -> None:
    """The layout until version 5: the CLIP in a folder of the first module."""
    folder = tmp_path / "st"
    shutil.copytree(pair[1], folder / "0_CLIPModel")
    module = {
        "idx": 0,
        "name": "0",
        "path": "0_CLIPModel",
        "type": "sentence_transformers.models.CLIPModel",
    }
    (folder / "modules.json").write_text(json.dumps([module]))
    assert "is a folder of sentence-transformers, and its CLIP is 0_CLIPModel" in read(pair, folder)
    for modules in ("{", '[{"path": "../elsewhere"}, 4]', '[{"path": "linked"}]'):
        (folder / "modules.json").write_text(modules)
        if "linked" in modules:
            (folder / "linked").symlink_to(pair[0])  # out of its folder
        with pytest.raises(CheckpointError, match=r"no model\.safetensors in"):
            open_checkpoint(str(folder))


@pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"
)
def test_a_distributed_checkpoint_names_the_command_that_works(
    pair: Folders, tmp_path: Path
) -> None:
    pieces = tmp_path / "step-100" / "pytorch_model_fsdp_0"
    dcp.save({"model": weights_of(pair[1])}, checkpoint_id=pieces)
    line = refused(
        clipmerge("merge", pair[0], pieces.parent, "-r", "wise-ft", "-o", tmp_path / "no")
    )
    command = (
        f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {pieces} {pieces}.pt"
    )
    assert (
        "is a checkpoint of torch.distributed.checkpoint (FSDP), whose weights lie in pieces; put"
        " them" in line
    )
    assert f"`{command}`" in line
    piece = next(pieces.glob("*.distcp"))
    assert command in refused(
        clipmerge("merge", pair[0], piece, "-r", "wise-ft", "-o", tmp_path / "no")
    )
    dcp_to_torch_save(pieces, f"{pieces}.pt")
    read(pair, f"{pieces}.pt")


def test_a_deepspeed_folder_names_the_command(pair: Folders, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-500"
    step = folder / "global_step500"
    step.mkdir(parents=True)
    torch.save({"module": {}}, step / "zero_pp_rank_0_mp_rank_00_model_states.pt")
    for place in (folder, step):
        line = refused(
            clipmerge("merge", pair[0], place, "--recipe", "wise-ft", "--output", tmp_path / "no")
        )
        assert (
            "is a DeepSpeed checkpoint, whose weights lie in pieces; put them together with "
            in line
        )
        assert (
            f"`python -m deepspeed.utils.zero_to_fp32 {folder} {folder}-weights`, and give the"
            " result" in line
        )


def test_a_lora_in_kohyas_format_is_reported_as_one(tmp_path: Path) -> None:
    module = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    factors = {f"{module}.lora_{part}.weight": torch.ones(2, 2) for part in ("down", "up")}
    save_file({**factors, f"{module}.alpha": torch.ones(())}, tmp_path / "a.safetensors")
    with pytest.raises(
        CheckpointError, match=r"holds factors of LoRA in kohya's format .*merge_lora"
    ):
        open_checkpoint(str(tmp_path / "a.safetensors"))
