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

from benchmarks.digits import training as demo_training
from clipmerge.demo.data import TEMPLATE
from clipmerge.demo.pair import prepare
from clipmerge.images.digits import CLASS_NAMES, SIZE
from clipmerge.parallel import one_thread

FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
FACES = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSansMono")


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


def save_printed_pair(folder: Path, *, steps: int = 200, rate: float = 1e-3, each: int = 60) -> PrintedPair:
    """Fine-tune the demo's zero-shot model on printed digits, and save it with images that it has not seen."""
    pair = PrintedPair(prepare(folder / "demo").zeroshot, folder / "finetuned", folder / "images")
    model, processor = CLIPModel.from_pretrained(pair.zeroshot), CLIPProcessor.from_pretrained(pair.zeroshot)
    with one_thread():
        _finetune(model, processor, torch.Generator().manual_seed(0), steps, rate)
    model.save_pretrained(pair.finetuned)
    processor.save_pretrained(pair.finetuned)
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
