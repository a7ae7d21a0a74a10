"""Learn coefficients by gradient descent, and let images that learning never saw choose the
result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, fields, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from clipmerge.files.staging import defer_signals
from clipmerge.learning.activations import Activations
from clipmerge.learning.answers import FinetunedAnswers, affordable_views
from clipmerge.learning.choice import (
    EXTRAPOLATIONS,
    AccuracyLoss,
    Judges,
    choose_extrapolation,
    first_round,
)
from clipmerge.learning.coefficients import Coefficients
from clipmerge.learning.descent import Descent, LossScale
from clipmerge.learning.learning_loss import (
    LossConfig,
    Losses,
    Pictures,
    backpropagate,
    count_prompts,
    losses_of,
    make_pictures,
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
from clipmerge.models.memory import MicroBatcher
from clipmerge.models.precision import dtype_of
from clipmerge.planning.measurements import HeldBackChoice

#: Number of steps whose pictures a CPU makes once, for the step and for its teacher.
TARGET_CHUNK = 4


@dataclass(frozen=True)
class LearningConfig:
    """Settings of learning.

    Attributes:
        loss: The loss to minimise.
        steps: Number of steps.
        rate: Adam's step size in coefficients, one for all or by name.
        sparsify: Called at the weights where learning starts; returns the parameters to make sparse
            and their density. ``None`` keeps everything.
        batch: Maximum number of images per step; ``None`` for the size of a calibration batch.
        held_back: Share of the images that learning does not see and that judge the result.
        max_loss: Points of accuracy on the held-out images that may be lost against the fine-tuned
            model.
        ceiling: Largest coefficient.
    """

    loss: LossConfig
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
        choice: The choice of the held-out images; ``None`` if none are held out.
    """

    trace: list[Losses]
    choice: HeldBackChoice | None = None


