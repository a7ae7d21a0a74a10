"""OpenCLIP's and transformers' layouts: both libraries' real models must agree on the same
input."""

from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel

from clipmerge.checkpoint import Checkpoint, open_checkpoint
from clipmerge.checkpoint.converted import convert_checkpoint
from clipmerge.conversion.config import open_clip_config, transformers_config
from clipmerge.conversion.keys import match_keys
from tests.support import tiny_open_clip
from tests.support.tiny_clip import tiny_config
from tests.support.tiny_open_clip import build, model_config, outputs, token_ids

# Settings that change what is computed while every shape stays; each must survive the way there and
# back.
VARIANTS: dict[str, dict[str, Any]] = {
    "gelu": {},
    "quick_gelu": {"quick_gelu": True},
    "custom text": {"custom_text": True},
    "more heads": {"vision": {"head_width": 8}, "text": {"heads": 4}},
    "tanh": {
        "vision": {"act_kwargs": {"approximate": "tanh"}},
        "text": {"act_kwargs": {"approximate": "tanh"}},
    },
    "epsilon": {"vision": {"norm_kwargs": {"eps": 0.1}}, "text": {"norm_kwargs": {"eps": 0.2}}},
    "one-element scale": {"nonscalar_logit_scale": True},
    "eos": {"text": {"pool_type": "eos", "eos_id": 7}},
    "odd mlp": {
        "vision": {"mlp_ratio": 61 / 32 + 1e-9},
        "text": {"width": 48, "heads": 3, "mlp_ratio": 1.7},
    },
}


def as_transformers(checkpoint: Checkpoint) -> CLIPModel:
    """A real CLIPModel with a checkpoint's config and tensors; missing and unexpected keys are
    errors."""
    assert checkpoint.config is not None
    model = CLIPModel(CLIPConfig.from_dict(checkpoint.config))
    model.load_state_dict({key: checkpoint.tensor(key) for key in checkpoint.entries})
    return model.eval()


@torch.no_grad()
def features(model: CLIPModel) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The outputs of `tiny_open_clip.outputs`, by a CLIPModel."""
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    found = model(pixel_values=images, input_ids=token_ids())
    return found.image_embeds, found.text_embeds, model.logit_scale.exp()


def same(ours: tuple[torch.Tensor, ...], theirs: tuple[torch.Tensor, ...]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.reshape(other.shape), other, atol=1e-5, rtol=0)


def saved(folder: Path, model_cfg: dict[str, Any]) -> tuple[torch.nn.Module, Checkpoint]:
    model = build(model_cfg)
    return model, open_checkpoint(str(tiny_open_clip.save(model, model_cfg, folder)))


@pytest.mark.parametrize("variant", VARIANTS)
def test_both_libraries_compute_the_same(variant: str, tmp_path: Path) -> None:
    model_cfg = model_config(**VARIANTS[variant])
    model, checkpoint = saved(tmp_path / "model", model_cfg)
    expected = outputs(model)
    there = convert_checkpoint(checkpoint, "transformers")
    same(features(as_transformers(there)), expected)
    prefix = "text." if "custom_text" in model_cfg else ""
    back = convert_checkpoint(there, "open-clip", text_prefix=prefix)
    assert back.config is not None
    again = build(back.config["model_cfg"], seed=1)
    again.load_state_dict({key: back.tensor(key) for key in back.entries})
    same(outputs(again), expected)
    for key, value in model.state_dict().items():
        assert torch.equal(back.tensor(key), value.reshape(back.entries[key].shape)), key


@pytest.mark.parametrize("hidden_act", ["quick_gelu", "gelu", "gelu_new"])
def test_a_clip_model_becomes_an_open_clip_model(hidden_act: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = CLIPModel(tiny_config(hidden_act=hidden_act)).eval()
    model.save_pretrained(tmp_path)
    there = convert_checkpoint(open_checkpoint(str(tmp_path)), "open-clip")
    assert there.config is not None
    other = build(there.config["model_cfg"])
    other.load_state_dict({key: there.tensor(key) for key in there.entries})
    same(outputs(other), features(model))


def test_every_run_of_elements_is_that_run(tmp_path: Path) -> None:
    _, checkpoint = saved(tmp_path / "model", model_config())
    there = convert_checkpoint(checkpoint, "transformers")
    back = convert_checkpoint(there, "open-clip")
    for converted in (there, back):
        for key, entry in converted.entries.items():
            whole = converted.tensor(key)
            assert whole.shape == entry.shape
            bounds = sorted({0, 1, entry.size // 3, entry.size // 2 + 1, entry.size})
            for start, stop in ((a, b) for a in bounds for b in bounds if a < b):
                assert torch.equal(
                    converted.tensor(key, start, stop), whole.flatten()[start:stop]
                ), key


def test_masks_and_counts_are_left_out(tmp_path: Path) -> None:
    saved(tmp_path / "model", model_config())
    weights = tmp_path / "model" / "open_clip_model.safetensors"
    tensors = {f"module.{key}": value for key, value in load_file(weights).items()}
    save_file({**tensors, "module.attn_mask": torch.zeros(32)}, weights)
    as_transformers(convert_checkpoint(open_checkpoint(str(tmp_path / "model")), "transformers"))


@pytest.mark.parametrize("width", [6, 49, 192])
def test_the_ratio_of_an_mlp_gives_its_width_back(width: int) -> None:
    """OpenCLIP stores a ratio and rounds the product down, which for 49 channels would lose one of
    29."""
    for hidden in range(1, 4 * width):
        tower = {
            "hidden_size": width,
            "intermediate_size": hidden,
            "num_attention_heads": 1,
            "num_hidden_layers": 1,
        }
        config = open_clip_config(
            {"vision_config": tower, "text_config": tower, "projection_dim": 8}
        )
        assert int(width * config["vision_cfg"].get("mlp_ratio", 4.0)) == hidden


# all that open_clip lists take a minute
MODELS = (
    "ViT-B-32",
    "ViT-B-32-quickgelu",
    "ViT-B-16-plus-240",
    "ViT-S-16-alt",
    "ViT-L-14-336",
    "ViT-H-14-378",
    "ViT-bigG-14",
)


@pytest.mark.uncounted
@pytest.mark.parametrize("name", MODELS)
def test_a_config_of_open_clip_is_reported_in_full(name: str) -> None:
    """Shapes of the meta-device models on both sides."""
    config = open_clip.get_model_config(name)
    said = transformers_config(config)
    with torch.device("meta"):
        theirs = CLIPModel(CLIPConfig.from_dict(said)).state_dict()
    back = open_clip_config(said)
    for section in ("vision_cfg", "text_cfg"):
        for setting in config[section].keys() & {
            "layers",
            "width",
            "head_width",
            "heads",
            "patch_size",
            "image_size",
        }:
            assert back[section][setting] == config[section][setting]
    assert (back["embed_dim"], back["quick_gelu"]) == (
        config["embed_dim"],
        config.get("quick_gelu", False),
    )
    with torch.device("meta"):
        ours = open_clip.CLIP(**back).state_dict()
    matches = match_keys(ours, "open-clip")
    assert {name for match in matches for name in match.transformers} == theirs.keys()
    assert sum(value.numel() for value in ours.values()) == sum(
        value.numel() for value in theirs.values()
    )
