"""One split of the singular directions for every matrix of a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from clipmerge.finding import Finding
from clipmerge.merging.spectral import singular_values
from clipmerge.methods import Decision, Task
from clipmerge.parallel import run_in_threads
from clipmerge.planning.plan import LayerPlan
from clipmerge.types import Shape

#: Options of the ``spectral`` mask: ``rank``, ``high`` and ``low``.
Split = dict[str, float | int]


def split_matrices(
    task: Task,
    split: Callable[[Tensor, Shape], Split],
    *,
    alpha: float,
    takes: Callable[[Shape], bool] = lambda shape: len(shape) >= 2,
) -> Decision:
    """Split each matrix's task vector, given its singular values and its shape; what is no matrix
    is taken whole.
    """
    task.need_one_finetuned()
    shapes = task.shapes
    matrices = [name for name, shape in shapes.items() if takes(shape) and 0 not in shape]

    def of(name: str) -> Split:
        return split(singular_values(task.task_vectors(name)[0]), shapes[name])

    jobs = [(4 * task.inputs.entries(name)[0].size, partial(of, name)) for name in matrices]
    split_by_name = dict(zip(matrices, run_in_threads(jobs), strict=True))
    layers = {}
    for layer, names in task.layers.items():
        splits = {name: split_by_name[name] for name in names if name in split_by_name}
        layers[layer] = LayerPlan(
            alpha=alpha,
            mask="spectral" if splits else None,
            parameters=splits,
            reason=_splits_finding(list(splits.values())),
        )
    return Decision(layers)


def _splits_finding(splits: list[Split]) -> Finding:
    if not splits:
        return Finding.of("vectors")
    ranks = [int(split["rank"]) if split["high"] else 0 for split in splits]
    return Finding.of(
        "spectral",
        matrices=len(splits),
        ranks=[min(ranks), max(ranks)],
        weak=sum(split["low"] for split in splits) / len(splits),
    )
