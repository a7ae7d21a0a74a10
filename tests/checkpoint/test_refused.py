"""Bad inputs: one line with what, where and what next, and nothing written."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, CLIPVisionModel, SiglipConfig, SiglipModel

from clipmerge.checkpoint import open_checkpoint
from clipmerge.errors import CheckpointError
from tests.checkpoint.test_kinds import adapter_of
from tests.support.command import clipmerge, refused
from tests.support.raw_safetensors import edit, edit_json, raw_file, rename_keys, shard
from tests.support.tiny_clip import Folders, tiny_config
from tests.support.tiny_open_clip import model_config, save_open_clip_pair

WEIGHTS = "model.safetensors"
Q = "vision_model__encoder__layers__0__self_attn__q_proj__weight"
Change = Callable[[Path], object]


class Harmful:
    """Calls a function when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("true",)


def pickle_of(content: Any) -> Change:
    def change(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        torch.save(content, folder / "pytorch_model.bin")

    return change


def shard_outside(folder: Path) -> None:
    index = shard(folder) / f"{WEIGHTS}.index.json"
    (folder / "model-00001-of-00003.safetensors").rename(folder.parent / "elsewhere.safetensors")
    text = index.read_text()
    index.write_text(text.replace("model-00001-of-00003", "../elsewhere"))


def other_model(**changes: Any) -> Change:
    return lambda folder: CLIPModel(tiny_config(**changes)).save_pretrained(folder)


def siglip(folder: Path) -> None:
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    tower["num_attention_heads"] = 2
    config = SiglipConfig(
        text_config={**tower, "vocab_size": 56}, vision_config={**tower, "image_size": 32}
    )
    SiglipModel(config).save_pretrained(folder)


def renamed(ending: str) -> Change:
    def change(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        first = next(key for key in tensors if key.endswith("mlp.fc1.weight"))
        tensors[first.replace("weight", ending)] = tensors.pop(first)
        save_file(tensors, folder / WEIGHTS)

    return change


def other_words(folder: Path) -> None:
    text = json.loads((folder / "tokenizer.json").read_text())
    words = text["model"]["vocab"]
    words["a"], words["b"] = words["b"], words["a"]
    (folder / "tokenizer.json").write_text(json.dumps(text))


CONFIG = "config.json"
BAD: dict[str, tuple[Change, str]] = {
    "empty": (
        lambda folder: raw_file(folder / WEIGHTS, b"{}"),
        "holds no tensors; give a checkpoint with weights",
    ),
    "a pickle with code": (
        pickle_of({"state_dict": {"a": torch.ones(2)}, "harm": Harmful()}),
        "holds code .*system.* besides tensors, which loading would run, so it is not opened",
    ),
    "a damaged pickle": (
        lambda folder: (
            (folder / WEIGHTS).unlink()
            or (folder / "pytorch_model.bin").write_bytes(b"PK\x03\x04 not a zip archive at all")
        ),
        "is damaged or not a PyTorch file .*; download or copy it again",
    ),
    "no weights inside": (
        pickle_of({"loss": 1.0, "epoch": 2}),
        "holds no weights under a known name .*, but loss, epoch; give their key .FILE#KEY.",
    ),
    "a list": (pickle_of([1]), "pytorch_model.bin: holds a list, not a state_dict"),
    "a sparse tensor": (
        pickle_of({"a": torch.ones(2, 2).to_sparse()}),
        "a is a torch.sparse_coo tensor of float32; clipmerge merges plain tensors",
    ),
    "an index of nothing": (
        lambda folder: (
            (folder / WEIGHTS).unlink() or (folder / f"{WEIGHTS}.index.json").write_text("{}")
        ),
        "index.json: has no weight_map; it is not an index of shards",
    ),
    "other keys": (
        lambda folder: rename_keys(folder, "vision_model.{}.x".format),
        "has no weight in common with .*zeroshot, but vision_model.*; is it of the family CLIP",
    ),
    "a shard outside": (
        shard_outside,
        "lacks 1 of its 3 shards in its folder: ../elsewhere.safetensors",
    ),
    "two files": (
        lambda folder: (
            [shutil.copy(folder / WEIGHTS, folder / f"{name}.safetensors") for name in "ab"]
            and (folder / WEIGHTS).unlink()
        ),
        "has no model.safetensors but a.safetensors, b.safetensors; give the file you mean",
    ),
    "another family": (siglip, "is of the family SigLIP, .* of CLIP; models of different"),
    "an unknown model": (
        lambda folder: edit_json(folder / CONFIG, model_type="llava"),
        "is a 'llava' checkpoint; clipmerge merges ",
    ),
    "another size": (
        other_model(width=48),
        r"differs in shape: zeroshot \(.*\), finetuned \(.*\)\. `clipmerge inspect` lists all 109",
    ),
    "integers": (
        lambda folder: edit(folder, **{Q: torch.ones(32, 32, dtype=torch.int8)}),
        "zeroshot float32, finetuned int8; give weights that are not quantised$",
    ),
    "codes": (renamed("qweight"), "holds quantised weights"),
    "factors of LoRA": (renamed("lora_A.weight"), "holds factors of LoRA .*merge_and_unload"),
    "GmP": (renamed("theta"), "holds parts of weights .*remove_parametrizations"),
    "two models": (
        lambda folder: save_file(
            {f"{name}.{k}": v + 0 for k, v in load_file(folder / WEIGHTS).items() for name in "ab"},
            folder / WEIGHTS,
        ),
        "holds 2 models, each with a 'vision_model', under 'a', 'b'; choose one with FILE#KEY",
    ),
    "another activation": (
        other_model(hidden_act="gelu"),
        "the vision towers differ in hidden_act: zeroshot quick_gelu, finetuned gelu; the weights",
    ),
    "other preprocessing": (
        lambda folder: edit_json(
            folder / "processor_config.json", image_processor={"image_mean": [0.5, 0.5, 0.5]}
        ),
        "preprocessing of images differs in mean: .*, finetuned .*; the weights would merge silently",
    ),
    "other words": (other_words, "the tokenizers differ in the ids of 2 words, such as 'a'"),
    "a list as settings": (
        lambda folder: (folder / CONFIG).write_text("[1]"),
        "config.json: is not a JSON object; copy it again",
    ),
    "no settings": (
        lambda folder: (folder / CONFIG).write_text("{"),
        "config.json: cannot be read as JSON",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_checkpoint_is_refused_in_one_line(copies: Folders, kind: str) -> None:
    change, message = BAD[kind]
    change(copies[1])
    output = copies[0].parent / "out"
    line = refused(clipmerge("merge", *copies, "-r", "wise-ft", "-o", output))
    assert re.search(message, line), line
    assert not output.exists()


def test_open_clip_without_a_configuration_needs_a_name(tmp_path: Path) -> None:
    folders = save_open_clip_pair(tmp_path / "pair", model_config())
    for folder in folders:
        (folder / "open_clip_config.json").unlink()
    line = refused(clipmerge("merge", *folders, "-r", "wise-ft", "-o", tmp_path / "out"))
    assert "no open_clip_config.json beside the weights says which model they are" in line
    assert "put it there or name the architecture with --model" in line


@pytest.mark.filterwarnings("ignore")  # of peft
def test_an_adapter_alone_and_one_of_another_base(pair: Folders, tmp_path: Path) -> None:
    adapter = adapter_of(pair[0], tmp_path / "adapter")
    CLIPModel(tiny_config(width=48)).save_pretrained(tmp_path / "wide")
    (tmp_path / "bare.safetensors").symlink_to(pair[0] / WEIGHTS)
    for base, message in (
        (None, "is an adapter, not a full model; merge it where"),
        ("wide", "peft cannot apply this adapter to"),
        ("bare.safetensors", r"merges into a folder of transformers, but .*bare"),
    ):
        opened = open_checkpoint(str(tmp_path / base)) if base else None
        with pytest.raises(CheckpointError, match=message):
            open_checkpoint(str(adapter), base=opened)
    (adapter / "adapter_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"peft cannot apply .*adapter_config\.json"):
        open_checkpoint(str(adapter), base=open_checkpoint(str(pair[0])))


def test_a_zero_shot_tower_alone_is_refused(pair: Folders, tmp_path: Path) -> None:
    CLIPVisionModel.from_pretrained(pair[0]).save_pretrained(tmp_path / "tower")
    words = ("merge", tmp_path / "tower", pair[1], "-r", "wise-ft", "-o", tmp_path / "out")
    line = refused(clipmerge(*words))
    assert "holds the vision tower only, unlike the fine-tuned checkpoint" in line