def learn(objective: Objective, coefficients: Coefficients, config: LearningConfig) -> Learned:
    """Learn with Adam, whose rate falls to zero along a half cosine, and clamp every coefficient to
    [0, ceiling].

    At the end the held-out images choose how far to go from what was learned towards the
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
    if not objective.weights.text_changes:
        objective.criterion.prompt_features()


class _Compared(NamedTuple):
    """Accuracies of a point and of the fine-tuned model on the same images, (images,), and the
    point's distance from it, see `AccuracyLoss.between`.
    """

    accuracies: Tensor
    finetuned: Tensor
    distance: float


class _Run:
    """One run of learning, from its layout to its choice."""

    def __init__(
        self, objective: Objective, coefficients: Coefficients, config: LearningConfig
    ) -> None:
        self._objective = objective
        self._coefficients = coefficients
        loss = replace(config.loss, labelled=objective.labelled)
        self._config = config = replace(config, loss=loss)
        self._layout = lay_out(
            objective, config.steps, batch=config.batch, held_out_share=config.held_back
        )
        views = affordable_views(self._layout.steps)
        self._answers = FinetunedAnswers(objective, loss, views)
        self._held_out_answers = FinetunedAnswers(objective, loss)
        self._storage = objective.learning_state
        self._descent = Descent(coefficients.values, config.rate, config.steps)
        self._trace = torch.zeros(config.steps, len(fields(Losses)), dtype=torch.float64)
        self._state = {"trace": self._trace, **self._descent.state}
        self._scale: LossScale | None = None
        device = objective.data.context.device
        if dtype_of(device, config.loss.precision) == torch.float16:
            self._scale = LossScale()
            self._state["scale"] = self._scale.value

    def learn(self) -> Learned:
        """Learn, or resume learning, and choose."""
        objective, loss = self._objective, self._config.loss
        begin = self._restore()
        steps = self._shard(
            with_unlabelled(objective, self._layout.steps, loss.unlabelled_count)[begin or 0 :]
        )
        held_out = self._shard(self._layout.validation_steps)
        self._announce(steps, held_out)
        _embed_fixed_prompts(objective)
        micro_batcher = self._make_micro_batcher(steps)
        self._sparsify(anew=begin is None)
        for few in self._with_targets(steps):
            self._descend(few, micro_batcher)
        choice = self._choose(held_out) if held_out else None
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
        loss = self._config.loss
        counts = [
            count for step in steps for count in (len(step), loss.strong_count(len(step))) if count
        ]
        return shard_steps(self._objective, steps, min(counts, default=0))

    def _announce(self, steps: Sequence[Step], held_out: Sequence[Step]) -> None:
        """Announce the steps' work, and that of all points that the held-out images may see."""
        loss = self._config.loss
        work = 0.0
        for step in steps:
            taught, images = loss.strong_count(len(step)), loss.picture_count(len(step))
            work += (
                FORWARD * len(loss.teacher_alphas) * taught + GRADIENT * images
            ) * step.work_share
        work += self._choosing_work(held_out, 1 + len(EXTRAPOLATIONS))
        work += FORWARD * self._answers.count_pictures(steps)
        work += FORWARD * self._held_out_answers.count_pictures(held_out)
        if self._config.sparsify:
            work += GRADIENT * sum(len(batch) for batch in self._objective.data.batches)
        self._objective.work.announce(work)

    def _sparsify(self, *, anew: bool) -> None:
        """Make parameters sparse, the same ones in every run that resumes with these scores."""
        if self._config.sparsify is None:
            return
        self._objective.weights.set_alpha(self._coefficients.start)
        self._coefficients.make_sparse(*self._config.sparsify())
        if anew:
            self._coefficients.add_noise(self._objective.seed)

    def _make_micro_batcher(self, steps: Sequence[Step]) -> MicroBatcher:
        """Choose how many of a step's pictures go through the model at once; on a card, say how
        much memory learning takes.
        """
        objective, loss = self._objective, self._config.loss
        if not steps:
            return objective.micro_batcher(None)
        device = objective.data.context.device
        prompts = max(count_prompts(objective, [step]) for step in steps)
        activations = Activations(objective, loss.precision, prompts)
        objective.criterion.limit_prompts(activations.prompts_at_once)
        micro_batcher = objective.micro_batcher(activations.images())
        if device.type == "cpu" or not activations.image:
            return micro_batcher
        pictures = max(math.ceil(loss.picture_count(len(step)) * step.work_share) for step in steps)
        at_once = min(micro_batcher.max_images or pictures, pictures)
        forecast = activations.forecast(self._state, pictures, at_once)
        objective.say(
            f"learning takes {forecast}; {at_once} of the {pictures} images of a step go through at"
            " once"
        )
        return micro_batcher

    def _with_targets(self, steps: Sequence[Step]) -> Iterator[list[Step]]:
        """Add teacher targets to the steps, on a CPU to a few at a time, whose pictures are made
        once.
        """
        objective, loss = self._objective, self._config.loss
        # many prompts take longer to embed again for every few steps than pictures to make
        many = objective.weights.text_changes and objective.criterion.prompts.count > PROMPTS_A_STEP
        shares_pictures = objective.data.context.device.type == "cpu" and not many
        count = TARGET_CHUNK if shares_pictures else max(len(steps), 1)
        for start in range(0, len(steps), count):
            few = steps[start : start + count]
            few = with_pictures(objective, few, loss) if shares_pictures else few
            few = self._answers.with_probabilities(few)
            yield with_teacher_targets(objective, few, loss)

    def _descend(self, steps: Sequence[Step], micro_batcher: MicroBatcher) -> None:
        objective, coefficients, loss = self._objective, self._coefficients, self._config.loss
        ahead: Pictures | None = None
        for index, step in enumerate(steps):
            pictures = ahead or make_pictures(step, loss)
            whole = step.world_size == 1  # computed by every process
            fits = False
            while not fits:
                sums = micro_batcher.run(
                    len(pictures.pixels), partial(self._backpropagate, step, pictures)
                )
                if index + 1 < len(steps):  # the CPU goes on while a card computes this step
                    ahead = make_pictures(steps[index + 1], loss)
                losses = losses_of(objective, step, sums)
                coefficients.all_reduce_(objective.data.context.world_size if whole else 1)
                fits = self._scale is None or self._scale.unscale(coefficients.gradients)
            self._trace[step.number] = torch.tensor(astuple(losses))
            with defer_signals():  # an interruption finds the state whole
                self._descent.step(self._config.ceiling)
                coefficients.drop_gradients()
                if self._storage:
                    self._storage.save(self._state, last=step.number + 1 == self._config.steps)
            objective.work.tick(GRADIENT * loss.picture_count(len(step)) * step.work_share)

    def _backpropagate(self, step: Step, pictures: Pictures, at_once: int) -> Tensor:
        """Compute the gradients of a step, whatever an attempt with more pictures at once has
        left.
        """
        self._objective.weights.clear_gradients()
        self._coefficients.place()
        return backpropagate(
            self._objective,
            step,
            self._config.loss,
            pictures,
            at_once=at_once,
            scale=1.0 if self._scale is None else float(self._scale.value),
            last=self._coefficients.collect_gradients,
        )

    def _choose(self, held_out: Sequence[Step]) -> HeldBackChoice:
        """Let the held-out images choose, and move the coefficients to their choice."""
        objective, coefficients, loss = self._objective, self._coefficients, self._config.loss
        learned = coefficients.distance() or 1.0
        chosen, compared = self._choose_by(held_out, learned)
        alpha = None
        if chosen is None:
            alpha = 1.0
            if objective.labelled:  # votes see little of what the straight path loses
                alpha, compared = self._choose_alpha(learned)
            coefficients.fill(alpha)
        last_steps = self._trace[-max(1, len(self._trace) // 10) :]
        return HeldBackChoice(
            images=len(compared.finetuned),
            training_images=self._layout.training_images,
            alpha=alpha,
            extrapolation=1.0 if chosen is None else chosen,
            accuracy=float(compared.accuracies.mean()),
            finetuned_accuracy=float(compared.finetuned.mean()),
            loss_error=AccuracyLoss.between(*compared).error,
            train_accuracy=Losses(*last_steps.mean(0).tolist()).accuracy
            if len(last_steps)
            else None,
            distill_target=loss.distill,
            labelled=loss.labelled,
        )

    def _choose_alpha(self, learned: float) -> tuple[float, _Compared]:
        """Let all images choose an alpha of the straight path: it was not learned, so those that
        learning saw can judge it as well.

        Returns:
            The alpha, and the models compared there.
        """
        start = self._coefficients.start
        self._coefficients.fill(start)
        steps = self._shard(self._layout.validation_steps_on_all)
        self._objective.work.announce(self._choosing_work(steps, 1 + len(EXTRAPOLATIONS)))
        chosen, compared = self._choose_by(steps, learned)
        return (1.0 if chosen is None else start + chosen * (1 - start)), compared

    def _choose_by(self, steps: Sequence[Step], learned: float) -> tuple[float | None, _Compared]:
        """Let the images of some steps choose how far the coefficients go to the fine-tuned model.

        Args:
            steps: Show the images.
            learned: Distance of the learned point from the fine-tuned model.

        Returns:
            The share of `choose_extrapolation`, and the models compared there.
        """
        objective, coefficients = self._objective, self._coefficients
        judges = Judges(objective, steps, self._config.loss, self._held_out_answers)
        points = list[tuple[Tensor, float]]()

        def point_at(extrapolation: float) -> tuple[Tensor, float]:
            coefficients.extrapolate(extrapolation)
            coefficients.place()
            points.append((judges.recognised(), coefficients.distance() / learned))
            return points[-1]

        objective.weights.set_alpha(1.0)
        finetuned = judges.recognised()
        chosen = choose_extrapolation(point_at, finetuned, self._config.max_loss)
        objective.work.announce(-self._choosing_work(steps, len(EXTRAPOLATIONS) - len(points)))
        objective.work.tick(0)
        accuracies, distance = (finetuned, 0.0) if chosen is None else points[-1]
        return chosen, _Compared(accuracies, finetuned, distance)

    def _choosing_work(self, steps: Sequence[Step], points: int) -> float:
        """Work of judging so many points by the images of some steps."""
        unaltered = first_round(steps) if self._objective.labelled else []
        return FORWARD * points * sum(len(step) * step.work_share for step in [*steps, *unaltered])
