"""Printed digits: a real pair on which the middle of the path is a valley.

The zero-shot model is the demo's, trained on handwriting in many styles; it is fine-tuned on digits in printed faces.
Half-way between them most of what either knows is lost.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import CLIPModel, CLIPProcessor

from benchmarks.digits import styles
from benchmarks.digits import training as demo_training
from benchmarks.digits.training import Training
from clipmerge.demo.data import TEMPLATE
from clipmerge.images.digits import CLASS_NAMES, SIZE
from clipmerge.parallel import one_thread

FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
FACES = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSansMono")


_TRAINING = Training(zeroshot_steps=160)


@dataclass(frozen=True)
class PrintedPair:
    """Folders of both checkpoints, and of printed digits that neither has seen."""

    zeroshot: Path
    finetuned: Path
    images: Path


def printed(count: int, seed: int) -> tuple[list[Image.Image], list[int]]:
    """Draw digits: black on white, in a face, a size and a place that are drawn by lot."""
    rng = np.random.default_rng(seed)
    images, digits = [], []
    for number in range(count):
        face = ImageFont.truetype(str(FONTS / f"{rng.choice(FACES)}.ttf"), int(rng.integers(20, 27)))
        image = Image.new("L", (SIZE, SIZE), 255)
        place = (SIZE / 2 + rng.uniform(-3, 3), SIZE / 2 + rng.uniform(-2, 2))
        ImageDraw.Draw(image).text(place, str(number % 10), fill=0, font=face, anchor="mm")
        images.append(image.convert("RGB"))
        digits.append(number % 10)
    return images, digits


def save_printed_pair(
    folder: Path, *, zeroshot: Training = _TRAINING, steps: int = 200, rate: float = 1e-3, each: int = 60
) -> PrintedPair:
    """Train both models and save them with images; half a minute on two cores."""
    pair = PrintedPair(folder / "zeroshot", folder / "finetuned", folder / "images")
    generator = torch.Generator().manual_seed(0)
    with one_thread():
        processor = demo_training.processor(styles.captions())
        model = demo_training.untrained_model(processor.tokenizer, 0)
        demo_training.train_zeroshot(model, processor.tokenizer, zeroshot, generator, lambda _: None)
        _save(model, processor, pair.zeroshot)
        _finetune(model, processor, generator, steps, rate)
        _save(model, processor, pair.finetuned)
    for number, (image, digit) in enumerate(zip(*printed(10 * each, 1), strict=True)):
        (pair.images / CLASS_NAMES[digit]).mkdir(parents=True, exist_ok=True)
        image.save(pair.images / CLASS_NAMES[digit] / f"{number:03}.png")
    return pair


def _finetune(model: CLIPModel, processor: CLIPProcessor, generator: torch.Generator, steps: int, rate: float) -> None:
    images, digits = printed(1000, 0)
    pixels = torch.as_tensor(processor.image_processor(images, return_tensors="pt")["pixel_values"])
    labels = torch.tensor(digits)
    prompts = [TEMPLATE.format(name) for name in CLASS_NAMES]
    tokens = processor.tokenizer(prompts, padding=True, return_tensors="pt")["input_ids"]

    def loss(_: float) -> Tensor:
        picked = torch.randint(len(pixels), (64,), generator=generator)
        return cross_entropy(model(input_ids=tokens, pixel_values=pixels[picked]).logits_per_image, labels[picked])

    parameters = [parameter for name, parameter in model.named_parameters() if name != "logit_scale"]
    demo_training.fit(parameters, loss, steps, rate, lambda _: None)


def _save(model: CLIPModel, processor: CLIPProcessor, folder: Path) -> None:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
