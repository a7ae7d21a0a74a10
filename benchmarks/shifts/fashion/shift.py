"""The fashion shift: train on clothes in varied pictures, fine-tune on clean ones only, test on corrupted ones."""

from __future__ import annotations

from pathlib import Path

from benchmarks.shifts.experiment import About, Shift, Source
from benchmarks.shifts.fashion.clothes import CORRUPTIONS, LABELS, load_clothes
from benchmarks.shifts.training import Pretraining, Regime

REGIMES = {"mild": Regime(steps=200, rate=2e-4), "aggressive": Regime(steps=400, rate=3e-3, weight_decay=0.0)}
#: Nothing was tuned on these pairs; contestants that are only for a held-out seed use seed 1.
SEEDS = {"mild": (1,), "aggressive": (1,)}
ABOUT = About(
    name="fashion_shift",
    module="benchmarks.shifts.fashion",
    title="Corrupted clothes",
    note=Path(__file__).with_name("about.md"),
    seeds=SEEDS,
)
#: Number of clothes for training the zero-shot model, for fine-tuning, for calibration and for testing.
_CLOTHES = 10_000, 5_000, 1_000, 500


def fashion_shift(folder: Path, quick: bool = False) -> Shift:
    """Lay out the benchmark; no two of its parts share a piece of clothing.

    Args:
        folder: Cache of the package.
        quick: Few clothes, few steps and one pair: tests that everything runs, not the results.

    Raises:
        DataError: If the package is not installed and cannot be fetched.
    """
    pretrained, finetuned, calibration, test = (count // 20 if quick else count for count in _CLOTHES)
    pixels, labels = load_clothes(folder, "train", pretrained + finetuned + calibration)
    parts = [slice(0, pretrained), slice(pretrained, pretrained + finetuned), slice(-calibration, None)]
    seen, learned, held_out = (Source(pixels[part], labels[part]) for part in parts)
    tested = Source(*load_clothes(folder, "t10k", test))
    return Shift(
        name=ABOUT.name,
        folders=tuple(sorted(LABELS)),
        pretraining=seen,
        finetuning=learned,
        calibration=held_out,
        test=tested,
        ood={change.__name__: Source(tested.pixels, tested.labels, change=change) for change in CORRUPTIONS},
        zeroshot=Pretraining(steps=30, batch=64, width=64, vision_layers=2)
        if quick
        else Pretraining(steps=400, rate=1e-3),
        regimes={"aggressive": Regime(steps=20, rate=3e-3, batch=64)} if quick else REGIMES,
        seeds={"aggressive": (0,)} if quick else SEEDS,
    )
