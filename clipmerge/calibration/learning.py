"""Coefficients in a box, learned by gradient descent: theta_0 + c * task_vector, c anywhere between coarse and fine.

The gradient of a coefficient is the sum of gradient * task_vector over the entries that it stands for, so one
backward pass serves every granularity.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import astuple, dataclass, fields, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from clipmerge.calibration.augmentation import KINDS, augmented
from clipmerge.calibration.objective import FORWARD, GRADIENT, Batch, Objective
from clipmerge.calibration.resume import Saved
from clipmerge.errors import MeasureError
from clipmerge.planning.tensors import rows_shape
from clipmerge.plugins import Augmentation

Granularity = Literal["layer", "parameter", "channel", "entry"]
Divergence = Literal["predictions", "features"]

#: Points of the path among which learning starts, and the steps on whose images they are compared.
ALPHAS, TRIED = tuple(tenth / 10 for tenth in range(11)), 4
# Adam's: how long the gradient and its square are remembered, and what keeps a quotient finite.
_MEMORY, _LONG_MEMORY, _TINY = 0.9, 0.999, 1e-8
#: Prompts that a step embeds; where there are more, a step draws its templates, and then its classes.
PROMPTS_A_STEP = 512


class Coefficients:
    """One coefficient a layer, parameter, output channel or entry, each in [0, 1].

    Attributes:
        values: Layer or parameter to its coefficients, float32 on the objective's device.
        started: Whether they are where learning begins.
    """

    def __init__(self, objective: Objective, granularity: Granularity, start: float | None = None) -> None:
        """Start with one coefficient everywhere.

        Args:
            objective: Its weights are what `place` sets.
            granularity: What has a coefficient of its own.
            start: The coefficient to begin with; ``None`` leaves it to `learn`.
        """
        self._objective = objective
        self.started = start is not None
        whole = granularity in ("layer", "parameter")
        self._key = {
            name: layer if granularity == "layer" else name
            for layer, names in objective.layers.items()
            for name in names
        }
        self.values: dict[str, Tensor] = {}
        for name, key in self._key.items():
            task_vector = objective.task_vector[name]
            shape = tuple(task_vector.shape)
            if granularity == "channel":
                shape = rows_shape(shape)
            self.values[key] = torch.full(() if whole else shape, start or 0.0, device=task_vector.device)

    def fill(self, value: float) -> None:
        """Start with this coefficient everywhere."""
        self.started = True
        for values in self.values.values():
            values.fill_(value)

    @torch.no_grad()
    def place(self) -> None:
        """Set the model's weights to theta_0 + c * task_vector."""
        objective = self._objective
        for name, key in self._key.items():
            theta_0, task_vector = objective.theta_0[name], objective.task_vector[name]
            torch.addcmul(theta_0, task_vector, self.values[key], out=objective.parameters[name].data)

    @torch.no_grad()
    def set_gradients(self) -> None:
        """Turn the weights' gradients into those of the coefficients, and clear them."""
        for value in self.values.values():
            value.grad = None
        for name, key in self._key.items():
            value = self.values[key]
            slope = (self._objective.gradient_of(name) * self._objective.task_vector[name]).sum_to_size(value.shape)
            value.grad = slope if value.grad is None else value.grad + slope
            self._objective.parameters[name].grad = None

    def by_parameter(self) -> dict[str, Tensor]:
        """Parameter to its coefficients, float32 on the CPU."""
        return {name: self.values[key].detach().clone().cpu() for name, key in self._key.items()}


@dataclass(frozen=True)
class Goal:
    """What is minimised: calibration loss + divergence_weight * divergence from the zero-shot model.

    Attributes:
        divergence_weight: 0 for the calibration loss alone.
        changes: What is changed in the images on which the divergence is taken; nothing for the images themselves.
        divergence: ``predictions``: KL divergence from the zero-shot model's predictions, in nats; ``features``: one
            minus the cosine to its image features.
    """

    divergence_weight: float
    changes: tuple[Augmentation, ...] = KINDS
    divergence: Divergence = "predictions"

    @property
    def forward_cost(self) -> int:
        """Forward passes' worth of the goal, an image."""
        return FORWARD * (2 if self.divergence_weight else 1)

    @property
    def gradient_cost(self) -> int:
        """Forward passes' worth of its gradient."""
        return GRADIENT * (2 if self.divergence_weight else 1)


@dataclass(frozen=True)
class Losses:
    """What one step saw.

    Attributes:
        calibration: Cross-entropy, in nats.
        divergence: From the zero-shot model.
    """

    calibration: float
    divergence: float


@dataclass(frozen=True)
class Step:
    """What a step works on.

    Attributes:
        seed: Of what it draws.
        batch: Its images.
        classes: Which classes it tells apart; ``None`` for all.
        templates: Which templates it uses; ``None`` for all.
        features: What the zero-shot model makes of the changed images, (batch, projection_dim).
        logits: And of their classes, (batch, classes).
    """

    seed: int
    batch: Batch
    classes: Tensor | None = None
    templates: Tensor | None = None
    features: Tensor | None = None
    logits: Tensor | None = None


