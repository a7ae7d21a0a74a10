"""A pair whose zero-shot model knows nothing of the target: the demo's model reads handwriting, and
is fine-tuned on printed digits.

The printed digits of fine-tuning, calibration and test are set in typefaces of their own, fetched
from npm by name. The shifts are handwriting that no model was trained on, clean and noisy.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate
from transformers import CLIPModel, CLIPProcessor

from benchmarks.digits.training import fit, normalised
from benchmarks.shifts.experiment import TrainedPair
from benchmarks.shifts.fonts.faces import load_drawings
from clipmerge.demo.data import TEMPLATE, posed
from clipmerge.demo.pair import prepare
from clipmerge.images.digits import CLASS_NAMES, SIZE, as_images, as_rgb

_DIGITS = "0123456789"
#: Typefaces by set: rules were tuned on the first set, and looked at once on the second.
FACES = {
    "tuning": {
        "finetuning": ("lora", "roboto", "oswald", "merriweather", "inconsolata", "bitter"),
        "calibration": ("pt-serif", "open-sans", "playfair-display", "ubuntu-mono"),
        "test": ("noto-serif", "lato", "cardo", "source-code-pro"),
    },
    "held-out": {
        "finetuning": ("alegreya", "nunito", "anton", "crimson-text", "space-mono", "rokkitt"),
        "calibration": ("vollkorn", "work-sans", "abril-fatface", "fira-mono"),
        "test": ("eb-garamond", "raleway", "josefin-sans", "ibm-plex-mono"),
    },
}
#: Steps and peak learning rate by regime.
REGIMES = {"aggressive": (200, 1e-3), "mild": (80, 3e-4)}
_CALIBRATION_IMAGES = 240


def make_pair(folder: Path, faces: str, regime: str, seed: int) -> TrainedPair:
    """Write the pictures and the models of one pair, unless they exist."""
    demo = prepare(folder / "demo")
    place = folder / f"printed-{faces}-{seed}"
    ood = {"handwriting": demo.clean, "noisy handwriting": demo.shifted["noise"]}
    finetuned = place / regime
    if not finetuned.is_dir():
        generator = torch.Generator().manual_seed(seed)
        drawn = {
            role: _drawn(folder, names, generator, 1200 if role == "finetuning" else 600)
            for role, names in FACES[faces].items()
        }
        pixels, labels = drawn["calibration"]
        drawn["calibration"] = (pixels[:_CALIBRATION_IMAGES], labels[:_CALIBRATION_IMAGES])
        for role in ("calibration", "test"):
            _write(place / role, *drawn[role])
        _finetune(demo.zeroshot, *drawn["finetuning"], REGIMES[regime], generator, finetuned)
    return TrainedPair(
        regime,
        seed,
        demo.zeroshot,
        finetuned,
        place / "calibration",
        place / "test",
        ood,
        faces == "tuning",
        target=f"printed-{faces}",
    )


def _drawn(
    folder: Path, faces: Sequence[str], generator: torch.Generator, count: int
) -> tuple[Tensor, Tensor]:
    """Printed digits, dark on light, each a little turned, scaled and moved: (count, 3, SIZE, SIZE)
    in [0, 1], and their labels."""
    drawings = load_drawings(folder / "faces", faces, _DIGITS)
    ink = torch.cat([pixels[:, 3:].float() / 255 for pixels, _ in drawings.values()])
    labels = torch.cat([places for _, places in drawings.values()])
    picked = torch.randperm(len(ink) * (count // len(ink) + 1), generator=generator) % len(ink)
    picked = picked[:count]
    small = interpolate(ink[picked], size=(SIZE, SIZE), mode="area")
    degrees = 16 * torch.rand(count, generator=generator) - 8
    zoom = 0.5 + 0.4 * torch.rand(count, generator=generator)
    offset = 0.4 * torch.rand(count, 2, generator=generator) - 0.2
    moved = posed(small, degrees, zoom, offset)
    paper = 0.7 + 0.3 * torch.rand(count, 1, 1, 1, generator=generator)
    noise = 0.05 * torch.randn(count, 1, SIZE, SIZE, generator=generator)
    return as_rgb((paper * (1 - moved) + noise).clamp(0, 1)), labels[picked]


def _write(folder: Path, pixels: Tensor, labels: Tensor) -> None:
    for name in CLASS_NAMES:
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number, (image, digit) in enumerate(zip(as_images(pixels), labels.tolist(), strict=True)):
        image.save(folder / CLASS_NAMES[digit] / f"{number:04d}-0.png")


def _finetune(
    zeroshot: Path,
    pixels: Tensor,
    labels: Tensor,
    how: tuple[int, float],
    generator: torch.Generator,
    folder: Path,
) -> None:
    model, processor = CLIPModel.from_pretrained(zeroshot), CLIPProcessor.from_pretrained(zeroshot)
    prompts = [TEMPLATE.format(name) for name in CLASS_NAMES]
    tokens = processor.tokenizer(prompts, padding=True, return_tensors="pt")["input_ids"]

    def loss(_: float) -> Tensor:
        picked = torch.randint(len(pixels), (64,), generator=generator)
        images = normalised(pixels[picked])
        logits = model(input_ids=tokens, pixel_values=images).logits_per_image
        return cross_entropy(logits, labels[picked])

    trained = [value for name, value in model.named_parameters() if name != "logit_scale"]
    fit(trained, loss, how[0], how[1], lambda _: None)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
