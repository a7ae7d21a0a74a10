"""Write the demo's two checkpoints and its images, once, to the user's cache.

Both checkpoints have the layout of transformers. They come with clipmerge, so that every machine
merges the same models. `benchmarks/digits` of commit 7fea82b5 trained them.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from clipmerge import __version__
from clipmerge.demo import data as demo_data
from clipmerge.demo.data import SHIFTS
from clipmerge.files.staging import refuse_existing, stage_output
from clipmerge.images.digits import CLASS_NAMES, as_images, digits_as_rgb

#: Folder with the weights of both models in 16 bits. Its subfolder ``files`` has their
#: configuration and tokenizer.
MODELS = Path(__file__).parent / "models"
_MANIFEST = "manifest.json"


@dataclass(frozen=True)
class DemoPair:
    """Paths of the demo's models and images."""

    zeroshot: Path  # checkpoint folder of the model trained on styled digits
    finetuned: Path  # checkpoint folder of the model fine-tuned on clean digits
    # clean digits to measure on, in one subfolder per class; neither model was trained on them
    calibration: Path
    clean: Path  # clean test digits, also new to both models
    shifted: dict[str, Path]  # the test digits under each shift, by name of the shift


def prepare(folder: Path) -> DemoPair:
    """Write both models and the images to a folder, unless it has them. Return their paths."""
    images = folder / "images"
    pair = DemoPair(
        zeroshot=folder / "zeroshot",
        finetuned=folder / "finetuned",
        calibration=images / "calibration",
        clean=images / "clean",
        shifted={shift: images / shift for shift in SHIFTS},
    )
    if not _is_finished(folder):
        if folder.exists():
            refuse_existing(folder, _MANIFEST, overwrite=True)
        with stage_output(folder, overwrite=True) as stage:
            _write_models_and_images(stage)
            (stage / _MANIFEST).write_text(_manifest_text(), encoding="utf-8")
    return pair


def _is_finished(folder: Path) -> bool:
    """Whether this version of clipmerge has written the whole folder."""
    manifest = folder / _MANIFEST
    return manifest.is_file() and manifest.read_text(encoding="utf-8") == _manifest_text()


def _manifest_text() -> str:
    return json.dumps({"made_by": "clipmerge demo", "version": __version__})


def _write_models_and_images(folder: Path) -> None:
    """Write both models in 32 bits, and the images, into a new folder."""
    test, digits = demo_data.digits_of_split("test")
    for model in ("zeroshot", "finetuned"):
        shutil.copytree(MODELS / "files", folder / model)
        halves = load_file(MODELS / f"{model}.safetensors")
        weights = {name: tensor.float() for name, tensor in halves.items()}
        target = folder / model / "model.safetensors"
        save_file(weights, target, metadata={"format": "pt"})
    images = folder / "images"
    ink, labels = demo_data.digits_of_split("calibration")
    _write_classes(images / "calibration", digits_as_rgb(ink), labels)
    _write_classes(images / "clean", digits_as_rgb(test), digits)
    for shift in SHIFTS:
        pixels = demo_data.shifted_pixels(shift, test)
        _write_classes(images / shift, pixels, digits)


def _write_classes(folder: Path, pixels: Tensor, digits: Tensor) -> None:
    """Write images (N, 3, SIZE, SIZE) in [0, 1] as PNG files, one subfolder per class."""
    for name in CLASS_NAMES:
        (folder / name).mkdir(parents=True)
    labelled = zip(as_images(pixels), digits.tolist(), strict=True)
    for number, (image, digit) in enumerate(labelled):
        name = CLASS_NAMES[digit]
        image.save(folder / name / f"{number:04d}.png")
