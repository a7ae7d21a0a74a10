"""A small CLIP trained on many styles of drawing, and fine-tuned on one in several regimes."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import CLIPConfig, CLIPModel, CLIPProcessor

from benchmarks.digits.training import contrastive_loss, fit, normalised, processor
from benchmarks.shifts.pictures import PLAIN, STRONG, Change, photographed
from clipmerge.images.digits import SIZE
from clipmerge.images.prompts import DEFAULT_TEMPLATE, class_prompts
from clipmerge.models.precision import multiplies_bfloat16

#: Captions of the zero-shot model; the first is that of the class prompts.
TEMPLATES = (DEFAULT_TEMPLATE, "a drawing of a {}.", "a picture of the {}.", "{}.")
_LOG = logging.getLogger("benchmarks")
_PROMPT_TOKENS = 32
# Final share of strong pictures in a batch, and share of the steps over which it is reached.
_STRONG_SHARE, _EASY_SHARE = 0.6, 0.3


@dataclass(frozen=True)
class Pretraining:
    """Settings for training the zero-shot model.

    Attributes:
        steps: Contrastive steps.
        batch: Pictures per step.
        rate: Peak learning rate.
        width: Width of both towers.
        vision_layers: Blocks of the vision tower.
        text_layers: Blocks of the text tower.
        seed: Seed of the weights, the batches and the pictures.
    """

    steps: int = 4500
    batch: int = 128
    rate: float = 1.5e-3
    width: int = 128
    vision_layers: int = 6
    text_layers: int = 2
    seed: int = 0


@dataclass(frozen=True)
class Regime:
    """Settings for training one fine-tuned model.

    Attributes:
        steps: Cross-entropy steps over all class prompts.
        rate: Peak learning rate.
        weight_decay: AdamW's weight decay.
        text: Whether the text tower is trained too.
        batch: Pictures per step.
    """

    steps: int
    rate: float
    weight_decay: float = 0.05
    text: bool = True
    batch: int = 128


@dataclass(frozen=True)
class Drawings:
    """Drawings to learn from.

    Attributes:
        classes: Names, as they stand in prompts.
        pixels: RGBA of 8 bits, shape (N, 4, 2 SIZE, 2 SIZE).
        labels: Class of each drawing, shape (N,).
        change: Change made to plain pictures of them, if any.
    """

    classes: tuple[str, ...]
    pixels: Tensor
    labels: Tensor
    change: Change | None = None

    def batch(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw this many drawings, as RGBA in [0, 1], and their labels."""
        picked = torch.randint(len(self.pixels), (count,), generator=generator)
        return self.pixels[picked].float() / 255, self.labels[picked]

    def pictures(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Make new plain pictures of this many drawings, RGB in [0, 1], and return their labels
        too."""
        drawings, labels = self.batch(count, generator)
        taken = photographed(drawings, PLAIN, generator)
        return self.change(taken, generator).clamp(0, 1) if self.change else taken, labels


@dataclass(frozen=True)
class Stills:
    """Pictures to learn from, the same ones again and again.

    Attributes:
        classes: Names, as they stand in prompts.
        pixels: RGB of 8 bits, shape (N, 3, SIZE, SIZE).
        labels: Class of each picture, shape (N,).
    """

    classes: tuple[str, ...]
    pixels: Tensor
    labels: Tensor

    def pictures(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw this many pictures, as RGB in [0, 1], and their labels."""
        picked = torch.randint(len(self.pixels), (count,), generator=generator)
        return self.pixels[picked].float() / 255, self.labels[picked]


def captions_of(classes: tuple[str, ...]) -> list[str]:
    """Write every caption: entry ``c * len(TEMPLATES) + t``."""
    return class_prompts(classes, TEMPLATES)


def pretrain(drawings: Drawings, how: Pretraining, folder: Path) -> None:
    """Train a zero-shot model like CLIP and save it, unless it exists."""
    if folder.is_dir():
        return
    captions = captions_of(drawings.classes)
    tools = processor(captions)
    tokens = tools.tokenizer(captions, padding=True, return_tensors="pt")["input_ids"]
    model = untrained(tools.tokenizer, how)
    generator = torch.Generator().manual_seed(how.seed)

    def loss(done: float) -> Tensor:
        pictures, labels = drawings.batch(how.batch, generator)
        easy = how.batch - max(1, round(_STRONG_SHARE * how.batch * min(1.0, done / _EASY_SHARE)))
        form = torch.randint(len(TEMPLATES), (how.batch,), generator=generator)
        rows, target = torch.unique(labels * len(TEMPLATES) + form, return_inverse=True)
        parts = [
            photographed(pictures[:easy], PLAIN, generator),
            photographed(pictures[easy:], STRONG, generator),
        ]
        pixels = normalised(torch.cat(parts))
        length = int((tokens[rows] != tools.tokenizer.pad_token_id).sum(dim=1).max()) + 1
        with fast():
            output = model(input_ids=tokens[rows, :length], pixel_values=pixels)
        return contrastive_loss(output.logits_per_image.float(), target)

    with torch.no_grad():
        _LOG.info(
            "%s: %d parameters", folder.name, sum(each.numel() for each in model.parameters())
        )
    fit(list(model.parameters()), loss, how.steps, how.rate, reporter(folder.name))
    save(model, tools, folder)


def finetune(
    learned: Drawings | Stills, regime: Regime, seed: int, zeroshot: Path, folder: Path
) -> None:
    """Fine-tune a zero-shot model by cross-entropy over the class prompts and save it, unless it
    exists."""
    if folder.is_dir():
        return
    model, tools = CLIPModel.from_pretrained(zeroshot), CLIPProcessor.from_pretrained(zeroshot)
    model.train()
    attend_eagerly(model)
    prompts = class_prompts(learned.classes, (DEFAULT_TEMPLATE,))
    tokens = tools.tokenizer(prompts, padding=True, return_tensors="pt")["input_ids"]
    generator = torch.Generator().manual_seed(1000 + seed)
    frozen = ("logit_scale",) if regime.text else ("logit_scale", "text_")
    trained = []
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(frozen))
        trained += [parameter] if parameter.requires_grad else []

    def loss(_: float) -> Tensor:
        pictures, labels = learned.pictures(regime.batch, generator)
        pixels = normalised(pictures)
        with fast():
            logits = model(input_ids=tokens, pixel_values=pixels).logits_per_image
        return cross_entropy(logits.float(), labels)

    fit(
        trained,
        loss,
        regime.steps,
        regime.rate,
        reporter(folder.name),
        weight_decay=regime.weight_decay,
    )
    save(model, tools, folder)


