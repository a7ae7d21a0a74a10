"""One coefficient per layer, from the angle between several fine-tuned checkpoints."""

from __future__ import annotations

import numpy as np

from clipmerge.methods import Decision, Task
from clipmerge.planning.plan import LayerPlan
from clipmerge.types import Names


def model_stock(task: Task) -> Decision:
    """Move each layer from zero-shot towards the average, as far as checkpoints agree. Data-free.

    With K checkpoints, and cos the mean cosine between two of their task vectors in a layer, alpha
    = K cos / ((K - 1) cos + 1). Of the plane through all checkpoints, this is the point closest to
    the centre around which they scatter. If cos is negative, the layer stays zero-shot.

    Args:
        task: The checkpoints, and the measurements if the recipe has a measure.

    Returns:
        One coefficient per layer, in [0, 1], for the average.

    Source:
        Model Stock, Jang et al. 2024, arXiv:2403.19522.
    """
    task.need_several_finetuned("there is no angle: use 'wise-ft' or 'monosoup'")
    count = len(task.inputs.finetuned)
    layers = task.everywhere(0.0)
    reasons = dict.fromkeys(layers, "no two checkpoints moved it")
    for layer, names in task.layers.items():
        cosine = _mean_cosine(task, names)
        if cosine is not None:
            agreed = max(cosine, 0.0)
            alpha = min(count * agreed / ((count - 1) * agreed + 1), 1.0)
            layers[layer] = LayerPlan(alpha=alpha)
            reasons[layer] = f"mean cosine {cosine:.3f} between the task vectors"
    return Decision(layers, reasons=reasons, weights=task.uniform_weights)


def _mean_cosine(task: Task, names: Names) -> float | None:
    """Average the cosine over pairs of checkpoints that both moved the layer; ``None`` without such
    a pair.
    """
    count = len(task.inputs.finetuned)
    products = np.zeros((count, count))
    for name in names:
        vectors = task.task_vectors(name)
        for i in range(count):
            for j in range(i + 1):
                # a matrix product would depend on the number of threads
                products[i, j] += (vectors[i] * vectors[j]).sum()
    norms = np.sqrt(products.diagonal())
    pairs = [(i, j) for i in range(count) for j in range(i) if norms[i] * norms[j] > 0]
    cosines = [float(products[i, j] / (norms[i] * norms[j])) for i, j in pairs]
    return sum(cosines) / len(cosines) if cosines else None
