"""The output loads like any CLIP: no missing or unexpected keys, with correct config and side
files."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
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

TOWERS: dict[str, Any] = {
    "CLIPVisionModel": (CLIPVisionModel, "vision"),
    "CLIPTextModel": (CLIPTextModel, "text"),
    "CLIPVisionModelWithProjection": (CLIPVisionModelWithProjection, "vision"),
}


def merge(*inputs: Path, flags: tuple[object, ...] = ()) -> Path:
    output = inputs[1].parent / "out" if inputs[1].is_dir() else inputs[1].parent.parent / "out"
    done("merge", *inputs, "--recipe", "wise-ft", "--output", output, "-q", *flags)
    return output


def loads(output: Path, model: Any = CLIPModel) -> Any:
    """Load with transformers, nothing missing, unexpected or mismatched."""
    loaded, info = model.from_pretrained(output, output_loading_info=True)
    assert not any(
        info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
    ), info
    written = open_checkpoint(str(output))
    keys = CLIP.by_canonical_name(written.entries)
    state = loaded.state_dict()
    for name, key in CLIP.by_canonical_name(state).items():
        assert torch.equal(state[key], written.tensor(keys[name])), name
    return loaded


def works(output: Path) -> None:
    """Load model and processor, and run a text and an image through both."""
    model, processor = loads(output), CLIPProcessor.from_pretrained(output)
    inputs = processor(
        text=["a cat", "a dog"],
        images=torch.zeros(3, 40, 36, dtype=torch.uint8),
        return_tensors="pt",
    )
    with torch.no_grad():
        logits = model(
            **{**inputs, "pixel_values": inputs["pixel_values"].to(model.dtype)}
        ).logits_per_image
    assert logits.shape == (1, 2)
    assert bool(logits.isfinite().all())


def test_a_full_pair(copies: Folders) -> None:
    output = merge(*copies)
    works(output)
    expected = {f.name for f in copies[1].iterdir()} | {
        "clipmerge.json",
        "README.md",
        "report.html",
    }
    assert {f.name for f in output.iterdir()} == expected
    for file in copies[1].iterdir():
        if file.suffix == ".json":
            assert (output / file.name).read_bytes() == file.read_bytes()


def test_the_file_is_what_safetensors_itself_would_write(copies: Folders, tmp_path: Path) -> None:
    for folder in copies:  # every dtype there is, under names in another order
        tensors = load_file(folder / "model.safetensors")
        kinds = zip(
            sorted(tensors), [torch.float64, torch.bfloat16, torch.float16] * 20, strict=False
        )
        tensors |= {name: tensors[name].to(dtype) for name, dtype in kinds}
        edit(folder, **tensors, **{"text_model.embeddings.position_ids": torch.arange(32)[None]})
    output = merge(*copies) / "model.safetensors"
    save_file(load_file(output), tmp_path / "again.safetensors", metadata={"format": "pt"})
    assert output.read_bytes() == (tmp_path / "again.safetensors").read_bytes()
    with safe_open(output, "pt") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("which", [(0,), (1,), (0, 1)])
def test_shards_are_kept_as_the_finetuned_has_them(copies: Folders, which: tuple[int, ...]) -> None:
    plain = merge(*copies)
    expected = load_file(plain / "model.safetensors")
    shutil.rmtree(plain)
    for index in which:
        shard(copies[index])
    output = merge(*copies)
    works(output)
    shards = sorted(output.glob("model*"))
    assert len(shards) == (4 if 1 in which else 1)
    written = open_checkpoint(str(output))
    assert all(torch.equal(written.tensor(key), tensor) for key, tensor in expected.items())
    if 1 in which:
        index, source = (
            json.loads((at / "model.safetensors.index.json").read_text())
            for at in (output, copies[1])
        )
        assert index["weight_map"] == source["weight_map"]
        assert index["metadata"]["total_size"] == sum(
            t.numel() * t.element_size() for t in expected.values()
        )


@pytest.mark.parametrize(
    "lacks",
    [("processor_config.json",), ("tokenizer.json", "tokenizer_config.json")],
    ids=["processor", "tokenizer"],
)
def test_what_the_finetuned_lacks_comes_from_the_zero_shot(
    copies: Folders, lacks: tuple[str, ...]
) -> None:
    for name in lacks:
        (copies[1] / name).unlink()
    output = merge(*copies)
    works(output)
    for name in lacks:
        assert (output / name).read_bytes() == (copies[0] / name).read_bytes()
    warnings = json.loads((output / "clipmerge.json").read_text())["warnings"]
    assert any("the zero-shot one's was copied" in warning for warning in warnings)


def save_tower(folder: Path, name: str, *, bare: bool = False, prefix: str = "") -> tuple[Any, str]:
    """Replace a full checkpoint by one tower alone, without processor and tokenizer."""
    kind, tower = TOWERS[name]
    full = CLIPModel.from_pretrained(folder)
    config = getattr(full.config, f"{tower}_config")
    config.projection_dim = full.config.projection_dim
    wanted = {k: v for k, v in full.state_dict().items() if k.startswith(f"{tower}_model.")}
    if name.endswith("WithProjection"):
        wanted["visual_projection.weight"] = full.visual_projection.weight.detach()
    shutil.rmtree(folder)
    kind(config).save_pretrained(folder)
    keys = {
        prefix + (k.removeprefix(f"{tower}_model.") if bare else k): v.clone()
        for k, v in wanted.items()
    }
    save_file(keys, folder / "model.safetensors", metadata={"format": "pt"})
    return kind, tower


@pytest.mark.parametrize(("bare", "prefix"), [(False, ""), (True, ""), (False, "module.")])
@pytest.mark.parametrize("name", ["CLIPVisionModel", "CLIPTextModel"])
def test_a_tower_alone_is_written_as_the_full_model(
    copies: Folders, name: str, bare: bool, prefix: str
) -> None:
    _, tower = save_tower(copies[1], name, bare=bare, prefix=prefix)
    output = merge(*copies)
    works(output)
    zeroshot, merged = (load_file(f / "model.safetensors") for f in (copies[0], output))
    for key, tensor in merged.items():
        assert torch.equal(tensor, zeroshot[key]) is not key.startswith(f"{tower}_model.")


@pytest.mark.parametrize(
    ("name", "bare"), [*((name, False) for name in TOWERS), ("CLIPVisionModel", True)]
)
def test_two_towers_give_a_tower(copies: Folders, name: str, bare: bool) -> None:
    for folder in copies:
        kind, _ = save_tower(folder, name, bare=bare, prefix="module.")
    loads(merge(*copies), kind)
    shutil.rmtree(copies[1].parent / "out")
    shard(copies[1])
    output = merge(*copies)
    loads(output, kind)
    assert len(list(output.glob("*.safetensors"))) == 3


@pytest.mark.parametrize("missing", ["keep-zeroshot", "keep-finetuned"])
def test_a_head_of_one_side_is_dropped_or_kept(copies: Folders, missing: str) -> None:
    edit(copies[1], classifier__weight=torch.ones(3, 32))
    output = merge(*copies, flags=("--set", f"missing={missing}"))
    assert ("classifier.weight" in load_file(output / "model.safetensors")) is (
        missing == "keep-finetuned"
    )
    if missing == "keep-zeroshot":
        works(output)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_config_without_a_dtype_gets_one_where_loaders_need_it(
    copies: Folders, dtype: str
) -> None:
    for folder in copies:
        none = {"dtype": ..., "torch_dtype": ...}
        edit_json(folder / "config.json", **none, vision_config=none, text_config=none)
    written = json.loads((merge(*copies, flags=("--dtype", dtype)) / "config.json").read_text())
    assert written["dtype"] == dtype


def test_a_config_that_contradicts_its_weights_is_corrected(copies: Folders) -> None:
    section = {"dtype": "float16"}
    edit_json(copies[1] / "config.json", dtype="bfloat16", text_config=section)
    output = merge(*copies)
    written = json.loads((output / "config.json").read_text())
    assert (written["dtype"], written["text_config"]["dtype"]) == ("float32", "float32")
    assert CLIPModel.from_pretrained(output).dtype == torch.float32
