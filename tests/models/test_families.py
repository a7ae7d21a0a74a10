"""The forward pass of every family: the library's own numbers, forwards, backwards and from the
middle on."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoProcessor

from clipmerge.checkpoint import open_checkpoint
from clipmerge.evaluation.accuracy import load_model
from clipmerge.families import VISION_TEXT_DUAL_ENCODER
from clipmerge.images.batches import Batch
from clipmerge.models.open_clip import build_module
from clipmerge.models.transformers_clip import TransformersClip
from tests.support.small_objective import objective_for
from tests.support.tiny_clip import Folders
from tests.support.tiny_families import TINY
from tests.support.tiny_open_clip import bert_text, model_config

Pairs = Callable[[str], Folders]
MEASURED = [name for name, tiny in TINY.items() if not tiny.base]
PROMPTS = ["a photo of a cat.", "a bird", "this is some very long text, and it goes on and on"]


def pictures(count: int = 4) -> list[Image.Image]:
    rng = np.random.default_rng(3)
    return [
        Image.fromarray(rng.integers(0, 256, (20, 26, 3)).astype(np.uint8)) for _ in range(count)
    ]


class Reference:
    """The model at theta(alpha), run by its library in float64, with its own processor for prompts
    and images."""

    def __init__(self, name: str, folders: Folders, alpha: float) -> None:
        self.model, other = (
            TINY[name].model.from_pretrained(folder).double().eval() for folder in folders
        )
        theta_1 = other.state_dict()
        for key, value in self.model.state_dict().items():
            if value.is_floating_point():
                value.copy_((1 - alpha) * value + alpha * theta_1[key])
        padding = (
            {"padding": "max_length", "max_length": 24} if "SigLIP" in name else {"padding": True}
        )
        processor = AutoProcessor.from_pretrained(folders[0])
        longest = (
            22 if "RoBERTa" in name or name == "AltCLIP" else 24
        )  # RoBERTa counts from behind the padding's place
        texts = processor.tokenizer(
            PROMPTS, truncation=True, **{"max_length": longest, **padding}, return_tensors="pt"
        )
        if "SigLIP" in name:  # as the models were trained: padding is text
            texts.pop("attention_mask")
        self.inputs = {**texts, **processor.image_processor(pictures(), return_tensors="pt")}

    def loss(self) -> Tensor:
        inputs = {k: v.double() if v.is_floating_point() else v for k, v in self.inputs.items()}
        return cross_entropy(self.model(**inputs).logits_per_image, LABELS)


LABELS = torch.tensor([0, 2, 1, 1])


@pytest.mark.parametrize("name", MEASURED)
def test_loss_and_gradients_are_those_of_the_librarys_forward(
    name: str, family_pairs: Pairs
) -> None:
    folders = family_pairs(name)
    pixels = load_model(open_checkpoint(str(folders[0]))).pixels(pictures())
    batch = Batch(0, pixels, LABELS)
    objective = objective_for(folders, [batch], templates=("{}",), classes=tuple(PROMPTS))
    objective.path.set_alpha(0.5)
    reference = Reference(name, folders, 0.5)
    loss = reference.loss()
    loss.backward()
    for _, found in objective.gradients():
        assert found == pytest.approx(loss.item(), rel=1e-5)
        ours = {key: objective.path.gradient(key).double() for key in objective.path.names}
    theirs = {key: p.grad for key, p in reference.model.named_parameters() if p.grad is not None}
    largest = max(float(gradient.abs().max()) for gradient in theirs.values())
    # two families spell some names otherwise in memory: there the gradients are compared as a set
    norms = [
        sorted(float(g.norm()) for k, g in side.items() if "running" not in k)
        for side in (ours, theirs)
    ]
    silent = len(norms[0]) - len(
        norms[1]
    )  # parameters that the loss does not reach have no gradient there, zero here
    # float32 through two towers of large random weights, against float64
    assert norms[0][silent:] == pytest.approx(norms[1], rel=1e-3, abs=1e-4 * largest)
    assert max([0.0, *norms[0][:silent]]) <= 1e-6 * largest
    for key in ours.keys() & theirs.keys():
        assert float((ours[key] - theirs[key]).abs().max()) <= 3e-4 * largest, key


def test_towers_of_transformers_and_timm_are_built_without_their_weights(tmp_path: Path) -> None:
    model_cfg = model_config(
        text={**bert_text(tmp_path), "hf_model_pretrained": True},
        vision={"timm_model_name": "test_vit", "timm_pool": "", "image_size": 160},
    )
    for setting in ("layers", "heads", "mlp_ratio", "vocab_size", "context_length"):
        model_cfg["text_cfg"].pop(setting)
    assert not list(tmp_path.glob("*.safetensors"))
    model = build_module(open_clip, model_cfg)
    assert isinstance(model, open_clip.CustomTextCLIP)
    assert type(model.text.transformer).__name__ == "BertModel"


@pytest.mark.filterwarnings(
    "ignore"
)  # the tokens of ModernBERT's own vocabulary are not in this one
def test_a_text_tower_without_an_embedding_of_positions(tmp_path: Path) -> None:
    """Its positions are angles, computed from buffers that are in no file."""
    kind = TINY["ViT+BERT"]
    kind.processor().save_pretrained(tmp_path)
    vision, text = kind.config().vision_config, kind.config().text_config
    small = {
        name: getattr(text, name) for name in ("hidden_size", "intermediate_size", "vocab_size")
    }
    angles = transformers.ModernBertConfig(
        **small, num_hidden_layers=2, num_attention_heads=2, pad_token_id=0
    )
    config = transformers.VisionTextDualEncoderConfig.from_vision_text_configs(
        vision, angles, projection_dim=16
    )
    model = TransformersClip(
        VISION_TEXT_DUAL_ENCODER, json.loads(config.to_json_string(use_diff=False)), tmp_path
    )
    expected = dict(transformers.VisionTextDualEncoderModel(config).named_buffers())
    assert expected
    for name, buffer in model.module.named_buffers():
        assert torch.equal(buffer, expected[name]), name
    assert not model.module.training
    assert {value.shape for value in model.tokens(["a cat " * 30]).values()} == {
        (1, 24)
    }  # the tokenizer's length
