"""`clipmerge demo`: merge two small CLIPs by several recipes, and compare the results."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

from clipmerge.api.evaluate import evaluate
from clipmerge.api.merge import merge
from clipmerge.demo.data import TEMPLATE
from clipmerge.demo.pair import prepare
from clipmerge.files import local_path, user_cache
from clipmerge.progress import Progress
from clipmerge.report.wording import Table
from clipmerge.types import Json, StrPath

_RECIPES = ("wise-ft", "straggler-sparse", "auto")


def demo(output: StrPath | None = None, *, progress: Progress | None = None) -> Json:
    """Merge the demo's two models by three recipes, and measure the accuracy of all five models on
    clean and shifted digits.

    Args:
        output: Folder for models and images; the user's cache by default.
        progress: See `merge`.

    Returns:
        The object that ``clipmerge demo --json`` prints.
    """
    from clipmerge.report.pages import REPORT, html_page

    folder = local_path(output) if output else user_cache("demo")
    pair = prepare(folder)
    models = {"zero-shot": pair.zeroshot, "fine-tuned": pair.finetuned}
    records = {}
    for recipe in _RECIPES:
        models[recipe] = folder / f"merged-{recipe}"
        records[recipe] = merge(
            pair.zeroshot,
            pair.finetuned,
            recipe,
            output=models[recipe],
            data=pair.calibration,
            overwrite=True,
            progress=progress,
        ).record
    sources = {"clean": pair.clean, **pair.shifted}
    accuracy = {}
    for name, path in models.items():
        found = evaluate(path, sources, template=TEMPLATE, progress=progress)
        accuracy[name] = found.accuracy
    report = models[best_merge(accuracy)] / REPORT
    data = {
        "headline": headline(accuracy),
        "folder": str(folder),
        "models": {name: str(path) for name, path in models.items()},
        "accuracy": accuracy,
        "seconds": {name: sum(made.seconds.values()) for name, made in records.items() if made},
        "report": str(report),
    }
    if made := records[best_merge(accuracy)]:  # the main process has it
        report.write_text(html_page(made, accuracy_table(data)), encoding="utf-8")
    return data


def accuracy_table(data: Json) -> Table:
    """Make the table of accuracies by model and set of images, and of seconds by merge."""
    rows = []
    for model, by_images in data["accuracy"].items():
        shares = [*by_images.values(), mean_shifted(by_images)]
        seconds = data["seconds"].get(model)
        cost = "" if seconds is None else f"{seconds:.0f}"
        rows.append([model, *(f"{100 * share:.1f}" for share in shares), cost])
    return ["accuracy, %", *data["accuracy"]["zero-shot"], "mean shifted", "seconds"], rows


def best_merge(accuracy: Mapping[str, Mapping[str, float]]) -> str:
    """Return the name of the merge that is most accurate under shift."""
    return max(list(accuracy)[2:], key=lambda model: mean_shifted(accuracy[model]))


def headline(accuracy: Mapping[str, Mapping[str, float]]) -> str:
    """Say how accurate the best merge is on clean digits, and how much of the accuracy that
    fine-tuning lost under shift it regains.

    Args:
        accuracy: Accuracies from 0 to 1, by model and then by name of the images.
    """
    best = best_merge(accuracy)
    shifted = {model: mean_shifted(by_images) for model, by_images in accuracy.items()}
    regained = shifted[best] - shifted["fine-tuned"]
    lost = shifted["zero-shot"] - shifted["fine-tuned"]
    kept = accuracy[best]["clean"]
    had = accuracy["fine-tuned"]["clean"]
    return (
        f"{best} keeps {100 * kept:.1f} of the {had:.1%} clean accuracy, and gets back"
        f" {100 * regained:.0f} of the {100 * lost:.0f} points that fine-tuning lost under shift."
    )


def mean_shifted(accuracy: Mapping[str, float]) -> float:
    """Average the accuracy of one model over the shifts, which are all images but ``clean``."""
    return fmean(share for name, share in accuracy.items() if name != "clean")
