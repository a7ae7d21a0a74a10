"""Output folders load in transformers: all keys are there, and configs and side files are right."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPModel,
    CLIPProcessor,
    CLIPTextModel,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
)

from clipmerge.checkpoint import open_checkpoint
from clipmerge.families import CLIP
from tests.support.command import done
from tests.support.raw_safetensors import edit, edit_json, shard
from tests.support.tiny_clip import Folders

TOWERS: dict[str, tuple[Any, str]] = {
    "CLIPVisionModel": (CLIPVisionModel, "vision"),
    "CLIPTextModel": (CLIPTextModel, "text"),
    "CLIPVisionModelWithProjection": (CLIPVisionModelWithProjection, "vision"),
}


def merge(folders: Folders, *flags: object) -> Path:
    output = folders[1].parent / "out"
    done("merge", *folders, "--recipe", "wise-ft", "--output", output, "--overwrite", *flags)
    return output


def loads(output: Path, model: Any = CLIPModel) -> Any:
    """Load with transformers, nothing missing, unexpected or mismatched."""
    loaded, info = model.from_pretrained(output, output_loading_info=True)
    assert not any(info.values()), info
    written = open_checkpoint(str(output))
    keys = CLIP.by_canonical_name(written.entries)
    state = loaded.state_dict()
    for name, key in CLIP.by_canonical_name(state).items():
        assert torch.equal(state[key], written.tensor(keys[name])), name
    return loaded


def works(output: Path) -> None:
    """Load model and processor, and run texts and an image through both."""
    model, processor = loads(output), CLIPProcessor.from_pretrained(output)
    image = torch.zeros(3, 40, 36, dtype=torch.uint8)
    inputs = processor(text=["a cat", "a dog"], images=image, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits_per_image
    assert logits.shape == (1, 2)
    assert bool(logits.isfinite().all())


def test_a_full_pair(copies: Folders) -> None:
    output = merge(copies)
    works(output)
    sources = {file.name for file in copies[1].iterdir()}
    pages = {"clipmerge.json", "README.md", "report.html"}
    assert {file.name for file in output.iterdir()} == sources | pages
    for file in copies[1].glob("*.json"):
        assert (output / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("which", [0, 1])
def test_shards_are_kept_as_the_finetuned_has_them(copies: Folders, which: int) -> None:
    expected = load_file(merge(copies) / "model.safetensors")
    shard(copies[which])
    output = merge(copies)
    works(output)
    assert len([*output.glob("model*")]) == (4 if which else 1)
    written = open_checkpoint(str(output))
    assert all(torch.equal(written.tensor(key), tensor) for key, tensor in expected.items())
    if which:
        index, source = (
            json.loads((at / "model.safetensors.index.json").read_text())
            for at in (output, copies[1])
        )
        assert index["weight_map"] == source["weight_map"]
        assert index["metadata"]["total_size"] == sum(t.nbytes for t in expected.values())


@pytest.mark.parametrize("lacks", ["processor_config.json", "tokenizer.json tokenizer_config.json"])
def test_missing_side_files_come_from_the_zero_shot_checkpoint(copies: Folders, lacks: str) -> None:
    for name in lacks.split():
        (copies[1] / name).unlink()
    output = merge(copies)
    works(output)
    for name in lacks.split():
        assert (output / name).read_bytes() == (copies[0] / name).read_bytes()
    warnings = json.loads((output / "clipmerge.json").read_text())["warnings"]
    assert any("the zero-shot one's was copied" in warning for warning in warnings)


def save_tower(folder: Path, name: str, *, bare: bool = False, prefix: str = "module.") -> None:
    """Replace a full checkpoint by one tower alone, without processor and tokenizer."""
    kind, tower = TOWERS[name]
    full = CLIPModel.from_pretrained(folder)
    config = getattr(full.config, f"{tower}_config")
    config.projection_dim = full.config.projection_dim
    shutil.rmtree(folder)
    kind(config).save_pretrained(folder)
    starts = (f"{tower}_model.",)
    starts += ("visual_projection.",) * name.endswith("WithProjection")
    keys = {
        prefix + (key.removeprefix(starts[0]) if bare else key): value.clone()
        for key, value in full.state_dict().items()
        if key.startswith(starts)
    }
    save_file(keys, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("name", "bare", "prefix"),
    [
        ("CLIPVisionModel", False, ""),
        ("CLIPVisionModel", True, ""),
        ("CLIPTextModel", False, "module."),
    ],
)
def test_a_tower_alone_is_written_as_the_full_model(
    copies: Folders, name: str, bare: bool, prefix: str
) -> None:
    save_tower(copies[1], name, bare=bare, prefix=prefix)
    output = merge(copies)
    works(output)
    zeroshot, merged = (load_file(f / "model.safetensors") for f in (copies[0], output))
    for key, tensor in merged.items():
        assert torch.equal(tensor, zeroshot[key]) is not key.startswith(f"{TOWERS[name][1]}_model.")


@pytest.mark.parametrize("name", TOWERS)
def test_two_towers_give_a_tower(copies: Folders, name: str) -> None:
    for folder in copies:
        save_tower(folder, name)
    loads(merge(copies), TOWERS[name][0])
    shard(copies[1])
    output = merge(copies)
    loads(output, TOWERS[name][0])
    assert len([*output.glob("*.safetensors")]) == 3


@pytest.mark.parametrize("missing", ["keep-zeroshot", "keep-finetuned"])
def test_a_head_of_one_side_is_dropped_or_kept(copies: Folders, missing: str) -> None:
    edit(copies[1], classifier__weight=torch.ones(3, 32))
    output = merge(copies, "--set", f"missing={missing}")
    is_kept = "classifier.weight" in load_file(output / "model.safetensors")
    assert is_kept is (missing == "keep-finetuned")


@pytest.mark.parametrize(("stated", "written"), [(..., "bfloat16"), ("float16", "float32")])
def test_the_config_names_the_dtype_of_the_weights(
    copies: Folders, stated: Any, written: str
) -> None:
    """Where no dtype is stated, and where the weights contradict the one that is."""
    dtype = {"dtype": stated, "torch_dtype": ...}
    for folder in copies:
        edit_json(folder / "config.json", **dtype, vision_config=dtype, text_config=dtype)
    flags = ("--dtype", written) if stated is ... else ()
    output = merge(copies, *flags)
    config = json.loads((output / "config.json").read_text())
    assert config["dtype"] == written
    assert config["text_config"].get("dtype", written) == written
    assert CLIPModel.from_pretrained(output).dtype == getattr(torch, written)
