"""Pairs whose zero-shot model knows nothing of the target: the demo's model reads handwriting, and
is fine-tuned on printed digits.

The printed digits of fine-tuning, calibration and test are set in typefaces of their own, fetched
from npm by name. The shifts are handwriting that no model was trained on, clean and noisy.
`python -m benchmarks.digits.printed` merges each pair as a user would, and writes one JSON file per
pair.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate
from transformers import CLIPModel, CLIPProcessor

from benchmarks.digits.training import fit, normalised
from benchmarks.shifts.experiment import TrainedPair
from benchmarks.shifts.fonts.faces import load_drawings
from benchmarks.shifts.photos.judging import add_judging_options, judge_pair
from benchmarks.shifts.training import logged
from clipmerge.demo.data import TEMPLATE, ink_of, posed, shifted_pixels
from clipmerge.demo.pair import prepare
from clipmerge.files.paths import user_cache
from clipmerge.images.digits import CLASS_NAMES, SIZE, as_images, digits_as_rgb

_DIGITS = "0123456789"
#: Typefaces by set: the decision was chosen on the tuning set, and the held-out set looked at once.
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
#: The held-out set, but the pictures to merge on are set in the typefaces of the test.
FACES["same-typefaces"] = FACES["held-out"] | {"calibration": FACES["held-out"]["test"]}
#: Steps and peak learning rate by regime.
REGIMES = {"aggressive": (200, 1e-3), "mild": (80, 3e-4)}
_FINETUNING_IMAGES, _CALIBRATION_IMAGES, _TEST_IMAGES = 1200, 240, 600
#: Pictures that can be merged on in the set that compares numbers of images.
_MANY_CALIBRATION_IMAGES = 1024


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=user_cache("printed"))
    parser.add_argument("--faces", choices=FACES, default="tuning")
    parser.add_argument("--regime", choices=REGIMES, default="aggressive")
    add_judging_options(parser, _CALIBRATION_IMAGES)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with logged():
        pair = make_pair(given.cache, given.faces, given.regime, given.seed)
        judge_pair(pair, pair.name, given)


def make_pair(folder: Path, faces: str, regime: str, seed: int) -> TrainedPair:
    """Write the pictures and the models of one pair, unless they exist."""
    zeroshot = prepare(folder / "demo").zeroshot
    place = folder / f"printed-{faces}-{seed}"
    ood = {name: place / "ood" / name for name in ("handwriting", "noisy-handwriting")}
    finetuned = place / regime
    if not finetuned.is_dir():
        generator = torch.Generator().manual_seed(seed)
        calibration = _MANY_CALIBRATION_IMAGES if faces == "same-typefaces" else _CALIBRATION_IMAGES
        counts = (_FINETUNING_IMAGES, calibration, _TEST_IMAGES)
        learned, *printed = (
            _printed(folder, names, generator, count)
            for names, count in zip(FACES[faces].values(), counts, strict=True)
        )
        for role, pictures in zip(("calibration", "test"), printed, strict=True):
            _write(place / role, *pictures)
        ink, digits = ink_of("test")
        _write(ood["handwriting"], digits_as_rgb(ink), digits)
        _write(ood["noisy-handwriting"], shifted_pixels("noise", ink), digits)
        _finetune(zeroshot, *learned, REGIMES[regime], generator, finetuned)
    places = (zeroshot, finetuned, place / "calibration", place / "test", ood)
    return TrainedPair(regime, seed, *places, tuning=faces == "tuning", target=f"printed-{faces}")


def _printed(
    folder: Path, faces: Sequence[str], generator: torch.Generator, count: int
) -> tuple[Tensor, Tensor]:
    """Printed digits, dark on light, each a little turned, scaled and moved.

    Returns:
        Pixels in [0, 1], (count, 3, SIZE, SIZE), and their labels.
    """
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
    return digits_as_rgb((paper * (1 - moved) + noise).clamp(0, 1)), labels[picked]


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


if __name__ == "__main__":
    main()
