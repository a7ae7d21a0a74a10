"""Replace each linear map by the one whose outputs are closest to those of both checkpoints on
their own inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clipmerge.methods import Decision, Task
from clipmerge.parallel import one_thread
from clipmerge.planning.plan import LayerPlan
from clipmerge.plugins import Share

# Number added to the diagonals (a ridge), as a share of the mean diagonal entry. With it the system
# has a solution, and alpha decides for inputs that are nearly zero on all images.
_RIDGE = 1e-6


def regmean(task: Task, *, alpha: Share = 0.5, off_diagonal: Share = 0.9) -> Decision:
    """Merge weight matrices by linear regression, and everything else with one coefficient.

    With G_0, G_1 the Gram matrices of the inputs at both ends, W = ((1 - alpha) W_0 G_0 + alpha W_1
    G_1) ((1 - alpha) G_0 + alpha G_1)^-1 minimises the squared error of the outputs. W equals W_0 +
    (W_1 - W_0) R with R = alpha G_1 ((1 - alpha) G_0 + alpha G_1)^-1.

    Args:
        task: The checkpoints, and the measurements if the recipe has a measure.
        alpha: Weight of the fine-tuned checkpoint, and coefficient of everything that is not a
            linear map.
        off_diagonal: Factor of the Gram matrices' off-diagonal entries; 1 is plain regression,
            smaller values shrink them, 0 uses only the size of each input.

    Returns:
        One matrix per weight matrix, as the score of the ``right-multiply`` mask.

    Raises:
        UsageError: If the inputs were not measured.

    Source:
        RegMean, Jin et al. 2022, arXiv:2212.09849.
    """
    tensors = task.need_measured(
        "the inputs of linear maps", "gram", lambda found: "gram_finetuned" in found.tensors
    ).tensors
    first, second = tensors["gram_zeroshot"], tensors["gram_finetuned"]
    scores = {
        name: _regression_matrix(first[name].double(), second[name].double(), alpha, off_diagonal)
        for name in first
    }
    layers = {}
    reasons = {}
    for layer, names in task.layers.items():
        regressed = sum(name in scores for name in names)
        layers[layer] = LayerPlan(alpha=alpha, mask="right-multiply" if regressed else None)
        reasons[layer] = f"{regressed} of {len(names)} parameters by regression"
    return Decision(layers, reasons=reasons, scores=scores)


def _regression_matrix(g_0: Tensor, g_1: Tensor, alpha: float, off_diagonal: float) -> Tensor:
    """Compute R / alpha, because the mask gets alpha times the task vector."""
    mean = (g_0.diagonal().mean() + g_1.diagonal().mean()) / 2
    ridge = _RIDGE * float(mean) or 1.0
    ours = _shrink_off_diagonal(g_0, off_diagonal, ridge)
    theirs = _shrink_off_diagonal(g_1, off_diagonal, ridge)
    with one_thread():
        both = (1 - alpha) * ours + alpha * theirs
        # with M = both, which is symmetric: the transpose of G_1 M^-1
        solved: Tensor = torch.linalg.solve(both, theirs)
    return solved.T.float().contiguous()


def _shrink_off_diagonal(gram: Tensor, off_diagonal: float, ridge: float) -> Tensor:
    """Multiply entries off the diagonal by a factor, and add the ridge to the diagonal."""
    diagonal = (1 - off_diagonal) * gram.diagonal() + ridge
    return off_diagonal * gram + torch.diag(diagonal)