def learn(
    objective: Objective,
    coefficients: Coefficients,
    goal: Goal,
    *,
    steps: int,
    rate: float | Mapping[str, float],
    batch: int | None = None,
    keep: Saved | None = None,
) -> list[Losses]:
    """Learn by Adam, its rate falling to zero along a half cosine, and keep every coefficient in [0, 1].

    Where coefficients have no start they start together, at the best alpha of the straight path. Every process takes
    the same steps on the same images and ends with the same coefficients, whether it takes them all or goes on from
    those of a run that was stopped.

    Args:
        objective: Calibration loss; left at the learned coefficients.
        coefficients: Changed in place.
        goal: What is minimised.
        steps: How many.
        rate: Adam's step size in coefficients; or one for each of them by name.
        batch: Images of a step, at most; ``None`` for a whole calibration batch.
        keep: Where what is learned is saved on the way; ``None`` for nowhere.

    Returns:
        What each step saw.

    Raises:
        MeasureError: If a loss is not finite.
    """
    descent = Descent(coefficients.values, rate, steps)
    trace = torch.zeros(steps, len(fields(Losses)), dtype=torch.float64)
    state = {"trace": trace, **descent.state}
    if keep and keep.restore(state):
        coefficients.started = True
        keep.say(f"learning goes on after step {int(descent.taken)} of {steps}, saved on an earlier run")
    begin = int(descent.taken)
    tried = 0 if coefficients.started else len(ALPHAS)
    plan = prepare(objective, goal, steps, batch=batch, begin=begin, tried=tried)
    if not coefficients.started:
        coefficients.fill(best_alpha(objective, plan[:TRIED], goal))
    for number, step in enumerate(plan, begin + 1):
        coefficients.place()
        trace[number - 1] = trace.new_tensor(astuple(descend(objective, step, goal)))
        coefficients.set_gradients()
        descent.step()
        objective.tick(goal.gradient_cost * len(step.batch))
        if keep:
            keep.save(state, last=number == steps)
    coefficients.place()
    return [Losses(*row) for row in trace.tolist()]


class Descent:
    """Adam in the box, with one second moment for all coefficients of a parameter.

    With a second moment of its own, a coefficient whose gradient is little but noise would move as far as those that
    count. Shared, it takes a small step.

    Attributes:
        taken: Steps taken so far, int64.
    """

    def __init__(self, values: Mapping[str, Tensor], rate: float | Mapping[str, float], steps: int) -> None:
        """Start at rest.

        Args:
            values: What is moved, by name, along its ``grad``.
            rate: Size of a first step, one for all or by name.
            steps: Steps until it is zero.
        """
        self._values = values
        self._rates = rate if isinstance(rate, Mapping) else dict.fromkeys(values, rate)
        self._steps = steps
        self.taken = torch.zeros((), dtype=torch.int64)
        self._first = {key: torch.zeros_like(value) for key, value in values.items()}
        self._second = {key: torch.zeros((), device=value.device) for key, value in values.items()}

    @property
    def state(self) -> dict[str, Tensor]:
        """The tensors that it works on, by name: with another's content in them it goes on as the other would."""
        parts = {"value": self._values, "first": self._first, "second": self._second}
        return {"taken": self.taken} | {f"{part}:{key}": held[key] for part, held in parts.items() for key in held}

    @torch.no_grad()
    def step(self) -> None:
        """Take a step, and put what left [0, 1] back."""
        number = int(self.taken)
        fall = (1 + math.cos(math.pi * number / self._steps)) / 2
        number += 1
        self.taken.fill_(number)
        for key, value in self._values.items():
            if value.grad is None:
                continue
            first = self._first[key].lerp_(value.grad, 1 - _MEMORY)
            second = self._second[key].lerp_(value.grad.square().mean(), 1 - _LONG_MEMORY)
            scale = (second / (1 - _LONG_MEMORY**number)).sqrt() + _TINY
            move = first / (scale * (1 - _MEMORY**number))
            value.sub_(move, alpha=self._rates[key] * fall).clamp_(0, 1)


def best_alpha(objective: Objective, plan: list[Step], goal: Goal) -> float:
    """Find the alpha of the straight path where the goal is lowest.

    Args:
        objective: Calibration loss; left somewhere on the path.
        plan: On what.
        goal: What is minimised.
    """
    found = {}
    kept = _embeds_less_at_once(objective, plan)
    for alpha in ALPHAS:
        objective.move_to(alpha)
        with torch.no_grad():
            losses = [goal_at(objective, step, goal, kept=kept)[0] for step in plan]
            found[alpha] = sum(float(loss) * len(step.batch) for loss, step in zip(losses, plan, strict=True))
        objective.tick(goal.forward_cost * sum(len(step.batch) for step in plan))
    return min(found, key=found.__getitem__)


