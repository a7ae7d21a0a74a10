"""Split the singular directions of every matrix into principal directions and the rest."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from clipmerge.errors import UsageError, counted
from clipmerge.files.safetensors import Array
from clipmerge.merging.spectral import singular_values
from clipmerge.methods import Decision, Task
from clipmerge.parallel import run_in_threads
from clipmerge.planning.plan import LayerPlan
from clipmerge.types import Shape

#: Options of the ``spectral`` mask: ``rank``, ``high`` and ``low``.
Split = dict[str, float | int]


def split_matrices(
    task: Task,
    split: Callable[[Array, Shape], Split],
    *,
    alpha: float,
    is_split: Callable[[Shape], bool] = lambda shape: len(shape) >= 2,
) -> Decision:
    """Split the task vector of each matrix by its singular values. Parameters stay whole if
    ``is_split`` is false for their shape.
    """
    if len(task.inputs.finetuned) > 1:
        raise UsageError("takes one fine-tuned checkpoint; for several use 'wise-ft'")
    shapes = task.shapes
    matrices = [name for name, shape in shapes.items() if is_split(shape) and 0 not in shape]

    def split_one(name: str) -> Split:
        (task_vector,) = task.task_vectors(name)
        return split(singular_values(task_vector), shapes[name])

    jobs = [(4 * math.prod(shapes[name]), partial(split_one, name)) for name in matrices]
    split_by_name = dict(zip(matrices, run_in_threads(jobs), strict=True))
    layers = {}
    reasons = {}
    for layer, names in task.layers.items():
        splits = {name: split_by_name[name] for name in names if name in split_by_name}
        mask = "spectral" if splits else None
        layers[layer] = LayerPlan(alpha=alpha, mask=mask, parameters=splits)
        reasons[layer] = _describe_splits(list(splits.values()))
    return Decision(layers, reasons=reasons)


def _describe_splits(splits: list[Split]) -> str:
    """Describe the splits of a layer's matrices in words, for the report."""
    if not splits:
        return "vectors only: taken whole"
    ranks = [int(split["rank"]) if split["high"] else 0 for split in splits]
    low, high = min(ranks), max(ranks)
    spread = f"{low} to {high}" if low < high else f"{low}"
    weak = sum(split["low"] for split in splits) / len(splits)
    parts = "the rest is dropped"
    if weak:
        parts = f"{1 - weak:.2f} of the principal part and {weak:.2f} of the rest"
    matrices = counted(len(splits), "matrix", "matrices")
    return f"{matrices}: rank {spread}, {parts}"
