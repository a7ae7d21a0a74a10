"""Layers of parameter names, on the key lists of real CLIP models."""

import pytest
import torch
from transformers import CLIPConfig, CLIPModel

from clipmerge.errors import CheckpointError, PlanError
from clipmerge.families import tower_of
from clipmerge.families.clip import FAMILY as CLIP
from clipmerge.layers import match_layers, network_order
from tests.support.tiny_clip import layer_of

ATTN = [f"self_attn.{p}_proj.{kind}" for p in ("k", "v", "q", "out") for kind in ("weight", "bias")]
HALVES = {
    "attn": ["layer_norm1.weight", "layer_norm1.bias", *ATTN],
    "mlp": ["layer_norm2.weight", "layer_norm2.bias", *(f"mlp.fc{i}.{k}" for i in (1, 2) for k in ("weight", "bias"))],
}
EDGES = {
    "vision.embeddings": [
        "vision_model.embeddings.class_embedding",
        "vision_model.embeddings.patch_embedding.weight",
        "vision_model.embeddings.position_embedding.weight",
    ],
    "vision.pre_norm": ["vision_model.pre_layrnorm.weight", "vision_model.pre_layrnorm.bias"],
    "vision.norm": ["vision_model.post_layernorm.weight", "vision_model.post_layernorm.bias"],
    "vision.projection": ["visual_projection.weight"],
    "text.embeddings": [
        "text_model.embeddings.token_embedding.weight",
        "text_model.embeddings.position_embedding.weight",
    ],
    "text.norm": ["text_model.final_layer_norm.weight", "text_model.final_layer_norm.bias"],
    "text.projection": ["text_projection.weight"],
    "logit_scale": ["logit_scale"],
}


def expected_layers(vision: int, text: int) -> dict[str, list[str]]:
    """Network order, written out."""

    def blocks(tower: str, count: int) -> dict[str, list[str]]:
        return {
            f"{tower}.{i}.{half}": [f"{tower}_model.encoder.layers.{i}.{rest}" for rest in HALVES[half]]
            for i in range(count)
            for half in ("attn", "mlp")
        }

    def edges(*layers: str) -> dict[str, list[str]]:
        return {layer: EDGES[layer] for layer in layers}

    return {
        **edges("vision.embeddings", "vision.pre_norm"),
        **blocks("vision", vision),
        **edges("vision.norm", "vision.projection", "text.embeddings"),
        **blocks("text", text),
        **edges("text.norm", "text.projection", "logit_scale"),
    }


def test_every_parameter_of_a_real_model_is_in_exactly_one_layer() -> None:
    config = CLIPConfig(vision_config={"num_hidden_layers": 24}, text_config={"num_hidden_layers": 12})
    with torch.device("meta"):
        keys = list(CLIPModel(config).state_dict())
    groups = CLIP.group(keys)
    expected = expected_layers(24, 12)
    assert list(groups) == list(expected)
    assert {layer: sorted(names) for layer, names in groups.items()} == {k: sorted(v) for k, v in expected.items()}
    assert sorted(name for names in groups.values() for name in names) == sorted(keys)


@pytest.mark.parametrize("name", ["", "weight", "vision_model", "visual.conv1.weight", "xvision_model.embeddings.a"])
def test_a_name_in_no_tower_of_clip_is_in_no_layer(name: str) -> None:
    with pytest.raises(CheckpointError, match=f"'{name}' belongs to no layer"):
        layer_of(name)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("vision_model.encoder.layers.x.mlp.weight", "vision.encoder"),
        ("vision_model.encoder.layers.1.layer_norm3.weight", "vision.encoder.layers.1"),
        ("vision_model.stages.1.blocks.10.conv.0.weight", "vision.stages.1.blocks.10"),
        ("text_model.s1.b10.conv1.bn.weight", "text.s1.b10"),
        ("text_model.gamma", "text.gamma"),
    ],
)
def test_what_no_rule_knows_in_a_tower_is_named_after_its_module(name: str, layer: str) -> None:
    assert layer_of(name) == layer
    assert CLIP.has_layer(name)
    assert not CLIP.knows(name)


def test_parts_of_unknown_names_are_in_the_order_of_their_numbers() -> None:
    layers = ["vision.s2.b10", "vision.s2.b9", "vision.s10.b1", "vision.projection"]
    assert sorted(layers, key=network_order) == [layers[3], layers[1], layers[0], layers[2]]


LAYERS = list(expected_layers(12, 12))


def test_a_glob_matches_whole_names() -> None:
    assert match_layers("vision.1.*", LAYERS) == ["vision.1.attn", "vision.1.mlp"]
    assert match_layers("vision.1?.*", LAYERS) == [f"vision.{i}.{h}" for i in (10, 11) for h in ("attn", "mlp")]
    assert match_layers("*.mlp", LAYERS) == [name for name in LAYERS if name.endswith(".mlp")]
    assert match_layers("logit_scale", LAYERS) == ["logit_scale"]
    assert match_layers("*", LAYERS) == LAYERS


@pytest.mark.parametrize("glob", ["vision.1", "vision.12.*", "attn", "VISION.1.*", ""])
def test_a_glob_that_matches_nothing_is_an_error(glob: str) -> None:
    with pytest.raises(PlanError, match=r"matches no layer\. (Did you mean|Layers are)"):
        match_layers(glob, LAYERS)
    with pytest.raises(PlanError, match=r"'visoin\.1\.attn' matches no layer\. Did you mean 'vision\.1\.attn'"):
        match_layers("visoin.1.attn", LAYERS)


def test_a_tower_is_known_by_its_layers() -> None:
    assert tower_of(["vision.norm", "text.3.mlp", "logit_scale"]) == "full"
    assert tower_of(["vision.embeddings", "vision.projection", "head"]) == "vision"
    assert tower_of(["text.norm", "logit_scale"]) == "text"
