"""The demo's pair of checkpoints and its images, created once and kept in the user's cache.

Both are ordinary transformers checkpoints, trained here from a seed; see `clipmerge.demo.training`.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from clipmerge.demo import data as demo_data
from clipmerge.demo import training as demo_training
from clipmerge.demo.data import SHIFTS, TEMPLATE
from clipmerge.demo.training import Training
from clipmerge.errors import OutputError
from clipmerge.files.cache import user_cache
from clipmerge.images.digits import CLASS_NAMES, as_images, as_rgb
from clipmerge.parallel import one_thread

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import CLIPModel, CLIPProcessor

__all__ = [
    "CLASS_NAMES",
    "SHIFTS",
    "TEMPLATE",
    "DemoPair",
    "Training",
    "cache_folder",
    "prepare",
]

_MANIFEST = "manifest.json"
# Shares of the total time, for the progress bar.
_ZEROSHOT_SHARE, _FINETUNE_SHARE = 0.71, 0.26


_FULL_TRAINING = Training()


@dataclass(frozen=True)
class DemoPair:
    """Paths of the demo's models and images.

    Attributes:
        zeroshot: Checkpoint folder of the model trained on styled digits.
        finetuned: Checkpoint folder of the model fine-tuned on clean digits.
        calibration: Clean digits that no model was trained on, for measuring; one subfolder per class.
        clean: Clean test digits, likewise.
        shifted: Folders of the same test digits, shifted, by name of the shift.
        cached: Whether everything existed already.
    """

    zeroshot: Path
    finetuned: Path
    calibration: Path
    clean: Path
    shifted: dict[str, Path]
    cached: bool


def cache_folder() -> Path:
    """Return the demo's folder in the user's cache: ``clipmerge/demo`` in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    return user_cache("demo")


def prepare(
    folder: Path,
    *,
    advance: Callable[[str, float], None] | None = None,
    training: Training = _FULL_TRAINING,
) -> DemoPair:
    """Train the demo's two models and write its images, unless the folder holds them already."""
    fingerprint = _fingerprint(training)
    if _is_finished(folder, fingerprint):
        return _pair(folder, cached=True)
    _check_replaceable(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
            built = Path(scratch) / "demo"
            _build(built, training, advance or (lambda _stage, _done: None))
            _write_manifest(built, fingerprint)
            _move_in(built, Path(scratch) / "old", folder, fingerprint)
    except OSError as error:
        raise OutputError(
            f"{folder}: the demo cannot be written there ({error.strerror or error}); choose another folder"
        ) from error
    return _pair(folder, cached=False)


def _pair(folder: Path, *, cached: bool) -> DemoPair:
    images = folder / "images"
    return DemoPair(
        zeroshot=folder / "zeroshot",
        finetuned=folder / "finetuned",
        calibration=images / "calibration",
        clean=images / "clean",
        shifted={shift: images / shift for shift in SHIFTS},
        cached=cached,
    )


def _fingerprint(training: Training) -> str:
    """Hash everything that determines the result: the settings and the code that uses them."""
    sources = [inspect.getsource(module) for module in (sys.modules[__name__], demo_data, demo_training)]
    return hashlib.sha256("\n".join([repr(training), *sources]).encode()).hexdigest()


def _is_finished(folder: Path, fingerprint: str) -> bool:
    """Whether the folder holds all files in its manifest, made with these settings."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        return manifest["fingerprint"] == fingerprint and all(
            (folder / name).stat().st_size == size for name, size in manifest["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _write_manifest(folder: Path, fingerprint: str) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    manifest = {"made_by": "clipmerge demo", "fingerprint": fingerprint, "files": sizes}
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def _check_replaceable(folder: Path) -> None:
    if not folder.exists() and not folder.is_symlink():
        return
    if not folder.is_dir():
        raise OutputError(f"{folder}: is not a folder; choose another place for the demo")
    if any(folder.iterdir()) and not (folder / _MANIFEST).is_file():
        raise OutputError(
            f"{folder}: holds something other than the demo (no {_MANIFEST}); choose an empty or a new folder"
        )


def _move_in(built: Path, aside: Path, folder: Path, fingerprint: str) -> None:
    """Move the new folder to its place, unless another run was faster; the old one is removed with the scratch one."""
    if _is_finished(folder, fingerprint):
        return
    if folder.exists():
        folder.rename(aside)
    built.rename(folder)


def _build(folder: Path, training: Training, advance: Callable[[str, float], None]) -> None:
    """Train both models and write them and the images into a new folder."""
    import torch

    demo_data.ink_of("train")  # reports a missing scikit-learn at once, not after a minute
    pair = _pair(folder, cached=False)
    generator = torch.Generator().manual_seed(training.seed)

    def zeroshot_done(share: float) -> None:
        advance("training the zero-shot model", _ZEROSHOT_SHARE * share)

    def finetune_done(share: float) -> None:
        advance("fine-tuning it on clean digits", _ZEROSHOT_SHARE + _FINETUNE_SHARE * share)

    with one_thread(), _quiet_transformers():
        processor = demo_training.processor(demo_data.captions())
        tokenizer = processor.tokenizer
        model = demo_training.untrained_model(tokenizer, training.seed)
        demo_training.train_zeroshot(model, tokenizer, training, generator, zeroshot_done)
        _save(model, processor, pair.zeroshot)
        demo_training.finetune(model, tokenizer, training, generator, finetune_done)
        _save(model, processor, pair.finetuned)
    advance("writing the images", _ZEROSHOT_SHARE + _FINETUNE_SHARE)
    _write_images(pair)
    advance("writing the images", 1.0)


def _save(model: CLIPModel, processor: CLIPProcessor, folder: Path) -> None:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def _write_images(pair: DemoPair) -> None:
    ink, digits = demo_data.ink_of("test")
    calibration_ink, calibration_digits = demo_data.ink_of("calibration")
    _write_classes(pair.calibration, as_rgb(calibration_ink), calibration_digits)
    _write_classes(pair.clean, as_rgb(ink), digits)
    for shift, folder in pair.shifted.items():
        _write_classes(folder, demo_data.shifted_pixels(shift, ink), digits)


def _write_classes(folder: Path, pixels: Tensor, digits: Tensor) -> None:
    """Write images (N, 3, SIZE, SIZE) in [0, 1] as PNG files, one subfolder per class."""
    for name in CLASS_NAMES:
        (folder / name).mkdir(parents=True)
    for number, (image, digit) in enumerate(zip(as_images(pixels), digits.tolist(), strict=True)):
        image.save(folder / CLASS_NAMES[digit] / f"{number:04d}.png")


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Suppress transformers' own progress bars and hints in the caller's terminal."""
    from transformers.utils import logging

    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
