"""Towers that are built in unusual ways, and configurations that leave something out."""

import json
from pathlib import Path

import open_clip
import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor, nn

from clipmerge.errors import CheckpointError
from clipmerge.families.vision_text_dual_encoder import FAMILY
from clipmerge.models.blocks import entering
from clipmerge.models.open_clip import _tokenizer, build_module, transform_for
from clipmerge.models.transformers_clip import TransformersClip
from tests.support.tiny_families import TINY
from tests.support.tiny_open_clip import bert_text, model_config


class Tower(nn.Module):
    """Three blocks, run one after another or each on a copy."""

    def __init__(self, copied: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.copied = copied

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x.clone() if self.copied else x)
        return x


def test_blocks_that_do_not_pass_on_what_they_get_have_no_states_between_them() -> None:
    pixels = torch.ones(2, 4)
    for copied in (False, True):
        tower = Tower(copied)
        states = entering(tower, lambda tower=tower: tower(pixels))
        assert (states is None) is copied
        if states is not None:
            assert len(states) == 4
            assert torch.equal(states[0], pixels)
            assert torch.equal(states[-1], tower(pixels))


def test_a_configuration_without_towers_is_refused() -> None:
    for broken in ({"embed_dim": 3}, {"embed_dim": 3, "vision_cfg": {}, "text_cfg": 3}):
        with pytest.raises(CheckpointError, match=r"has no model_cfg with vision_cfg and text_cfg"):
            build_module(open_clip, broken)


def test_a_text_tower_of_transformers_is_built_without_its_weights(tmp_path: Path) -> None:
    model_cfg = model_config(text={**bert_text(tmp_path), "hf_model_pretrained": True})
    for setting in ("layers", "heads", "mlp_ratio", "vocab_size", "context_length"):
        model_cfg["text_cfg"].pop(setting)
    assert not list(tmp_path.glob("*.safetensors"))
    model = build_module(open_clip, model_cfg)
    assert isinstance(model, open_clip.CustomTextCLIP)
    assert type(model.text.transformer).__name__ == "BertModel"


def test_preprocessing_may_stand_in_the_folder_alone(tmp_path: Path) -> None:
    config = {"preprocess_cfg": {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    white = Image.new("RGB", (8, 8), (255, 255, 255))
    assert transform_for({}, tmp_path, 8)(white) == pytest.approx(torch.ones(3, 8, 8))
    assert transform_for({}, tmp_path / "nowhere", 8)(white).mean() > 1.5  # OpenAI's mean and deviation


def test_a_text_tower_of_clips_size_needs_no_tokenizer_of_its_own(tmp_path: Path) -> None:
    tokenizer = _tokenizer(open_clip, model_config(text={"vocab_size": 49408, "context_length": 9}), tmp_path)
    assert tokenizer(["a cat"]).shape == (1, 9)


@pytest.mark.filterwarnings("ignore")  # the tokens of ModernBERT's own vocabulary are not in this one
def test_a_text_tower_without_an_embedding_of_positions(tmp_path: Path) -> None:
    """Its positions are angles, computed from buffers that are in no file."""
    kind = TINY["ViT+BERT"]
    kind.processor().save_pretrained(tmp_path)
    vision, text = kind.config().vision_config, kind.config().text_config
    small = {name: getattr(text, name) for name in ("hidden_size", "intermediate_size", "vocab_size")}
    angles = transformers.ModernBertConfig(**small, num_hidden_layers=2, num_attention_heads=2, pad_token_id=0)
    config = transformers.VisionTextDualEncoderConfig.from_vision_text_configs(vision, angles, projection_dim=16)
    model = TransformersClip(FAMILY, json.loads(config.to_json_string(use_diff=False)), tmp_path)
    expected = dict(transformers.VisionTextDualEncoderModel(config).named_buffers())
    assert expected
    for name, buffer in model.module.named_buffers():
        assert torch.equal(buffer, expected[name]), name
    assert not model.module.training
    assert {value.shape for value in model.tokens(["a cat " * 30]).values()} == {(1, 24)}  # the tokenizer's length
