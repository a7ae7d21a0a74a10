"""Pairs for the ancestry check: small CLIPs of the demo's digits, pre-trained twice, fine-tuned in many ways."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import CLIPModel, CLIPProcessor

from benchmarks.shifts.training import save
from clipmerge.demo import data, training
from clipmerge.demo.data import TEMPLATE
from clipmerge.demo.training import Training
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
        steps: Steps of 64 images.
        towers: What is trained: ``both``, ``vision`` or ``text``.
        optimiser: ``adamw`` or ``sgd``.
        dtype: Of the weights while they are trained; they are saved in float32.
    """

    rate: float = 1e-3
    decay: float = 0.0
    steps: int = 200
    towers: str = "both"
    optimiser: str = "adamw"
    dtype: torch.dtype = torch.float32


#: From a mild one to those whose weights end far away.
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
}


@dataclass(frozen=True)
class Pair:
    """Two checkpoints as a user would give them, and what is true of them.

    Attributes:
        name: Of the pair.
        zeroshot: Given as the zero-shot checkpoint.
        finetuned: Given as the fine-tuned one.
        truth: Whether the second started from the first.
    """

    name: str
    zeroshot: Path
    finetuned: Path
    truth: Truth


def make_models(folder: Path, *, zeroshot_steps: int = Training.zeroshot_steps) -> dict[str, Path]:
    """Train whatever is not there yet; about ten minutes on one core.

    Args:
        folder: Where models are kept.
        zeroshot_steps: Contrastive steps of each pre-training.

    Returns:
        Folder by name: ``zeroshot-S`` and ``zeroshot-S-REGIME``.
    """
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
    """Give every fine-tuned model its base, the base of another seed, and the two in the wrong order.

    Args:
        models: As `make_models` returns them.
    """
    for seed in SEEDS:
        other = (seed + 1) % len(SEEDS)
        yield Pair(
            f"pre-training {seed} and {other}", models[f"zeroshot-{seed}"], models[f"zeroshot-{other}"], "unrelated"
        )
        for name in FINE_TUNINGS:
            base, tuned = models[f"zeroshot-{seed}"], models[f"zeroshot-{seed}-{name}"]
            yield Pair(f"{name} {seed}", base, tuned, "related")
            yield Pair(f"{name} {seed}, swapped", tuned, base, "swapped")
            yield Pair(f"{name} {seed}, base {other}", models[f"zeroshot-{other}"], tuned, "unrelated")


def _pretrain(folder: Path, how: Training) -> None:
    processor = training.processor(data.captions())
    model = training.untrained_model(processor.tokenizer, how.seed)
    generator = torch.Generator().manual_seed(how.seed)
    with one_thread():
        training.train_zeroshot(model, processor.tokenizer, how, generator, lambda _: None)
    save(model, processor, folder)


def _finetune(base: Path, folder: Path, how: FineTuning, seed: int) -> None:
    model, processor = CLIPModel.from_pretrained(base), CLIPProcessor.from_pretrained(base)
    model.to(how.dtype)
    ink, digits = data.ink_of("train")
    tokens = processor.tokenizer(
        [TEMPLATE.format(name) for name in data.CLASS_NAMES], padding=True, return_tensors="pt"
    )
    generator = torch.Generator().manual_seed(100 + seed)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name != "logit_scale" and (how.towers == "both" or how.towers[:4] in name[:6]))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def loss(_: float) -> Tensor:
        picked = torch.randint(len(ink), (64,), generator=generator)
        pixels = training.normalised(data.as_rgb(ink[picked])).to(how.dtype)
        logits = model(input_ids=tokens["input_ids"], pixel_values=pixels).logits_per_image
        return cross_entropy(logits.float(), digits[picked])

    with one_thread():
        if how.optimiser == "adamw":
            training.fit(trained, loss, how.steps, how.rate, lambda _: None, weight_decay=how.decay)
        else:
            _descend(trained, loss, how)
    save(copy.deepcopy(model).float(), processor, folder)


def _descend(trained: list[torch.nn.Parameter], loss: object, how: FineTuning) -> None:
    optimiser = torch.optim.SGD(trained, lr=how.rate, momentum=0.9, weight_decay=how.decay)
    for step in range(how.steps):
        optimiser.zero_grad()
        torch.autograd.backward(loss(step / how.steps))  # type: ignore[operator]
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
