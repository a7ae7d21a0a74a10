"""Layers of parameter names, on the key lists of real CLIP models."""

import pytest
import torch
from transformers import CLIPConfig, CLIPModel

from clipmerge.errors import UsageError
from clipmerge.families import layers_of
from clipmerge.layers import match_layers, network_order
from tests.support.merge_records import layer_names


def test_every_parameter_of_a_real_model_is_in_exactly_one_layer() -> None:
    config = CLIPConfig(
        vision_config={"num_hidden_layers": 24}, text_config={"num_hidden_layers": 12}
    )
    with torch.device("meta"):
        keys = list(CLIPModel(config).state_dict())
    layers = layers_of(keys)
    assert sorted(set(layers.values()), key=network_order) == layer_names(24, 12)
    assert sorted(layers) == sorted(keys)


def test_parts_of_unknown_names_are_in_the_order_of_their_numbers() -> None:
    layers = ["vision.s2.b10", "vision.s2.b9", "vision.s10.b1", "vision.projection"]
    assert sorted(layers, key=network_order) == [layers[3], layers[1], layers[0], layers[2]]


LAYERS = layer_names(12, 12)


def test_a_glob_matches_whole_names() -> None:
    assert match_layers("vision.1.*", LAYERS) == ["vision.1.attn", "vision.1.mlp"]
    assert match_layers("*.1?.mlp", LAYERS) == [
        f"{tower}.{i}.mlp" for tower in ("vision", "text") for i in (10, 11)
    ]
    assert match_layers("*", LAYERS) == LAYERS


@pytest.mark.parametrize("glob", ["vision.1", "VISION.1.*"])
def test_a_glob_that_matches_nothing_is_an_error(glob: str) -> None:
    with pytest.raises(UsageError, match=r"matches no layer\. (Did you mean|Layers are)"):
        match_layers(glob, LAYERS)
