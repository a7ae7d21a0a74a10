"""`clipmerge demo`: merge two small real CLIPs, and compare the results."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

from clipmerge.api.evaluate import evaluate
from clipmerge.api.merge import merge
from clipmerge.demo.data import TEMPLATE
from clipmerge.demo.pair import prepare
from clipmerge.files import local_path, user_cache
from clipmerge.progress import Progress
from clipmerge.types import Json, StrPath

_RECIPES = ("wise-ft", "straggler-sparse", "auto")


def demo(output: StrPath | None = None, *, progress: Progress | None = None) -> Json:
    """Merge two small models by each recipe, and measure the accuracy of all models."""
    folder = local_path(output) if output else user_cache("demo")
    pair = prepare(folder)
    models = {"zero-shot": pair.zeroshot, "fine-tuned": pair.finetuned}
    for recipe in _RECIPES:
        models[recipe] = folder / f"merged-{recipe}"
        merge(
            pair.zeroshot,
            pair.finetuned,
            recipe,
            output=models[recipe],
            data=pair.calibration,
            overwrite=True,
            progress=progress,
        )
    sources = {"clean": pair.clean, **pair.shifted}
    accuracy = {}
    for name, path in models.items():
        found = evaluate(path, sources, template=TEMPLATE, progress=progress)
        accuracy[name] = found.accuracy
    return {
        "folder": str(folder),
        "models": {name: str(path) for name, path in models.items()},
        "accuracy": accuracy,
        "headline": headline_of(accuracy),
        "report": str(models["auto"] / "report.html"),
    }


def headline_of(accuracy: Mapping[str, Mapping[str, float]]) -> str:
    """Say how much accuracy `auto` keeps on clean digits, and how much it regains under shift.

    Args:
        accuracy: Accuracies from 0 to 1, by model and then by name of the images.
    """
    shifted = {model: mean_shifted(by_images) for model, by_images in accuracy.items()}
    regained = shifted["auto"] - shifted["fine-tuned"]
    lost = shifted["zero-shot"] - shifted["fine-tuned"]
    kept = accuracy["auto"]["clean"]
    had = accuracy["fine-tuned"]["clean"]
    return (
        f"auto keeps {100 * kept:.1f} of the {had:.1%} clean accuracy, and gets back"
        f" {100 * regained:.0f} of the {100 * lost:.0f} points that fine-tuning lost under shift."
    )


def mean_shifted(accuracy: Mapping[str, float]) -> float:
    """The mean accuracy of one model over the shifts."""
    shifted = dict(accuracy)
    shifted.pop("clean")
    return fmean(shifted.values())
