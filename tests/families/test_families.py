"""Merges of every family load in their own library, and have the outputs of the averaged weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import clipmerge
from clipmerge.checkpoint import open_checkpoint
from clipmerge.errors import CheckpointError
from clipmerge.families import VISION_TEXT_DUAL_ENCODER, family_of, layers_of
from tests.support import tiny_open_clip
from tests.support.tiny_clip import Folders
from tests.support.tiny_families import TINY
from tests.support.tiny_open_clip import ARCHITECTURES, bert_text, model_config, save_open_clip_pair

Pairs = Callable[[str], Folders]


def merged(folders: Folders, output: Path) -> Path:
    clipmerge.merge(*folders, "wise-ft", alpha=0.25, output=output)
    return output


def move(model: Any, zeroshot: Any) -> Any:
    """The average of two models in memory, float64; a lone head stays."""
    before = zeroshot.state_dict()
    for key, value in model.double().state_dict().items():
        if value.is_floating_point() and key in before:
            value.copy_(0.75 * before[key].double() + 0.25 * value)
    return model


@pytest.mark.uncounted
@pytest.mark.parametrize("name", TINY)
def test_models_of_transformers(name: str, family_pairs: Pairs, tmp_path: Path) -> None:
    tiny, folders = TINY[name], family_pairs(name)
    load = tiny.model.from_pretrained
    found, info = load(merged(folders, tmp_path / "out"), output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    expected = move(load(folders[1]), TINY[tiny.base or name].model.from_pretrained(folders[0]))
    torch.testing.assert_close(tiny.outputs(found), tiny.outputs(expected), rtol=0, atol=1e-5)
    assert open_checkpoint(str(folders[1])).family.name == tiny.family


@pytest.mark.uncounted
@pytest.mark.parametrize("kind", [*ARCHITECTURES, "bert text"])
def test_models_of_open_clip(kind: str, tmp_path: Path) -> None:
    settings = ARCHITECTURES.get(kind) or {"text": bert_text(tmp_path / "bert")}
    folders = save_open_clip_pair(tmp_path / "pair", model_config(**settings))
    found = tiny_open_clip.load(merged(folders, tmp_path / "out"))
    expected = move(*(tiny_open_clip.load(folder) for folder in folders[::-1])).float()
    for ours, theirs in zip(
        tiny_open_clip.outputs(found), tiny_open_clip.outputs(expected), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("vision_model.encoder.layers.3.layer_norm1.weight", "vision.3.attn"),
        ("text_model.encoder.layers.11.mlp.fc2.bias", "text.11.mlp"),
        ("transformer.resblocks.0.ls_1.gamma", "text.0.attn"),
        ("text_decoder.cross_attn.1.attn.in_proj_weight", "decoder.1.cross"),
        ("visual.layer1.0.conv1.weight", "vision.0.conv"),
        ("visual.trunk.blocks.5.norm1.weight", "vision.5.attn"),
        ("visual.trunk.stages.0.blocks.0.conv_dw.weight", "vision.0.conv"),
        ("text.transformer.encoder.layer.2.output.dense.weight", "text.2.mlp"),
        ("text.transformer.encoder.layer.2.attention.output.dense.weight", "text.2.attn"),
        ("blocks.7.attn.qkv.weight", "vision.7.attn"),
        ("class_embedding", "vision.embeddings"),
        ("visual.ln_pre.weight", "vision.pre_norm"),
        ("vision_model.head.probe", "vision.pooler"),
        ("visual.attnpool.positional_embedding", "vision.pooler"),
        ("text_model.head.weight", "text.projection"),
        ("ln_final.bias", "text.norm"),
        ("temperature", "logit_scale"),
        ("classifier.weight", "head"),
        ("vision_model.features.3.weight", "vision.features"),
    ],
)
def test_a_layer_is_named_by_its_module_path(name: str, layer: str) -> None:
    assert layers_of([name]) == {name: layer}


def test_blocks_in_stages_are_numbered_one_after_another() -> None:
    names = [f"visual.trunk.stages.{s}.blocks.{b}.norm.weight" for s, b in ((1, 0), (0, 1), (0, 0))]
    assert list(layers_of(names).values()) == ["vision.2.conv", "vision.1.conv", "vision.0.conv"]


@pytest.mark.parametrize("name", ["CLIP", "SigLIP", "AltCLIP", "ALIGN", "ChineseCLIP"])
def test_a_family_is_known_by_its_keys_without_a_config(name: str) -> None:
    assert family_of(None, TINY[name].make().state_dict(), "here").name == TINY[name].family


def test_one_parameter_under_two_names_is_refused() -> None:
    names = ["vision_model.encoder.layer.0.x", "vision_model.layers.0.x"]
    with pytest.raises(CheckpointError, match="are the same parameter"):
        VISION_TEXT_DUAL_ENCODER.by_canonical_name(names)
