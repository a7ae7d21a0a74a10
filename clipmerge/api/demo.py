"""`clipmerge demo`: the whole story on a small real CLIP, measured as it runs."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipmerge.api.merge import Calibration, MergeRequest, make_plan, write_merge
from clipmerge.demo.pair import TEMPLATE, DemoPair, cache_folder, prepare
from clipmerge.evaluation.accuracy import evaluate_sources
from clipmerge.planning.recipe import load_recipe
from clipmerge.progress import Progress

if TYPE_CHECKING:
    from rich.console import RenderableType

_RECIPES = ("wise-ft", "straggler-sparse", "auto")


def run_demo(output: Path | None, progress: Progress) -> dict[str, Any]:
    """Train or reuse the demo's two models, merge them by each recipe, and measure all of them.

    Args:
        output: Folder for models and images; the user's cache by default.
        progress: Where to report.

    Returns:
        JSON-ready: ``accuracy`` {model: {images: 0..1}}, ``verdict`` on stragglers, ``command``, ``folder`` and the
        models' folders.

    Raises:
        DataError: If scikit-learn is not installed.
        OutputError: If the folder cannot be written.
    """
    folder = output or cache_folder()
    progress.stage("train")
    pair = prepare(folder, advance=lambda stage, share: progress.advance(share, 1.0))
    if pair.cached:
        progress.say(f"using the models trained earlier in {folder}")
    models = {"zero-shot": pair.zeroshot, "fine-tuned": pair.finetuned}
    verdicts = {}
    for name in _RECIPES:
        models[name] = folder / f"merged-{name}"
        verdicts[name] = str(_merge(pair, name, models[name], progress)["verdict"])
    return {
        "folder": str(folder),
        "models": {name: str(path) for name, path in models.items()},
        "accuracy": {name: _accuracy(path, pair, progress) for name, path in models.items()},
        "verdict": verdicts["straggler-sparse"],
        "command": _command(pair),
    }


def _merge(pair: DemoPair, name: str, output: Path, progress: Progress) -> dict[str, Any]:
    request = MergeRequest(
        str(pair.zeroshot),
        (str(pair.finetuned),),
        load_recipe(name),
        Calibration(source=str(pair.calibration)),
        command=_command(pair, name, str(output)),
    )
    return write_merge(make_plan(request, progress), output, overwrite=True)


def _accuracy(checkpoint: Path, pair: DemoPair, progress: Progress) -> dict[str, float]:
    sources = [f"clean={pair.clean}", *(f"{name}={path}" for name, path in pair.shifted.items())]
    record = evaluate_sources(str(checkpoint), sources, templates=(TEMPLATE,), progress=progress)
    accuracy: dict[str, float] = record["accuracy"]
    return accuracy


def _command(pair: DemoPair, recipe: str = "auto", output: str = "merged") -> str:
    paths = [str(pair.zeroshot), str(pair.finetuned)]
    options = ["--recipe", recipe, *(["--data", str(pair.calibration)] if recipe != "wise-ft" else [])]
    return shlex.join(["clipmerge", "merge", *paths, *options, "--output", output])


def demo_table(record: dict[str, Any]) -> RenderableType:
    """Lay the demo's result out for a terminal.

    Args:
        record: As `run_demo` returns it.

    Returns:
        Accuracy of each model on each set of images, and the verdict.
    """
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    accuracy: dict[str, dict[str, float]] = record["accuracy"]
    table = Table(box=None, pad_edge=False)
    table.add_column("accuracy, %")
    shifts = [name for name in next(iter(accuracy.values())) if name != "clean"]
    for name in ("clean", *shifts, "mean shifted"):
        table.add_column(name, justify="right")
    for model, by_images in accuracy.items():
        mean = sum(by_images[name] for name in shifts) / len(shifts)
        cells = [by_images["clean"], *(by_images[name] for name in shifts), mean]
        table.add_row(model, *(f"{100 * value:.1f}" for value in cells))
    return Group(
        table,
        Text(f"straggler-sparse: {record['verdict']}"),
    )