def prepare(
    objective: Objective, goal: Goal, steps: int, *, batch: int | None = None, begin: int = 0, tried: int = 0
) -> list[Step]:
    """Choose what each step works on, and ask the zero-shot model about it.

    Args:
        objective: Calibration loss; left at theta_0.
        goal: What is minimised.
        steps: How many.
        batch: Images of a step, at most; ``None`` for a whole calibration batch.
        begin: How many of them were taken on an earlier run, and are left out.
        tried: Points of the path that will be tried before; for the cost that is announced.

    Returns:
        One a step; of the zero-shot model's answers only features and logits are kept.
    """
    pieces = [piece for each in objective.every_batch() for piece in each.pieces(batch)]
    planned = []
    for number in range(begin, steps):
        piece = pieces[number % len(pieces)]
        seed = (objective.seed * 1_000_003 + number) % 2**63
        planned.append(Step(seed, piece, *_drawn_prompts(objective, piece, seed)))
    sizes = [len(step.batch) for step in planned]
    cost = goal.gradient_cost + FORWARD * bool(goal.divergence_weight)
    objective.announce_work(cost * sum(sizes) + tried * goal.forward_cost * sum(sizes[:TRIED]))
    if not goal.divergence_weight:
        return planned
    objective.move_to(0.0)
    return [_asked(objective, step, goal, kept=_embeds_less_at_once(objective, planned)) for step in planned]


def _embeds_less_at_once(objective: Objective, plan: list[Step]) -> bool:
    """Whether all prompts together are no more than the steps' own, at weights that stay."""
    prompts = objective.prompts
    return prompts.classes * prompts.templates <= PROMPTS_A_STEP * len(plan)


def _drawn_prompts(objective: Objective, batch: Batch, seed: int) -> tuple[Tensor | None, Tensor | None]:
    """Draw templates, and beyond those classes, so that a step embeds a bounded number of prompts."""
    count, templates = objective.prompts.classes, objective.prompts.templates
    if count * templates <= PROMPTS_A_STEP:
        return None, None
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(templates, generator=generator)[: max(1, PROMPTS_A_STEP // count)]
    if count * len(chosen) <= PROMPTS_A_STEP:
        return None, chosen
    present = torch.unique(batch.labels.cpu())
    others = torch.randperm(count, generator=generator)
    others = others[~torch.isin(others, present)][: max(0, PROMPTS_A_STEP - len(present))]
    return torch.cat([present, others]).sort().values, chosen


@torch.no_grad()
def _asked(objective: Objective, step: Step, goal: Goal, *, kept: bool) -> Step:
    features = objective.embed(augmented(step.batch.pixels, step.seed, goal.changes))
    logits = objective.class_logits(features, objective.class_features(step.classes, step.templates, kept=kept))
    objective.tick(FORWARD * len(step.batch))
    return replace(step, features=features, logits=logits)


def descend(objective: Objective, step: Step, goal: Goal) -> Losses:
    """Leave the goal's gradient at the current weights in ``parameter.grad``.

    Args:
        objective: Calibration loss.
        step: What to work on.
        goal: What is minimised.

    Returns:
        Both parts of it.

    Raises:
        MeasureError: If a loss is not finite.
    """
    loss, seen = goal_at(objective, step, goal)
    loss.backward()  # type: ignore[no-untyped-call]
    if not math.isfinite(seen.calibration + seen.divergence):
        raise MeasureError(f"the loss of calibration batch {step.batch.number} is not finite; check the checkpoints")
    return seen


def goal_at(objective: Objective, step: Step, goal: Goal, *, kept: bool = False) -> tuple[Tensor, Losses]:
    """The goal at the weights of the moment, a scalar, and its two parts; `Objective.class_features` has ``kept``."""
    pixels, labels = step.batch.pixels, step.batch.labels
    if goal.divergence_weight:
        pixels = torch.cat([pixels, augmented(pixels, step.seed, goal.changes)])
    classes = objective.class_features(step.classes, step.templates, kept=kept)
    features = objective.embed(pixels)
    if step.classes is not None:
        labels = torch.searchsorted(step.classes.to(labels.device), labels)
    calibration = cross_entropy(objective.class_logits(features[: len(labels)], classes), labels)
    divergence = _divergence(objective, step, goal, features[len(labels) :], classes)
    loss = calibration + goal.divergence_weight * divergence
    return loss, Losses(float(calibration.detach()), float(divergence.detach()))


def _divergence(objective: Objective, step: Step, goal: Goal, features: Tensor, classes: Tensor) -> Tensor:
    if step.features is None or step.logits is None:
        return torch.zeros((), device=classes.device)
    if goal.divergence == "features":
        return 1 - (features * step.features).sum(-1).mean()
    own, target = (each.log_softmax(-1) for each in (objective.class_logits(features, classes), step.logits))
    return kl_div(own, target, reduction="batchmean", log_target=True)
