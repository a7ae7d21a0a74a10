"""Compute the loss of captions in one of several processes, ours and open_clip's over the same
processes; started by test_contrastive_loss.py."""

import json
import sys
from pathlib import Path

import torch
from open_clip.loss import ClipLoss, SigLipLoss
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import normalize

from clipmerge.distributed import distributed_context
from clipmerge.learning.coefficients import Coefficients
from clipmerge.learning.contrastive_loss import sigmoid_losses, softmax_losses
from clipmerge.learning.learn import LearningConfig, learn
from clipmerge.learning.learning_loss import LossConfig
from tests.support.small_objective import captioned, contrastive

PAIRS = 8


def compared(rank: int, world_size: int) -> dict[str, float]:
    """How far our losses and gradients of a whole batch are from open_clip's of its parts."""
    generator = torch.Generator().manual_seed(5)
    images, texts = (
        normalize(torch.randn(PAIRS, 6, generator=generator, dtype=torch.float64), dim=1)
        for _ in range(2)
    )
    scale, bias = torch.tensor(7.0).double(), torch.tensor(-3.0).double()
    ours = {
        "softmax": lambda scores: softmax_losses(scores, torch.arange(PAIRS)).mean(),
        "sigmoid": lambda scores: sigmoid_losses(scores + bias, torch.arange(PAIRS)).mean(),
    }
    over = {"rank": rank, "world_size": world_size}
    theirs = {
        "softmax": lambda i, t: ClipLoss(local_loss=True, gather_with_grad=True, **over)(
            i, t, scale
        ),
        "sigmoid": lambda i, t: SigLipLoss(**over)(i, t, scale, bias),
    }
    rows = slice(rank * PAIRS // world_size, (rank + 1) * PAIRS // world_size)
    errors = {}
    for name in ours:
        whole = [each.clone().requires_grad_() for each in (images, texts)]
        loss = ours[name](scale * whole[0] @ whole[1].T)
        torch.autograd.backward(loss)
        parts = [each[rows].clone().requires_grad_() for each in (images, texts)]
        part = theirs[name](*parts)
        torch.autograd.backward(part)
        mean = part.detach() / world_size
        if world_size > 1:
            torch.distributed.all_reduce(mean)
        errors[name] = abs(float(mean - loss.detach()))
        for of_whole, of_part in zip(whole, parts, strict=True):
            expected, found = gradient(of_whole), gradient(of_part) / world_size
            errors[f"{name} gradient"] = float((expected[rows] - found).abs().max())
    return errors


def gradient(of: Tensor) -> Tensor:
    assert of.grad is not None
    return of.grad


def main(folder: Path) -> None:
    context = distributed_context("cpu")
    errors = compared(context.rank, context.world_size)
    batches = captioned((8, 8, 8, 8))
    objective = contrastive(
        (folder / "zeroshot", folder / "finetuned"),
        batches[context.rank :: context.world_size],
        context=context,
    )
    objective.weights.set_alpha(0.4)
    features = objective.criterion.prompt_features().double()
    scale = objective.criterion.model.module.logit_scale.exp().double()
    for number, loss in objective.losses().items():
        with torch.no_grad():
            images = objective.criterion.embed(batches[number].pixels).double()
            expected = ClipLoss()(images, features[batches[number].labels], scale)
        errors[f"batch {number}"] = abs(loss - float(expected))
    coefficients = Coefficients(objective, "entry")
    learn(objective, coefficients, LearningConfig(LossConfig(0.7, weak_aug=1.0), 3, 0.02, batch=16))
    name = f"{context.world_size}-{context.rank}"
    save_file(coefficients.by_parameter(), folder / f"{name}.safetensors")
    (folder / f"{name}.json").write_text(json.dumps(errors))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