def save(model: CLIPModel, tools: CLIPProcessor, folder: Path) -> None:
    """Write a checkpoint completely or not at all."""
    scratch = folder.with_name(f".{folder.name}")
    scratch.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(scratch)
    tools.save_pretrained(scratch)
    scratch.rename(folder)


def untrained(tokenizer: Any, how: Pretraining) -> CLIPModel:
    tower = {
        "hidden_size": how.width,
        "intermediate_size": 4 * how.width,
        "num_attention_heads": how.width // 32,
        "projection_dim": how.width,
        "hidden_act": "gelu",  # one fused kernel on a CPU, instead of three for CLIP's own
    }
    text = {
        "num_hidden_layers": how.text_layers,
        "max_position_embeddings": _PROMPT_TOKENS,
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {"num_hidden_layers": how.vision_layers, "image_size": SIZE, "patch_size": 8}
    config = CLIPConfig(
        text_config=tower | text, vision_config=tower | vision, projection_dim=how.width
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(how.seed)
        model = CLIPModel(config)
        attend_eagerly(model)
        # CLIP's own 0.02 is negligible compared with the patches, and a few thousand steps are too
        # few to learn positions
        torch.nn.init.normal_(model.vision_model.embeddings.position_embedding.weight, std=0.3)
    return model


def attend_eagerly(model: CLIPModel) -> None:
    # over 17 patches the fused kernel's backward pass takes ten times as long as plain matrix
    # products
    model.set_attn_implementation("eager")


def fast() -> contextlib.AbstractContextManager[Any]:
    """Multiply matrices in bfloat16 if the processor has units for it; without them it takes ten
    times as long."""
    return torch.autocast("cpu", torch.bfloat16, enabled=multiplies_bfloat16(torch.device("cpu")))


def reporter(name: str) -> Callable[[float], None]:
    begin = time.monotonic()
    told = 0.0

    def report(done: float) -> None:
        nonlocal told
        if done - told >= 0.1 or done == 1:
            told = done
            _LOG.info("%s: %.0f%% after %.0f s", name, 100 * done, time.monotonic() - begin)

    return report


@contextlib.contextmanager
def logged() -> Iterator[None]:
    """Log progress to stderr in this context; nested contexts add nothing."""
    if _LOG.handlers:
        yield
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    _LOG.addHandler(handler)
    _LOG.setLevel(logging.INFO)
    try:
        yield
    finally:
        _LOG.removeHandler(handler)
