"""`clipmerge demo`: merging and comparing two small real CLIPs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from clipmerge.api._commands import spelled_out
from clipmerge.api.evaluate import evaluate
from clipmerge.api.merge import merge
from clipmerge.demo.data import TEMPLATE
from clipmerge.demo.pair import DemoPair, prepare
from clipmerge.files.cache import user_cache
from clipmerge.progress import Logged, Progress

_RECIPES = ("wise-ft", "straggler-sparse", "auto")


def demo(
    output: str | os.PathLike[str] | None = None, *, progress: Progress | None = None
) -> dict[str, Any]:
    """Merge the demo's two small models by each recipe, and measure all of them; returns a
    `DemoRecord`'s fields.
    """
    folder, reports = Path(output) if output else user_cache("demo"), progress or Logged()
    reports.stage("read")
    pair = prepare(folder)
    models = {"zero-shot": pair.zeroshot, "fine-tuned": pair.finetuned}
    for name in _RECIPES:
        models[name] = folder / f"merged-{name}"
        options: dict[str, Any] = {"data": pair.calibration, "overwrite": True, "progress": reports}
        command = _command(pair, name, models[name])
        result = merge(
            pair.zeroshot, pair.finetuned, name, output=models[name], command=command, **options
        )
    sources = {"clean": pair.clean, **pair.shifted}
    return {
        "folder": str(folder),
        "models": {name: str(path) for name, path in models.items()},
        "accuracy": {
            name: evaluate(path, sources, template=TEMPLATE, progress=reports).accuracy
            for name, path in models.items()
        },
        "verdict": result.plan.effect.verdict if result.plan.effect else "",
        "report": str(models["auto"] / "report.html"),
        "command": _command(pair, "auto", Path("merged")),
    }


def _command(pair: DemoPair, recipe: str, output: Path) -> str:
    data = None if recipe == "wise-ft" else pair.calibration
    return spelled_out(
        "merge", pair.zeroshot, pair.finetuned, recipe=recipe, data=data, output=output
    )
