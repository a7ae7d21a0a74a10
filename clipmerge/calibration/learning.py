"""Learn coefficients by gradient descent, and let images that learning never saw choose the result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import astuple, dataclass, fields, replace

import torch

from clipmerge.calibration.activations import Activations
from clipmerge.calibration.choice import (
    CANDIDATES,
    UNDER_A_MASK,
    ValidationScore,
    choose,
    embeds_less_at_once,
    own_prompts,
    prompts_at,
    validate,
)
from clipmerge.calibration.coefficients import Coefficients
from clipmerge.calibration.descent import Descent
from clipmerge.calibration.goal import Goal, Losses, descend, with_teacher_targets
from clipmerge.calibration.objective import FORWARD, GRADIENT, Objective
from clipmerge.calibration.steps import Step, lay_out, shard_steps, with_unlabelled
from clipmerge.planning.measurements import HeldBackChoice, LossPath

#: Points of the path that are tried as a start, and the number of steps whose images compare them if no images are
#: held back.
ALPHAS, PATH_STEPS = tuple(tenth / 10 for tenth in range(11)), 4


@dataclass(frozen=True)
class LearningConfig:
    """Settings of learning.

    Attributes:
        goal: The goal to minimise.
        steps: Number of steps.
        rate: Adam's step size in coefficients, one for all or by name.
        sparsify: Called at the weights where learning starts; returns the parameters to make sparse and their density.
            ``None`` keeps everything.
        batch: Maximum number of images per step; ``None`` for the size of a calibration batch.
        held_back: Share of the images that learning does not see and that judge the result.
        max_loss: Points of accuracy on the held-back images that may be lost against the fine-tuned model.
        ceiling: Largest coefficient; ``None`` for twice the coefficient where learning starts, at least 1.
    """

    goal: Goal
    steps: int
    rate: float | Mapping[str, float]
    sparsify: Callable[[], tuple[Sequence[str], float]] | None = None
    batch: int | None = None
    held_back: float = 0.0
    max_loss: float = 100.0
    ceiling: float | None = 1.0

    def ceiling_from(self, start: float) -> float:
        """Default ceiling: as far above the start as zero-shot (0) is below it, but at least fine-tuned (1)."""
        return max(1.0, 2 * start) if self.ceiling is None else self.ceiling


@dataclass(frozen=True)
class Learned:
    """The result of learning.

    Attributes:
        trace: The losses of each step.
        choice: The choice of the held-back images; ``None`` if none are held back.
        path: Loss along the straight path, on views of the images it was evaluated on; ``None`` if it was not.
    """

    trace: list[Losses]
    choice: HeldBackChoice | None = None
    path: LossPath | None = None


def learn(objective: Objective, coefficients: Coefficients, config: LearningConfig) -> Learned:
    """Learn with Adam, whose rate falls to zero along a half cosine, and clamp every coefficient to [0, ceiling].

    Coefficients without a start all start at the best alpha of the straight path, by the goal on the held-back images
    or, without any, on the images of the first steps. At the end the held-back images choose between points of the
    straight path, the learned point and points between them. Processes share the images of every step, add up their
    gradients, and end with the same coefficients, whether they take all steps or resume an interrupted run.

    Args:
        objective: Calibration loss; left at the chosen coefficients.
        coefficients: Changed in place.
        config: The settings.

    Raises:
        MeasureError: If a loss is not finite.
    """
    return _Run(objective, coefficients, config).learn()


def prepare(objective: Objective, goal: Goal, steps: int, *, batch: int | None = None) -> list[Step]:
    """Lay out steps with the teacher's targets and nothing held back; leaves the objective at the teacher's weights."""
    layout = lay_out(objective, steps, batch=batch)
    cached = embeds_less_at_once(objective, layout.steps)
    return with_teacher_targets(objective, layout.steps, goal, cached=cached)


class _Run:
    """One run of learning, from its layout to its choice."""

    def __init__(self, objective: Objective, coefficients: Coefficients, config: LearningConfig) -> None:
        self._objective, self._coefficients, self._config = objective, coefficients, config
        self._storage = objective.learning_state
        # validation uses every changed copy
        self._validation_goal = replace(config.goal, copies=None)
        self._candidates = CANDIDATES if config.sparsify is None else CANDIDATES + UNDER_A_MASK
        self._descent = Descent(coefficients.values, config.rate, config.steps)
        self._trace = torch.zeros(config.steps, len(fields(Losses)), dtype=torch.float64)
        # the scores of every point of the path, and then the alpha where learning starts
        self._path = torch.zeros(len(ALPHAS), len(fields(ValidationScore)), dtype=torch.float64)
        self._start = torch.zeros((), dtype=torch.float64)
        self._state = {"trace": self._trace, "path": self._path, "start": self._start, **self._descent.state}

    def learn(self) -> Learned:
        """Learn, or resume learning, and choose."""
        objective, config, goal = self._objective, self._config, self._config.goal
        begin = self._restore()
        layout = lay_out(objective, config.steps, batch=config.batch, share=config.held_back)
        steps = with_unlabelled(objective, layout.steps, goal.unlabelled_count)
        steps = self._shard(steps[begin or 0 :], goal)
        validation_steps = self._shard(layout.validation_steps, self._validation_goal)
        tries_path = begin is None and (bool(validation_steps) or not self._coefficients.has_start)
        path_steps, path_goal = steps[:PATH_STEPS], goal
        if validation_steps:
            path_steps, path_goal = validation_steps, self._validation_goal
        self._announce(steps, validation_steps, path_steps if tries_path else [], path_goal)
        if not objective.path.text_changes:
            objective.criterion.prompt_features()  # computed once for all steps, so in float32
        validation_steps = self._with_targets(validation_steps, self._validation_goal)
        steps = self._with_targets(steps, goal)
        if tries_path:
            self._try_path(validation_steps or steps[:PATH_STEPS], path_goal)
        self._sparsify(anew=begin is None)
        self._descend(steps)
        choice = self._choose(validation_steps, layout.held_back_images) if validation_steps else None
        self._coefficients.place()
        losses = [ValidationScore(*row).loss for row in self._path.tolist()]
        path = LossPath(alphas=ALPHAS, losses=tuple(losses)) if any(losses) else None
        return Learned([Losses(*row) for row in self._trace.tolist()], choice, path)

    def _restore(self) -> int | None:
        """Number of steps taken by an earlier run; ``None`` if there was none."""
        if not self._storage or not self._storage.restore(self._state):
            return None
        number = int(self._descent.steps_taken)
        self._coefficients.begin_at(float(self._start))
        self._storage.say(f"learning resumes after step {number} of {self._config.steps}, saved by an earlier run")
        return number

    def _shard(self, steps: Sequence[Step], goal: Goal) -> list[Step]:
        """Share the images among the processes."""
        counts = [count for step in steps for count in (len(step), goal.copy_count(len(step))) if count]
        return shard_steps(self._objective, steps, min(counts, default=0))

    def _announce(
        self, steps: Sequence[Step], validation_steps: Sequence[Step], path_steps: Sequence[Step], path_goal: Goal
    ) -> None:
        goal, whole = self._config.goal, self._validation_goal

        def passes(count: int, steps: Sequence[Step], pictures: Callable[[int], int]) -> float:
            return count * sum(pictures(len(step)) * step.work_share for step in steps)

        work = passes(FORWARD * len(goal.teachers), steps, goal.copy_count)
        work += passes(GRADIENT, steps, goal.picture_count)
        work += passes(FORWARD * len(whole.teachers), validation_steps, whole.copy_count)
        work += passes(FORWARD * len(self._candidates), validation_steps, whole.picture_count)
        work += passes(FORWARD * len(ALPHAS), path_steps, path_goal.picture_count)
        if self._config.sparsify:
            work += GRADIENT * sum(len(batch) for batch in self._objective.shares.batches)
        prompts = self._prompt_passes(steps, validation_steps, path_steps)
        self._objective.announce_work(work, prompts=prompts, precision=goal.precision)

    def _prompt_passes(
        self, steps: Sequence[Step], validation_steps: Sequence[Step], path_steps: Sequence[Step]
    ) -> float:
        """Forward passes of prompts; all of them once if the text tower does not change."""
        objective = self._objective
        if not objective.path.text_changes:
            return objective.prompt_passes(forward=1)
        passes = len(self._config.goal.teachers) * prompts_at(objective, steps)
        passes += GRADIENT * own_prompts(objective, steps)
        points = len(self._validation_goal.teachers) + len(self._candidates)
        passes += points * prompts_at(objective, validation_steps) + len(ALPHAS) * prompts_at(objective, path_steps)
        if self._config.sparsify:
            with objective.fewer_prompts():
                return passes + objective.prompt_passes(gradient=1)
        return passes

    def _with_targets(self, steps: list[Step], goal: Goal) -> list[Step]:
        cached = embeds_less_at_once(self._objective, steps)
        return with_teacher_targets(self._objective, steps, goal, cached=cached)

    def _try_path(self, steps: Sequence[Step], goal: Goal) -> None:
        """Evaluate points of the straight path, and start at the best one unless a start is given."""
        for row, alpha in enumerate(ALPHAS):
            self._objective.path.move_to(alpha)
            self._path[row] = torch.tensor(astuple(validate(self._objective, steps, goal)))
        if not self._coefficients.has_start:
            self._coefficients.fill(ALPHAS[int(self._path[:, 0].argmin())])
        self._start.fill_(self._coefficients.start)

    def _sparsify(self, *, anew: bool) -> None:
        """Make parameters sparse, the same ones in every run that resumes with these scores."""
        if self._config.sparsify is None:
            return
        self._objective.path.move_to(self._coefficients.start)
        self._coefficients.make_sparse(*self._config.sparsify())
        if anew:
            self._coefficients.add_noise(self._objective.seed)

    def _descend(self, steps: Sequence[Step]) -> None:
        objective, coefficients, goal = self._objective, self._coefficients, self._config.goal
        ceiling = self._config.ceiling_from(coefficients.start)
        at_once = Activations(objective, goal.precision).images()
        for step in steps:
            coefficients.place()
            losses = descend(objective, step, goal, at_once=at_once, last=coefficients.collect_gradients)
            self._trace[step.number] = torch.tensor(astuple(losses))
            if step.shard[1] > 1:
                coefficients.add_up()
            with self._storage.changing(self._state) if self._storage else nullcontext():
                self._descent.step(ceiling)
            coefficients.drop_gradients()
            objective.work.tick(GRADIENT * goal.picture_count(len(step)) * step.work_share)
            if self._storage:
                self._storage.save(self._state, last=step.number + 1 == self._config.steps)

    def _choose(self, steps: Sequence[Step], images: int) -> HeldBackChoice:
        """Let the held-back images choose, and move to their choice."""
        path = {alpha: ValidationScore(*row) for alpha, row in zip(ALPHAS, self._path.tolist(), strict=True)}
        learned = {}
        for candidate in self._candidates:
            self._coefficients.move(candidate.part, candidate.beyond)
            self._coefficients.place()
            learned[candidate] = validate(self._objective, steps, self._validation_goal)
        limit, sparse = self._config.max_loss, bool(self._coefficients.sparse)
        choice = choose(path, learned, images=images, max_loss=limit, path_counts=not sparse)
        if choice.alpha is None:
            self._coefficients.move(choice.part, choice.beyond)
        else:
            self._coefficients.flatten(choice.alpha)
        return choice
