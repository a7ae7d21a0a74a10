"""Objectives of real sizes on the pretended device, whose tensors are hollow: shapes without entries.

Weights and images lie in memory of the CPU that is reserved and never touched.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

from clipmerge.distributed import DistributedContext
from clipmerge.families.transformers import CLIP
from clipmerge.images.batches import Batch
from clipmerge.learning.objective import Objective
from clipmerge.learning.sharded_batches import ShardedBatches
from clipmerge.learning.zeroshot_loss import Prompts
from clipmerge.models import model_for
from tests.support.tiny_clip import END, START, vocabulary

#: Width, inner width, blocks, heads and patch of the vision tower; width, inner width, blocks and
#: heads of the text tower; width of the projection; pixels.
SIZES: dict[str, tuple[tuple[int, ...], tuple[int, ...], int, int]] = {
    "B/32": ((768, 3072, 12, 12, 32), (512, 2048, 12, 8), 512, 224),
    "L/14@336": ((1024, 4096, 24, 16, 14), (768, 3072, 12, 12), 768, 336),
    "H/14": ((1280, 5120, 32, 16, 14), (1024, 4096, 24, 16), 1024, 224),
    "bigG/14": ((1664, 8192, 48, 16, 14), (1280, 5120, 32, 20), 1280, 224),
}
_NAMES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "patch_size",
)


def config_of(size: str) -> CLIPConfig:
    """The configuration of a size, with a small vocabulary's tokens among 49,408."""
    words = vocabulary()
    ends = {"bos_token_id": words[START], "eos_token_id": words[END], "pad_token_id": words[END]}
    vision, text, projection, pixels = SIZES[size]
    return CLIPConfig(
        vision_config=dict(zip(_NAMES, vision, strict=True)) | {"image_size": pixels},
        text_config=dict(zip(_NAMES, text, strict=False))
        | ends
        | {"vocab_size": 49408, "max_position_embeddings": 77},
        projection_dim=projection,
    )


def processor_of(size: str) -> CLIPProcessor:
    """Its processor."""
    side = SIZES[size][3]
    images = CLIPImageProcessor(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    )
    tokenizer = CLIPTokenizer(vocab=vocabulary(), merges=[], model_max_length=77)
    return CLIPProcessor(image_processor=images, tokenizer=tokenizer)


class HollowInputs:
    """Two checkpoints in 16 bits of which a tower or both changed."""

    def __init__(self, config: CLIPConfig, moves: tuple[str, ...]) -> None:
        with torch.device("meta"):
            model = CLIPModel(config)
        self._shapes = {name: value.shape for name, value in model.named_parameters()}
        self._moves = moves
        self.zeroshot = SimpleNamespace(source="zeroshot")
        self.finetuned = [SimpleNamespace(source="finetuned")]
        self.layers: dict[str, tuple[str, ...]] = {}
        for name, layer in CLIP.layers_of(self._shapes).items():
            self.layers[layer] = (*self.layers.get(layer, ()), name)

    def theta_0(self, name: str) -> Tensor:
        """Weights in memory that is never touched."""
        return torch.empty(self._shapes[name], dtype=torch.float16)

    theta_1 = theta_0

    def merges(self, name: str) -> bool:
        """Whether a parameter changed."""
        return name.startswith(self._moves)


def batches_of(size: str, images: int, batch_size: int = 128) -> Iterator[Batch]:
    """Images in memory that is never touched."""
    side = SIZES[size][3]
    for number, start in enumerate(range(0, images, batch_size)):
        count = min(batch_size, images - start)
        yield Batch(number, torch.empty(count, 3, side, side), torch.ones(count, dtype=torch.int64))


def hollow_objective(
    folder: Path,
    size: str,
    *,
    images: int = 1024,
    classes: int = 100,
    moves: tuple[str, ...] = ("vision_model", "visual_projection"),
    context: DistributedContext | None = None,
) -> Objective:
    """An objective whose model, weights and images are on the device; inside
    ``counted(hollow=True)``."""
    config = config_of(size)
    processor_of(size).save_pretrained(folder)
    config.save_pretrained(folder)
    inputs: Any = HollowInputs(config, moves)
    model = model_for(CLIP, json.loads(config.to_json_string()), folder)
    model.load = lambda *_: None  # type: ignore[method-assign]
    here = context or DistributedContext(torch.device("cuda"))
    letters = "abcdefghijklmnopqrstuvwxyz"
    names = [f"a {one}{two}." for one in letters for two in letters][:classes]
    data = ShardedBatches(batches_of(size, images), here)
    return Objective(model, inputs, data, Prompts(model, names, 1, here.device))
