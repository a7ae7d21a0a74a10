"""An `Objective` over a really small CLIP, and its loss once more through transformers' own
forward."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import CLIPModel

from clipmerge.checkpoint import align_checkpoints, open_checkpoint
from clipmerge.distributed import DistributedContext
from clipmerge.images.batches import Batch
from clipmerge.images.split import held_out_positions
from clipmerge.learning.interpolate import WeightPath
from clipmerge.learning.objective import Labelled, Objective
from clipmerge.learning.train import LearningOptions
from clipmerge.models import model_for
from clipmerge.models.classifier import Captions, Prompts
from clipmerge.types import Missing
from tests.support.tiny_clip import CLASSES, tiny_config, tiny_processor

# on tensors as small as these, threads only wait for each other
torch.set_num_threads(1)

Ends = tuple[Path, Path]
TEMPLATES = ("a {}.", "the {}", "big {}")
#: The cross-entropy of images as they are, exactly.
PLAIN = LearningOptions(batch_size=8, precision="float32", weak_aug=0.0, distill_weight=0.0)
#: For images with a caption of their own each.
CAPTIONS = ("a cat", "the dog", "big bird", "a big cat", "the big dog", "bird", "a dog", "cat dog")


def save_ends(
    folder: Path,
    *,
    blocks: int = 2,
    width: int = 16,
    change: float = 0.1,
    moves: tuple[str, ...] = ("",),
) -> Ends:
    """Save both ends; weights are large enough that every layer bends the loss."""
    torch.manual_seed(0)
    model = CLIPModel(tiny_config(blocks, width))
    paths = (folder / "zeroshot", folder / "finetuned")
    with torch.no_grad():
        for spread, path in zip((0.2, change), paths, strict=True):
            for name, parameter in model.named_parameters():
                if path == paths[0] or name.startswith(moves):
                    parameter.add_(spread * torch.randn(parameter.shape))
            model.save_pretrained(path)
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


def joined(batches: Sequence[Batch]) -> Batch:
    """The images of several batches as one."""
    pixels, labels = [batch.pixels for batch in batches], [batch.labels for batch in batches]
    return Batch(0, torch.cat(pixels), torch.cat(labels))


def objective_for(
    ends: Ends,
    batches: Sequence[Batch],
    *,
    templates: tuple[str, ...] = TEMPLATES[:1],
    classes: tuple[str, ...] = CLASSES,
    kind: type[Prompts] = Prompts,
    context: DistributedContext | None = None,
    prompts_at_once: int = 512,
    max_images: int | None = None,
    missing: Missing = "error",
    val_share: float = 0.0,
    **options: Any,
) -> Objective:
    """An objective over all of the batches, of which only the last may be smaller; a share of the
    images is held out for ``val``."""
    zeroshot, *finetuned = (open_checkpoint(str(folder)) for folder in ends)
    pair = align_checkpoints(zeroshot, finetuned, missing=missing)
    here = context or DistributedContext("cpu")
    path = WeightPath(model_for(pair.family, pair.zeroshot.config, ends[0]), pair, here.device)
    texts = [template.format(name) for name in classes for template in templates]
    prompts = kind(path.model, texts, len(templates), here.device, moves=path.text_changes)
    prompts.at_once = min(prompts.at_once, prompts_at_once)
    images = joined(batches)
    if held_out := held_out_positions(tuple(images.labels.tolist()), val_share, 0):
        rest = [at for at in range(len(images)) if at not in held_out]
        images, val = (Batch(0, images.pixels[at], images.labels[at]) for at in (rest, held_out))
        options.setdefault("val", val)
    if "val" in options:
        options["val"] = Labelled(options["val"], prompts)
    objective = Objective(path, prompts, images, here, len(batches[0]), **options)
    objective.micro_batcher.max_images = max_images
    return objective


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


def contrastive(ends: Ends, batches: Sequence[Batch], **options: Any) -> Objective:
    """An objective of images with captions."""
    return objective_for(
        ends, batches, templates=("{}",), classes=CAPTIONS, kind=Captions, **options
    )


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
