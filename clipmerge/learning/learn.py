"""Learn coefficients by gradient descent, and let images that learning never saw choose the
result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, fields, replace
from functools import partial

import torch
from torch import Tensor

from clipmerge.files.staging import defer_signals
from clipmerge.learning.activations import Activations
from clipmerge.learning.choice import (
    EXTRAPOLATIONS,
    AccuracyLoss,
    choose_extrapolation,
    validate,
)
from clipmerge.learning.coefficients import Coefficients
from clipmerge.learning.descent import Descent
from clipmerge.learning.goal import (
    Goal,
    Losses,
    Pictures,
    backpropagate,
    losses_of,
    make_pictures,
    own_prompts,
    with_pictures,
    with_teacher_targets,
)
from clipmerge.learning.objective import FORWARD, GRADIENT, Objective
from clipmerge.learning.steps import (
    PROMPTS_A_STEP,
    Step,
    lay_out,
    shard_steps,
    with_unlabelled,
)
from clipmerge.models.memory import Pieces
from clipmerge.planning.measurements import HeldBackChoice

#: Number of steps whose pictures a CPU makes once, for the step and for the model that teaches it.
FEW = 4


@dataclass(frozen=True)
class LearningConfig:
    """Settings of learning.

    Attributes:
        goal: The goal to minimise.
        steps: Number of steps.
        rate: Adam's step size in coefficients, one for all or by name.
        sparsify: Called at the weights where learning starts; returns the parameters to make sparse
            and their density. ``None`` keeps everything.
        batch: Maximum number of images per step; ``None`` for the size of a calibration batch.
        held_back: Share of the images that learning does not see and that judge the result.
        max_loss: Points of accuracy on the held-back images that may be lost against the fine-tuned
            model.
        ceiling: Largest coefficient.
    """

    goal: Goal
    steps: int
    rate: float | Mapping[str, float]
    sparsify: Callable[[], tuple[Sequence[str], float]] | None = None
    batch: int | None = None
    held_back: float = 0.0
    max_loss: float = 100.0
    ceiling: float = 1.0


@dataclass(frozen=True)
class Learned:
    """The result of learning.

    Attributes:
        trace: The losses of each step.
        choice: The choice of the held-back images; ``None`` if none are held back.
    """

    trace: list[Losses]
    choice: HeldBackChoice | None = None


def learn(objective: Objective, coefficients: Coefficients, config: LearningConfig) -> Learned:
    """Learn with Adam, whose rate falls to zero along a half cosine, and clamp every coefficient to
    [0, ceiling].

    At the end the held-back images choose how far to go from what was learned towards the
    fine-tuned model. Processes share the images of every step, add up their gradients, and end with
    the same coefficients, whether they take all steps or resume an interrupted run.

    Args:
        objective: Calibration loss; left at the chosen coefficients.
        coefficients: Changed in place.
        config: The settings.

    Raises:
        MeasureError: If a loss is not finite.
    """
    return _Run(objective, coefficients, config).learn()


def _embed_fixed_prompts(objective: Objective) -> None:
    """Embed all prompts once for all steps, so in float32, if the text tower does not change."""
    if not objective.path.text_changes:
        objective.criterion.prompt_features()


class _Run:
    """One run of learning, from its layout to its choice."""

    def __init__(
        self, objective: Objective, coefficients: Coefficients, config: LearningConfig
    ) -> None:
        self._objective = objective
        self._coefficients = coefficients
        self._config = config
        self._layout = lay_out(objective, config.steps, batch=config.batch, share=config.held_back)
        self._storage = objective.learning_state
        self._descent = Descent(coefficients.values, config.rate, config.steps)
        self._trace = torch.zeros(config.steps, len(fields(Losses)), dtype=torch.float64)
        self._state = {"trace": self._trace, **self._descent.state}

    def learn(self) -> Learned:
        """Learn, or resume learning, and choose."""
        objective, goal = self._objective, self._config.goal
        begin = self._restore()
        steps = self._shard(
            with_unlabelled(objective, self._layout.steps, goal.unlabelled_count)[begin or 0 :]
        )
        held_back = self._shard(self._layout.validation_steps)
        self._announce(steps, held_back)
        _embed_fixed_prompts(objective)
        pieces = self._pieces(steps)
        self._sparsify(anew=begin is None)
        for few in self._with_targets(steps):
            self._descend(few, pieces)
        choice = self._choose(held_back) if held_back else None
        self._coefficients.place()
        return Learned([Losses(*row) for row in self._trace.tolist()], choice)

    def _restore(self) -> int | None:
        """Number of steps taken by an earlier run; ``None`` if there was none."""
        if not self._storage or not self._storage.restore(self._state):
            return None
        number = int(self._descent.steps_taken)
        self._storage.say(
            f"learning resumes after step {number} of {self._config.steps}, saved by an earlier run"
        )
        return number

    def _shard(self, steps: Sequence[Step]) -> list[Step]:
        """Share the images among the processes."""
        goal = self._config.goal
        counts = [
            count for step in steps for count in (len(step), goal.copy_count(len(step))) if count
        ]
        return shard_steps(self._objective, steps, min(counts, default=0))

    def _announce(self, steps: Sequence[Step], held_back: Sequence[Step]) -> None:
        """Announce the steps' work, and that of all points that the held-back images may see."""
        goal = self._config.goal
        work = 0.0
        for step in steps:
            taught, images = goal.copy_count(len(step)), goal.picture_count(len(step))
            work += (FORWARD * len(goal.teachers) * taught + GRADIENT * images) * step.work_share
        work += FORWARD * (1 + len(EXTRAPOLATIONS)) * _work_of(held_back)
        if self._config.sparsify:
            work += GRADIENT * sum(len(batch) for batch in self._objective.shares.batches)
        self._objective.work.announce(work)

    def _sparsify(self, *, anew: bool) -> None:
        """Make parameters sparse, the same ones in every run that resumes with these scores."""
        if self._config.sparsify is None:
            return
        self._objective.path.move_to(self._coefficients.start)
        self._coefficients.make_sparse(*self._config.sparsify())
        if anew:
            self._coefficients.add_noise(self._objective.seed)

    def _pieces(self, steps: Sequence[Step]) -> Pieces:
        """Pictures of a step that go through the model at once; on a card, tell how much memory
        learning takes.
        """
        objective, goal = self._objective, self._config.goal
        if not steps:
            return objective.pieces(None)
        device = objective.shares.context.device
        prompts = max(own_prompts(objective, [step]) for step in steps)
        activations = Activations(objective, goal.precision, prompts)
        pieces = objective.pieces(activations.images())
        if device.type == "cpu" or not activations.image:
            return pieces
        pictures = max(math.ceil(goal.picture_count(len(step)) * step.work_share) for step in steps)
        at_once = min(pieces.most or pictures, pictures)
        found = activations.forecast(self._state, pictures, at_once)
        objective.say(
            f"learning takes {found}; {at_once} of the {pictures} images of a step go through at"
            " once"
        )
        if "noise" in goal.changes and goal.robustness:
            objective.noise_drawn_on = device.type
        return pieces

    def _with_targets(self, steps: Sequence[Step]) -> Iterator[list[Step]]:
        """Add what the divergence holds to the steps, on a CPU to a few at a time, whose pictures
        are made once.
        """
        objective, goal = self._objective, self._config.goal
        # many prompts take longer to embed again for every few steps than pictures to make
        many = objective.path.text_changes and objective.criterion.prompts.count > PROMPTS_A_STEP
        shares_pictures = objective.shares.context.device.type == "cpu" and not many
        count = FEW if shares_pictures else max(len(steps), 1)
        for start in range(0, len(steps), count):
            few = steps[start : start + count]
            few = with_pictures(objective, few, goal) if shares_pictures else few
            yield with_teacher_targets(objective, few, goal)

    def _descend(self, steps: Sequence[Step], pieces: Pieces) -> None:
        objective, coefficients, goal = self._objective, self._coefficients, self._config.goal
        ahead: Pictures | None = None
        for place, step in enumerate(steps):
            pictures = ahead or make_pictures(step, goal)
            sums = pieces.tried(len(pictures.pixels), partial(self._backpropagate, step, pictures))
            if place + 1 < len(steps):  # the CPU goes on while a card computes this step
                ahead = make_pictures(steps[place + 1], goal)
            losses = losses_of(objective, step, sums)
            self._trace[step.number] = torch.tensor(astuple(losses))
            whole = step.shard[1] == 1  # computed by every process
            coefficients.all_reduce_(objective.shares.context.world_size if whole else 1)
            with defer_signals():  # an interruption finds the state whole
                self._descent.step(self._config.ceiling)
                coefficients.drop_gradients()
                if self._storage:
                    self._storage.save(self._state, last=step.number + 1 == self._config.steps)
            objective.work.tick(GRADIENT * goal.picture_count(len(step)) * step.work_share)

    def _backpropagate(self, step: Step, pictures: Pictures, at_once: int) -> Tensor:
        """Compute the gradients of a step, whatever an attempt with more pictures at once has
        left.
        """
        self._objective.path.clear_gradients()
        self._coefficients.place()
        last = self._coefficients.collect_gradients
        return backpropagate(
            self._objective, step, self._config.goal, pictures, at_once=at_once, last=last
        )

    def _choose(self, held_back: Sequence[Step]) -> HeldBackChoice:
        """Let the held-back images choose, and move the coefficients to their choice."""
        objective, coefficients, goal = self._objective, self._coefficients, self._config.goal
        held_back = with_pictures(objective, held_back, replace(goal, robustness=0.0))
        found: dict[float, Tensor] = {}

        def accuracies_at(extrapolation: float) -> Tensor:
            coefficients.extrapolate(extrapolation)
            coefficients.place()
            found[extrapolation] = validate(objective, held_back, goal)
            return found[extrapolation]

        objective.path.move_to(1.0)
        finetuned = validate(objective, held_back, goal)
        chosen = choose_extrapolation(accuracies_at, finetuned, self._config.max_loss)
        objective.work.announce(-FORWARD * (len(EXTRAPOLATIONS) - len(found)) * _work_of(held_back))
        objective.work.tick(0)
        if chosen is None:
            coefficients.become_finetuned()
        accuracies = finetuned if chosen is None else found[chosen]
        last_steps = self._trace[-max(1, len(self._trace) // 10) :]
        return HeldBackChoice(
            images=len(finetuned),
            alpha=1.0 if chosen is None else None,
            extrapolation=1.0 if chosen is None else chosen,
            accuracy=float(accuracies.mean()),
            finetuned_accuracy=float(finetuned.mean()),
            loss_error=AccuracyLoss.between(accuracies, finetuned).error,
            train_accuracy=Losses(*last_steps.mean(0).tolist()).accuracy
            if len(last_steps)
            else None,
            distill_target=goal.divergence,
        )


def _work_of(steps: Sequence[Step]) -> float:
    """Work of one forward pass over this process's images of some steps."""
    return sum(len(step) * step.work_share for step in steps)
