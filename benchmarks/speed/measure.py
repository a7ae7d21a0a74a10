"""Measures of all layers against the plain loops they replace, as ratios from one run.

    python -m benchmarks.speed.measure [--json FILE]

The model is a CLIP with random weights and 12 blocks per tower. "One gradient pass" is
``CLIPModel``'s forward and a backward through both towers. "The loop" takes every layer on its own:
whole forward passes of ``CLIPModel``, gradients for that layer alone, and the same perturbations.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import CLIPModel

from benchmarks.speed.processes import checkout_folder, compare_checkouts, summary, write_results
from clipmerge.checkpoint import align_checkpoints, open_checkpoint
from clipmerge.distributed import distributed_context
from clipmerge.learning.objective import Batch, Objective
from clipmerge.learning.perturbation import LayerBall, flat
from clipmerge.learning.sharded_batches import ShardedBatches
from clipmerge.learning.zeroshot_loss import Prompts
from clipmerge.measures.first_order import first_order
from clipmerge.measures.path_barrier import path_barrier
from clipmerge.measures.worst_case import worst_case
from clipmerge.models import model_for
from tests.support.tiny_clip import tiny_config, tiny_processor

RHO = 0.5


class Plain:
    """The same loss with transformers alone.

    Attributes:
        model: A ``CLIPModel`` with the objective's current weights.
    """

    def __init__(self, objective: Objective, folder: Path, prompts: list[str]) -> None:
        self.model = CLIPModel.from_pretrained(folder).eval()
        self.tokens = dict(tiny_processor().tokenizer(prompts, padding=True, return_tensors="pt"))
        self.parameters = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(objective.weights.parameters[name])

    def loss(self, batch: Batch) -> Tensor:
        return cross_entropy(
            self.model(pixel_values=batch.pixels, **self.tokens).logits_per_image, batch.labels
        )

    def gradient_pass(self, batches: list[Batch]) -> None:
        for batch in batches:
            self.model.zero_grad()
            self.loss(batch).backward()

    def loop(
        self, objective: Objective, batches: list[Batch], steps: int
    ) -> dict[str, list[float]]:
        found: dict[str, list[float]] = {}
        for layer, names in objective.weights.layers.items():
            for name, parameter in self.parameters.items():
                parameter.requires_grad_(name in names)
            chosen = [self.parameters[name] for name in names]
            found[layer] = [self._rise(batch, chosen, steps) for batch in batches]
        return found

    def _rise(self, batch: Batch, chosen: list[torch.nn.Parameter], steps: int) -> float:
        base = self.loss(batch)
        gradient = flat(torch.autograd.grad(base, chosen))
        ball = LayerBall(chosen, norm="l2", radius=RHO, adaptive=True)
        if steps > 1:
            worst = ball.apgd(lambda: self.loss(batch), gradient, base.item(), steps)
        else:
            ball.place(ball.maximiser(gradient))
            with torch.no_grad():
                worst = self.loss(batch).item()
        ball.restore()
        return worst - base.item()


def build(folder: Path, options: argparse.Namespace) -> tuple[Objective, Plain]:
    torch.manual_seed(0)
    model = CLIPModel(tiny_config(options.blocks, options.width))
    for name in ("zeroshot", "finetuned"):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn(parameter.shape))
        model.save_pretrained(folder / name)
        tiny_processor().save_pretrained(folder / name)
    prompts = [
        f"a photo of a {chr(97 + i % 26)}{chr(97 + i // 26)}." for i in range(options.classes)
    ]
    batches = [
        Batch(
            number,
            torch.randn(options.batch_size, 3, 32, 32),
            torch.randint(0, len(prompts), (options.batch_size,)),
        )
        for number in range(options.batches)
    ]
    pair = align_checkpoints(
        open_checkpoint(str(folder / "zeroshot")), [open_checkpoint(str(folder / "finetuned"))]
    )
    assert pair.zeroshot.config is not None
    context = distributed_context("cpu")
    model = model_for(pair.family, pair.zeroshot.config, folder / "zeroshot")
    objective = Objective(
        model,
        pair,
        ShardedBatches(batches, context),
        Prompts(model, prompts, 1, context.device),
    )
    objective.weights.set_alpha(0.5)
    return objective, Plain(objective, folder / "zeroshot", prompts)


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Measure the seconds of a function, and return its result too.

    With one thread this is processor time, independent of other programs.
    """
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    begin = clock()
    answer = function()
    return clock() - begin, answer


def compare(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    objective, plain = build(folder, options)
    batches = objective.data.batches
    result: dict[str, Any] = _against_gradient_passes(objective, plain, options.rounds)
    few = Batch(
        0, batches[0].pixels[: options.apgd_images], batches[0].labels[: options.apgd_images]
    )
    for name, steps, some in (("one_step", 1, batches), ("apgd", options.steps, [few])):
        loop, expected = timed(lambda steps=steps, some=some: plain.loop(objective, some, steps))
        criterion = objective.criterion
        chosen = ShardedBatches(some, objective.data.context)
        other = Objective(criterion.model, objective.inputs, chosen, criterion.prompts)
        ours, found = timed(
            lambda steps=steps, other=other: worst_case(other, rho=RHO, steps=steps)
        )
        values = found["worst_case"].batches
        result[f"{name}_loop_over_ours"] = loop / ours
        result[f"{name}_largest_difference"] = max(
            abs(a - b)
            for layer in values
            for a, b in zip(values[layer], expected[layer], strict=True)
        )
    return result


def _against_gradient_passes(objective: Objective, plain: Plain, rounds: int) -> dict[str, Any]:
    """Both ratios, round by round, because the time of a pass drifts with the machine."""
    seconds, first_order_ratios, path_ratios = [], [], []
    plain.gradient_pass(objective.data.batches)
    for _ in range(rounds):
        six = sum(timed(lambda: plain.gradient_pass(objective.data.batches))[0] for _ in range(6))
        path, record = timed(lambda: path_barrier(objective, nodes=3, tolerance=1e9))
        assert len(record.path.alphas) == 7
        seconds.append(six / 6)
        first_order_ratios.append(timed(lambda: first_order(objective))[0] / seconds[-1])
        path_ratios.append(path / six)
    return {
        "gradient_pass_seconds": summary(seconds),
        "first_order_over_one_gradient_pass": summary(first_order_ratios),
        "path_barrier_over_six_gradient_passes": summary(path_ratios),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--blocks", type=int, default=12, help="blocks a tower")
    parser.add_argument("--width", type=int, default=128, help="width of both towers")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--batches", type=int, default=2)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--steps", type=int, default=20, help="APGD iterations")
    parser.add_argument(
        "--apgd-images", type=int, default=16, help="images for APGD alone, whose loop is long"
    )
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument(
        "--rounds", type=int, default=5, help="rounds of what is compared with gradient passes"
    )
    parser.add_argument(
        "--against",
        type=checkout_folder,
        metavar="CHECKOUT",
        help="another checkout to compare with",
    )
    options = parser.parse_args()
    if options.against:
        write_results(options.json, {"against": compare_checkouts(options.against)})
        return
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        result = compare(options, Path(folder))
    for name, value in result.items():
        spread = f"  ({value['min']:.3g} to {value['max']:.3g})" if isinstance(value, dict) else ""
        print(f"{name.replace('_', ' '):45s} {value['median'] if spread else value:.3g}{spread}")
    settings = {
        key: value for key, value in vars(options).items() if key not in ("json", "against")
    }
    write_results(options.json, {"settings": settings, **result})


if __name__ == "__main__":
    main()
