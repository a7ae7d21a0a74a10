"""Pairs for the ancestry check: small CLIPs of the demo's digits, pre-trained twice, fine-tuned in
many ways."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.parametrize import register_parametrization, remove_parametrizations
from transformers import CLIPModel, CLIPProcessor

from benchmarks.digits import styles, training
from benchmarks.digits.training import Training
from benchmarks.shifts.training import save
from clipmerge.demo.data import TEMPLATE, shuffled_digits
from clipmerge.images.digits import CLASS_NAMES, digits_as_rgb
from clipmerge.parallel import one_thread

#: Seeds of the pre-trainings; nothing else differs between them.
SEEDS = (0, 1)
Truth = Literal["related", "unrelated", "swapped"]


@dataclass(frozen=True)
class FineTuning:
    """How one model is fine-tuned on clean digits.

    Attributes:
        rate: Peak learning rate.
        decay: AdamW's weight decay.
        steps: Number of steps, each with 64 images.
        towers: The towers that are trained: ``both``, ``vision`` or ``text``.
        optimiser: ``adamw``; ``adam``, whose weight decay is a penalty in the loss; or ``sgd``.
        layer_decay: Factor of the learning rate from each block to the one below it.
        rank: Rank of the changes of the query and value matrices, if nothing else is trained; 0
            trains whole weights.
        dtype: Dtype of the weights while they are trained; they are saved in float32.
    """

    rate: float = 1e-3
    decay: float = 0.0
    steps: int = 200
    towers: str = "both"
    optimiser: str = "adamw"
    dtype: torch.dtype = torch.float32
    layer_decay: float = 1.0
    rank: int = 0


#: Regimes, from a mild one to those whose weights end far away.
FINE_TUNINGS = {
    "mild": FineTuning(rate=1e-4, decay=0.05),
    "mild-no-decay": FineTuning(rate=1e-4),
    "aggressive": FineTuning(),
    "aggressive-decay": FineTuning(decay=0.3),
    "far": FineTuning(rate=4e-3, steps=400),
    "vision-mild": FineTuning(rate=1e-4, decay=0.1, towers="vision"),
    "vision-aggressive": FineTuning(towers="vision"),
    "vision-decay": FineTuning(decay=0.5, towers="vision"),
    "text": FineTuning(rate=5e-4, decay=0.05, towers="text"),
    "sgd": FineTuning(rate=0.05, optimiser="sgd"),
    "bfloat16": FineTuning(rate=5e-4, dtype=torch.bfloat16),
    "layer-decay": FineTuning(decay=0.3, layer_decay=0.7),
    "layer-decay-strong": FineTuning(rate=5e-4, decay=2.0, layer_decay=0.75),
    "penalty": FineTuning(rate=5e-4, decay=1e-2, optimiser="adam"),
    "penalty-weak": FineTuning(rate=5e-4, decay=1e-3, optimiser="adam"),
    "low-rank": FineTuning(rate=3e-3, rank=4),
}


@dataclass(frozen=True)
class Pair:
    """Two checkpoints as a user would give them, and the truth about them.

    Attributes:
        name: Name of the pair.
        zeroshot: Given as the zero-shot checkpoint.
        finetuned: Given as the fine-tuned one.
        truth: Whether the second started from the first.
    """

    name: str
    zeroshot: Path
    finetuned: Path
    truth: Truth


def make_models(folder: Path, *, zeroshot_steps: int = Training.zeroshot_steps) -> dict[str, Path]:
    """Train the models that do not exist yet; about ten minutes on one core."""
    found = {}
    for seed in SEEDS:
        base = found[f"zeroshot-{seed}"] = folder / f"zeroshot-{seed}"
        if not base.is_dir():
            _pretrain(base, Training(seed=seed, zeroshot_steps=zeroshot_steps))
        for name, how in FINE_TUNINGS.items():
            tuned = found[f"zeroshot-{seed}-{name}"] = folder / f"zeroshot-{seed}-{name}"
            if not tuned.is_dir():
                _finetune(base, tuned, how, seed)
    return found


def pairs_of(models: dict[str, Path]) -> Iterator[Pair]:
    """Give every fine-tuned model its base, the base of another seed, and the two in the wrong
    order."""
    for seed in SEEDS:
        other = (seed + 1) % len(SEEDS)
        yield Pair(
            f"pre-training {seed} and {other}",
            models[f"zeroshot-{seed}"],
            models[f"zeroshot-{other}"],
            "unrelated",
        )
        for name in FINE_TUNINGS:
            base, tuned = models[f"zeroshot-{seed}"], models[f"zeroshot-{seed}-{name}"]
            yield Pair(f"{name} {seed}", base, tuned, "related")
            yield Pair(f"{name} {seed}, swapped", tuned, base, "swapped")
            yield Pair(
                f"{name} {seed}, base {other}", models[f"zeroshot-{other}"], tuned, "unrelated"
            )


def _pretrain(folder: Path, how: Training) -> None:
    processor = training.processor(styles.captions())
    model = training.untrained_model(processor.tokenizer, how.seed)
    generator = torch.Generator().manual_seed(how.seed)
    with one_thread():
        training.train_zeroshot(model, processor.tokenizer, how, generator, lambda _: None)
    save(model, processor, folder)


def _finetune(base: Path, folder: Path, how: FineTuning, seed: int) -> None:
    model, processor = CLIPModel.from_pretrained(base), CLIPProcessor.from_pretrained(base)
    model.to(how.dtype)
    ink, digits = (values[: Training.images] for values in shuffled_digits())
    tokens = processor.tokenizer(
        [TEMPLATE.format(name) for name in CLASS_NAMES], padding=True, return_tensors="pt"
    )
    generator = torch.Generator().manual_seed(100 + seed)
    torch.manual_seed(100 + seed)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(
            name != "logit_scale" and (how.towers == "both" or how.towers[:4] in name[:6])
        )
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def loss(_: float) -> Tensor:
        picked = torch.randint(len(ink), (64,), generator=generator)
        pixels = training.normalised(digits_as_rgb(ink[picked])).to(how.dtype)
        logits = model(input_ids=tokens["input_ids"], pixel_values=pixels).logits_per_image
        return cross_entropy(logits.float(), digits[picked])

    with one_thread():
        if how.rank:
            _fit_low_rank(model, loss, how)
        elif how.optimiser == "adamw" and how.layer_decay == 1:
            training.fit(trained, loss, how.steps, how.rate, lambda _: None, weight_decay=how.decay)
        else:
            _descend(_groups(model, how), loss, how)
    save(copy.deepcopy(model).float(), processor, folder)


def _groups(model: CLIPModel, how: FineTuning) -> list[dict[str, Any]]:
    """Give each parameter the rate of its block: the highest has ``rate``, the embeddings the
    lowest."""
    groups = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            tower = model.vision_model if name.startswith("vis") else model.text_model
            depth = len(tower.encoder.layers)
            block = re.search(r"layers\.(\d+)", name)
            below = depth - int(block[1]) if block else depth + 1 if "embeddings" in name else 0
            groups.append({"params": [parameter], "lr": how.rate * how.layer_decay**below})
    return groups


def _descend(
    groups: list[dict[str, Any]], loss: Callable[[float], Tensor], how: FineTuning
) -> None:
    kinds: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "sgd": partial(torch.optim.SGD, lr=how.rate, momentum=0.9),
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
    }
    optimiser = kinds[how.optimiser](groups, weight_decay=how.decay)
    for step in range(how.steps):
        optimiser.zero_grad()
        torch.autograd.backward(loss(step / how.steps))
        torch.nn.utils.clip_grad_norm_([each for group in groups for each in group["params"]], 1.0)
        optimiser.step()


def _fit_low_rank(model: CLIPModel, loss: Callable[[float], Tensor], how: FineTuning) -> None:
    """Train changes of low rank, and add them to the weights."""
    model.requires_grad_(False)
    adapted = {
        name: part for name, part in model.named_modules() if name.endswith(("q_proj", "v_proj"))
    }
    for part in adapted.values():
        register_parametrization(part, "weight", _LowRank(part.weight, how.rank))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    training.fit(trained, loss, how.steps, how.rate, lambda _: None, weight_decay=how.decay)
    for part in adapted.values():
        remove_parametrizations(part, "weight")


class _LowRank(torch.nn.Module):
    """A weight and a change of low rank, which is zero at first."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        self.left = torch.nn.Parameter(torch.zeros(weight.shape[0], rank))
        self.right = torch.nn.Parameter(torch.randn(rank, weight.shape[1]) / weight.shape[1] ** 0.5)

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.left @ self.right
