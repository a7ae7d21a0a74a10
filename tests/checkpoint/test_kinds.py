"""One row per kind of checkpoint: merged halfway, each gives the values of the plain folders."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPModel

import clipmerge
from clipmerge.checkpoint import open_checkpoint
from clipmerge.checkpoint.layout_keys import match_keys
from tests.models.test_heads import of_wise_ft
from tests.support.raw_safetensors import edit, rename_keys, shard
from tests.support.tiny_clip import Folders, save_images
from tests.support.tiny_open_clip import build, load, model_config, save, save_open_clip_pair

pytestmark = pytest.mark.filterwarnings("ignore")  # of peft
WEIGHTS, OPEN_CLIP_WEIGHTS = "model.safetensors", "open_clip_model.safetensors"
Source = Any
Rows = dict[str, Callable[[Path, Path], Source]]


def halfway(zeroshot: Source, finetuned: Source, output: Path, **options: Any) -> dict[str, Tensor]:
    """The weights of a merge with alpha 0.5."""
    clipmerge.merge(zeroshot, finetuned, "wise-ft", alpha=0.5, output=output, **options)
    tensors: dict[str, Tensor] = {}
    for file in output.glob("*.safetensors"):
        tensors |= load_file(file)
    return tensors


def mean_of(zeroshot: dict[str, Tensor], finetuned: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights halfway, by hand."""
    return {
        key: value + 0.5 * (finetuned[key] - value) if value.is_floating_point() else value
        for key, value in zeroshot.items()
    }


def same(found: dict[str, Tensor], expected: dict[str, Tensor], atol: float = 1e-7) -> None:
    """Check keys and values; the tolerance is for sums in another order."""
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key].float(), value.float(), rtol=0, atol=atol)


def pickled(folder: Path, target: Path, **beside: Any) -> Path:
    """A folder's weights as a file of torch.save, and other content of a training run beside
    them."""
    shutil.copytree(folder, target.parent, dirs_exist_ok=True)
    name = next(file for file in target.parent.glob("*.safetensors"))
    weights = load_file(name)
    name.unlink()
    torch.save(beside["inside"](weights) if beside else weights, target)
    return target


def of_a_training_run(weights: dict[str, Tensor]) -> dict[str, Any]:
    moments = {number: {"exp_avg": torch.ones(2)} for number in range(3)}
    return {
        "epoch": 3,
        "name": "run",
        "state_dict": {f"module.{key}": value for key, value in weights.items()},
        "optimizer": {"state": moments, "param_groups": []},
        "ema": {"logit_scale": torch.ones(())},
        "scaler": {"scale": 65536.0},
    }


def bin_folder(folder: Path, work: Path) -> Path:
    return pickled(folder, work / "pytorch_model.bin").parent


def in_clip_attribute(folder: Path, work: Path) -> Path:
    shutil.copytree(folder, work)
    rename_keys(work, "clip.{}".format)
    return edit(work, head__weight=torch.ones(3, 16))


KINDS: Rows = {
    "folder": lambda folder, _: folder,
    "file": lambda folder, _: folder / WEIGHTS,
    "index": lambda folder, work: (
        shard(Path(shutil.copytree(folder, work))) / "model.safetensors.index.json"
    ),
    "bin": bin_folder,
    "training run": lambda folder, work: pickled(
        folder, work / "epoch_3.pt", inside=of_a_training_run
    ),
    "state key": lambda folder, work: (
        f"{pickled(folder, work / 'last.pt', inside=lambda w: {'model': {}, 'ema': w})}#ema"
    ),
    "inside another model": in_clip_attribute,
    "sentence-transformers": lambda folder, work: (
        Path(shutil.copytree(folder, work / "0_CLIPModel")).parent
    ),
    "link": lambda folder, work: (
        work.parent.mkdir(exist_ok=True) or work.symlink_to(folder) or work
    ),
    "in memory": lambda folder, _: CLIPModel.from_pretrained(folder),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_same_values(pair: Folders, tmp_path: Path, kind: str) -> None:
    zeroshot, finetuned = (load_file(folder / WEIGHTS) for folder in pair)
    source = KINDS[kind](pair[1], tmp_path / "source")
    same(halfway(pair[0], source, tmp_path / "out"), mean_of(zeroshot, finetuned))
    CLIPModel.from_pretrained(tmp_path / "out")


CHANGED = "vision_model.encoder.layers.0.self_attn.q_proj.weight"
LORAS: dict[str, dict[str, Any]] = {
    "lora": {},
    "dora": {"use_dora": True},
    "ranks by module": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"fc1": 48}},
    "modules to save": {"modules_to_save": ["text_projection"]},
    "bfloat16": {},
}


