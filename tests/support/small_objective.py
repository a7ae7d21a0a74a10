"""An `Objective` over a really small CLIP, and its loss once more through transformers' own
forward."""

from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import CLIPModel

from clipmerge.config import Missing
from clipmerge.distributed import DistributedContext, distributed_context
from clipmerge.learning.learning_loss import (
    LossConfig,
    Losses,
    backpropagate,
    losses_of,
    make_pictures,
    with_teacher_targets,
)
from clipmerge.learning.objective import Batch, Objective
from clipmerge.learning.sharded_batches import ShardedBatches
from clipmerge.learning.steps import Step, lay_out
from clipmerge.learning.zeroshot_loss import Prompts
from clipmerge.models import model_for
from tests.support.tasks import inputs_of
from tests.support.tiny_clip import CLASSES, tiny_config, tiny_processor

# on tensors as small as these, threads only wait for each other
torch.set_num_threads(1)

Ends = tuple[Path, Path]
TEMPLATES = ("a {}.", "the {}", "big {}")
#: For images with a caption of their own each.
CAPTIONS = ("a cat", "the dog", "big bird", "a big cat", "the big dog", "bird", "a dog", "cat dog")


def save_ends(
    folder: Path,
    *,
    blocks: int = 2,
    width: int = 16,
    change: float = 0.1,
    moves: tuple[str, ...] = ("",),
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Ends:
    """Save both ends; weights are large enough that every layer bends the loss."""
    torch.manual_seed(seed)
    model = CLIPModel(tiny_config(blocks, width))
    paths = (folder / "zeroshot", folder / "finetuned")
    with torch.no_grad():
        for spread, path in zip((0.2, change), paths, strict=True):
            for name, parameter in model.named_parameters():
                if path == paths[0] or name.startswith(moves):
                    parameter.add_(spread * torch.randn(parameter.shape))
            deepcopy(model).to(dtype).save_pretrained(path)
            tiny_processor().save_pretrained(path)
    return paths


def make_batches(sizes: tuple[int, ...], classes: int = len(CLASSES), seed: int = 1) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for number, size in enumerate(sizes):
        pixels = torch.randn(size, 3, 32, 32, generator=generator)
        batches.append(
            Batch(number, pixels, torch.randint(0, classes, (size,), generator=generator))
        )
    return batches


def objective_for(
    ends: Ends,
    batches: Iterable[Batch],
    *,
    templates: tuple[str, ...] = TEMPLATES[:1],
    classes: tuple[str, ...] = CLASSES,
    context: DistributedContext | None = None,
    prompts_at_once: int = 512,
    missing: Missing = "error",
    **options: Any,
) -> Objective:
    pair = inputs_of(ends, missing=missing)
    model = model_for(pair.family, pair.zeroshot.config, ends[0])
    here = context or distributed_context("cpu")
    texts = [template.format(name) for name in classes for template in templates]
    prompts = Prompts(model, texts, len(templates), here.device)
    prompts.at_once = min(prompts.at_once, prompts_at_once)
    return Objective(model, pair, ShardedBatches(batches, here), prompts, **options)


def captioned(sizes: tuple[int, ...]) -> list[Batch]:
    """Batches whose images have captions of their own, drawn anew for every batch."""
    generator = torch.Generator().manual_seed(3)
    return [
        Batch(
            batch.number,
            batch.pixels,
            torch.randperm(len(CAPTIONS), generator=generator)[: len(batch)],
        )
        for batch in make_batches(sizes)
    ]


def contrastive(ends: Ends, batches: list[Batch], **options: Any) -> Objective:
    """An objective of images with captions."""
    return objective_for(
        ends, batches, templates=("{}",), classes=CAPTIONS, contrastive=True, **options
    )


def prepare(objective: Objective, loss_config: LossConfig, steps: int) -> list[Step]:
    """Steps with the zero-shot model's targets and nothing held back; leaves the objective at its
    weights."""
    return with_teacher_targets(objective, lay_out(objective, steps).steps, loss_config)


def descend(objective: Objective, step: Step, loss_config: LossConfig, **options: Any) -> Losses:
    """Compute the gradient of a step's loss, and return its losses."""
    sums = backpropagate(objective, step, loss_config, make_pictures(step, loss_config), **options)
    return losses_of(objective, step, sums)


class Reference:
    """The same loss in float64, by ``CLIPModel.forward`` at theta(alpha) and nothing of
    clipmerge."""

    def __init__(
        self,
        ends: Ends,
        *,
        templates: tuple[str, ...] = TEMPLATES[:1],
        classes: tuple[str, ...] = CLASSES,
    ) -> None:
        first, second = (
            CLIPModel.from_pretrained(path, attn_implementation="sdpa").double().eval()
            for path in ends
        )
        other = dict(second.named_parameters())
        self.ends = {
            name: (value.detach().clone(), other[name].detach().clone())
            for name, value in first.named_parameters()
        }
        self.model = first
        prompts = [template.format(name) for template in templates for name in classes]
        tokenizer = tiny_processor().tokenizer
        self.tokens = dict(tokenizer(prompts, padding=True, return_tensors="pt"))
        self.shape = (len(templates), len(classes))

    @property
    def parameters(self) -> dict[str, torch.nn.Parameter]:
        return dict(self.model.named_parameters())

    def at(self, alpha: float) -> Self:
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                zeroshot, finetuned = self.ends[name]
                parameter.copy_((1 - alpha) * zeroshot + alpha * finetuned)
        return self

    def loss(self, batch: Batch) -> Tensor:
        output = self.model(pixel_values=batch.pixels.double(), **self.tokens)
        text = output.text_embeds.reshape(*self.shape, -1).mean(dim=0)
        text = text / text.norm(dim=-1, keepdim=True)
        logits = self.model.logit_scale.exp() * output.image_embeds @ text.T
        return cross_entropy(logits, batch.labels)

    def gradient(self, batch: Batch) -> dict[str, Tensor]:
        self.model.zero_grad()
        self.loss(batch).backward()
        return {
            name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
            for name, p in self.parameters.items()
        }
