"""One split of the singular directions for every matrix of a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from clipmerge.errors import counted
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
    reasons = {}
    for layer, names in task.layers.items():
        splits = {name: split_by_name[name] for name in names if name in split_by_name}
        layers[layer] = LayerPlan(
            alpha=alpha,
            mask="spectral" if splits else None,
            parameters=splits,
        )
        reasons[layer] = _reason(list(splits.values()))
    return Decision(layers, reasons=reasons)


def _reason(splits: list[Split]) -> str:
    if not splits:
        return "vectors only: taken whole"
    ranks = [int(split["rank"]) if split["high"] else 0 for split in splits]
    spread = " to ".join(str(rank) for rank in dict.fromkeys((min(ranks), max(ranks))))
    weak = sum(split["low"] for split in splits) / len(splits)
    parts = (
        f"{1 - weak:.2f} of the principal part and {weak:.2f} of the rest"
        if weak
        else "the rest is dropped"
    )
    return f"{counted(len(splits), 'matrix', 'matrices')}: rank {spread}, {parts}"