def adapter_of(base: Path, folder: Path, model: Any = CLIPModel, **options: Any) -> Path:
    """Save an adapter with all tensors moved, as if by training."""
    torch.manual_seed(0)
    config = LoraConfig(target_modules=["q_proj", "fc1"], r=4, lora_alpha=6, **options)
    adapted = get_peft_model(model.from_pretrained(base), config)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape))
    adapted.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", LORAS)
def test_an_adapter_is_what_peft_makes_of_the_base(
    pair: Folders, tmp_path: Path, kind: str
) -> None:
    """In float32, and rounded once to the base's dtype."""
    dtype = getattr(torch, kind, torch.float32)
    base = Path(shutil.copytree(pair[0], tmp_path / "base"))
    CLIPModel.from_pretrained(base).to(dtype).save_pretrained(base)
    adapter = adapter_of(base, tmp_path / "adapter", **LORAS[kind])
    model = CLIPModel.from_pretrained(base, dtype=torch.float32)
    merged = PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()
    stored = load_file(base / WEIGHTS)
    expected = mean_of({key: value.to(merged[key].dtype) for key, value in stored.items()}, merged)
    found = halfway(base, adapter, tmp_path / "out")
    for key, value in expected.items():
        assert found[key].dtype == stored[key].dtype
        torch.testing.assert_close(found[key], value.to(found[key].dtype), rtol=0, atol=1e-6)
    assert not torch.equal(found[CHANGED], stored[CHANGED])


def split(folder: Path) -> dict[str, Tensor]:
    """OpenCLIP's weights by transformers' names, by the definition of both layouts."""
    weights = load_file(folder / OPEN_CLIP_WEIGHTS)
    found = {}
    for match in match_keys(weights, "open-clip"):
        value = weights[match.stored[0]]
        if len(match.wanted) > 1:
            found |= dict(zip(match.wanted, value.chunk(3), strict=True))
        else:
            found[match.wanted[0]] = value.T.contiguous() if match.transposed else value
    return found


@pytest.mark.parametrize("kind", ["folder", "training run", "custom text", "in memory"])
def test_kinds_of_open_clip(tmp_path: Path, kind: str) -> None:
    custom = {"custom_text": True} if kind == "custom text" else {}
    folders = save_open_clip_pair(tmp_path / "pair", model_config(**custom))
    zeroshot, finetuned = (load_file(folder / OPEN_CLIP_WEIGHTS) for folder in folders)
    source: Source = folders[1]
    if kind == "training run":
        source = pickled(folders[1], tmp_path / "run" / "epoch_3.pt", inside=of_a_training_run)
        (note,) = open_checkpoint(str(source)).notes
        assert "the weights under state_dict are used; there are others under ema" in note
    elif kind == "in memory":
        source = build(model_config())
        source.load_state_dict(finetuned)
    same(halfway(folders[0], source, tmp_path / "out"), mean_of(zeroshot, finetuned))


@pytest.mark.parametrize("wanted", ["transformers", "open_clip"])
def test_a_mixed_pair_has_the_finetuned_layout(pair: Folders, tmp_path: Path, wanted: str) -> None:
    cfg = model_config(quick_gelu=True)
    in_open_clip = [save(build(cfg, seed), cfg, tmp_path / f"oc{seed}") for seed in (0, 1)]
    in_transformers = []
    for folder, copied in zip(in_open_clip, pair, strict=True):
        in_transformers.append(Path(shutil.copytree(copied, tmp_path / copied.name)))
        save_file(split(folder), in_transformers[-1] / WEIGHTS, metadata={"format": "pt"})
    if wanted == "transformers":
        zeroshot, finetuned = in_open_clip[0], in_transformers[1]
        expected = mean_of(*(load_file(folder / WEIGHTS) for folder in in_transformers))
    else:
        zeroshot, finetuned = in_transformers[0], in_open_clip[1]
        expected = mean_of(*(load_file(folder / OPEN_CLIP_WEIGHTS) for folder in in_open_clip))
    same(halfway(zeroshot, finetuned, tmp_path / "out", allow=["unrelated"]), expected)
    if wanted == "transformers":
        CLIPModel.from_pretrained(tmp_path / "out")
    else:
        load(tmp_path / "out")


def test_a_head_is_built_from_prompts(tmp_path: Path) -> None:
    zeroshot, finetuned, _ = of_wise_ft(tmp_path)
    images = save_images(tmp_path / "images", each=2)
    found = halfway(zeroshot, finetuned, tmp_path / "out", data=images, verdict=False)
    key = "classification_head.weight"
    rows = 2 * found[key] - open_checkpoint(str(finetuned)).tensor(key)  # of the zero-shot model
    scale = load_file(zeroshot / OPEN_CLIP_WEIGHTS)["logit_scale"].exp()
    torch.testing.assert_close(rows.norm(dim=1), scale.expand(3))
