"""Weight principal and remaining singular directions of each matrix's change by their energy."""

from __future__ import annotations

import math
from functools import partial
from typing import Literal

from clipmerge.merging.spectral import singular_values
from clipmerge.methods import Decision, Task
from clipmerge.parallel import side_by_side
from clipmerge.planning.finding import Finding
from clipmerge.planning.layer_plan import LayerPlan
from clipmerge.plugins import Share


def monosoup(
    task: Task, *, rank: Literal["effective", "energy"] = "effective", energy: Share = 0.8
) -> Decision:
    """Weight the strong directions of each matrix's task vector by ``high``, the weak ones by
    ``low``.

    With singular values s of the task vector, of which the first k are principal, P = their share
    of s^2 and r = (s_{k+1} / s_1)^2: low = r + (1 - r) sqrt(1 - P), high = 1 - low. A vector has
    one direction, so P = 1 and r = 0: it is taken unchanged from the fine-tuned model. Data-free.

    Args:
        task: The checkpoints, and the measurements if the recipe has a measure.
        rank: Choice of k: ``effective`` is ceil(exp(entropy of s / sum s)), ``energy`` the fewest
            directions that hold an ``energy`` share of sum s^2.
        energy: Share for ``rank: energy``.

    Returns:
        One split per matrix, as options of the ``spectral`` mask.

    Source:
        MonoSoup, arXiv:2602.09689.
    """
    task.need_one_finetuned()
    entries = {
        name: task.inputs.entries(name)[0] for names in task.layers.values() for name in names
    }
    matrices = [name for name, entry in entries.items() if len(entry.shape) >= 2 and entry.size]
    jobs = [
        (4 * entries[name].size, partial(_split, task, name, rank, energy)) for name in matrices
    ]
    found = dict(zip(matrices, side_by_side(jobs), strict=True))
    layers = {}
    for layer, names in task.layers.items():
        splits = {name: found[name] for name in names if name in found}
        layers[layer] = LayerPlan(
            alpha=1.0,
            mask="spectral" if splits else None,
            parameters=splits,
            reason=_reason(splits),
        )
    return Decision(layers)


def _split(task: Task, name: str, rank: str, energy: float) -> dict[str, float | int]:
    s = singular_values(task.task_vectors(name)[0])
    total = float((s**2).sum())
    if total == 0:
        return {"rank": 1, "high": 1.0, "low": 1.0}
    if rank == "effective":
        p = s[s > 0] / s.sum()
        k = math.ceil(math.exp(float(-(p * p.log()).sum())) - 1e-9)
    else:
        k = int(((s**2).cumsum(0) / total < energy - 1e-12).sum()) + 1
    k = min(k, len(s))
    share = min(1.0, float((s[:k] ** 2).sum()) / total)
    ratio = float((s[k] / s[0]) ** 2) if k < len(s) else 0.0
    low = ratio + (1 - ratio) * math.sqrt(1 - share)
    return {"rank": k, "high": 1 - low, "low": low}


def _reason(splits: dict[str, dict[str, float | int]]) -> Finding:
    if not splits:
        return Finding.of("vectors")
    ranks = [int(split["rank"]) for split in splits.values()]
    return Finding.of(
        "spectral",
        matrices=len(splits),
        ranks=[min(ranks), max(ranks)],
        weak=sum(split["low"] for split in splits.values()) / len(splits),
    )
