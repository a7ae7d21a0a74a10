"""The record of a merge: what ``--format json`` prints and ``clipmerge.json`` keeps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipmerge import __version__
from clipmerge.methods import Task
from clipmerge.planning.bought import Bought
from clipmerge.planning.layer_plan import LayerPlan
from clipmerge.planning.plan import Plan

if TYPE_CHECKING:
    from clipmerge.request import Run

_UNTOUCHED = LayerPlan(alpha=0.0, reason="not in the plan: zero-shot")


def merge_record(
    run: Run,
    plan: Plan,
    output: Path | None,
    files: Mapping[str, str | None],
    *,
    bought: Bought | None = None,
) -> dict[str, Any]:
    """Put together what was merged, why, and what came out.

    Args:
        run: The run.
        plan: Its plan, inputs' files filled in.
        output: The folder written; ``None`` for a dry run.
        files: Name of each file written to its sha256; to ``None`` where it was not hashed.
        bought: Accuracies on held-back images, where there were some.

    Returns:
        JSON-ready: ``output``, ``files``, ``recipe``, ``zeroshot``, ``finetuned`` (an object; a list when there are
        several), ``layers``, ``stragglers``, ``measurements``, ``path``, ``seconds`` and more.
    """
    data = plan.model_dump(mode="json")
    measured = data["measurements"] or {}
    finetuned = data["finetuned"]
    return {
        "clipmerge": __version__,
        "output": str(output) if output else None,
        "files": files,
        "family": run.inputs.family.name,
        "classifier": run.inputs.is_classifier,
        "recipe": data["recipe"],
        "zeroshot": data["zeroshot"],
        "finetuned": finetuned[0] if len(finetuned) == 1 else finetuned,
        "weights": data["weights"],
        "combine": data["combine"],
        "dtype": data["dtype"],
        "verdict": plan.verdict,
        "layers": _layers(run, plan),
        "stragglers": data["stragglers"],
        "straggler_scores": data["straggler_scores"],
        "measurements": plan.measurements.layers if plan.measurements else {},
        "path": measured.get("path"),
        "checks": measured.get("checks", {}),
        "bought": bought.model_dump(mode="json") if bought else None,
        "calibration": data["calibration"],
        "seed": plan.seed,
        "warnings": data["warnings"],
        "command": run.command,
        "seconds": run.seconds,
    }


def _layers(run: Run, plan: Plan) -> dict[str, dict[str, Any]]:
    task = Task(run.inputs)
    measured = plan.measurements.layers if plan.measurements else {}
    sizes = task.sizes
    layers = {}
    for layer, names in task.layers.items():
        entry = plan.layers.get(layer, _UNTOUCHED)
        layers[layer] = {
            "alpha": entry.alpha,
            "alpha_range": list(entry.alpha_range) if entry.alpha_range else None,
            "density": entry.density,
            "mask": entry.mask,
            "mask_options": entry.mask_options,
            "reason": entry.reason,
            "parameters": len(names),
            "size": sizes[layer],
            "change": measured.get(layer, {}).get("change"),
        }
    return layers
