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
    Candidate,
    Seen,
    choose,
    embeds_less_at_once,
    look,
    own_prompts,
    prompts_at,
)
from clipmerge.calibration.coefficients import Coefficients
from clipmerge.calibration.descent import Descent
from clipmerge.calibration.goal import Goal, Losses, descend
from clipmerge.calibration.objective import FORWARD, GRADIENT, Objective
from clipmerge.calibration.steps import Step, dealt, lay_out, with_unlabelled
from clipmerge.calibration.teacher import asked
from clipmerge.planning.measurements import HeldBackChoice, LossPath

#: Points of the path that are tried as a start, and the number of steps whose images compare them if no images are
#: held back.
ALPHAS, TRIED = tuple(tenth / 10 for tenth in range(11)), 4


@dataclass(frozen=True)
class Course:
    """Settings of learning.

    Attributes:
        goal: The goal to minimise.
        steps: Number of steps.
        rate: Adam's step size in coefficients, one for all or by name.
        thin: Called at the weights where learning starts; returns the parameters to make sparse and their density.
            ``None`` keeps everything.
        batch: Maximum number of images per step; ``None`` for the size of a calibration batch.
        held_back: Share of the images that learning does not see and that judge the result.
        max_loss: Points of accuracy on the held-back images that may be lost against the fine-tuned model.
        ceiling: Largest coefficient; ``None`` for twice the coefficient where learning starts, at least 1.
    """

    goal: Goal
    steps: int
    rate: float | Mapping[str, float]
    thin: Callable[[], tuple[Sequence[str], float]] | None = None
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


def learn(objective: Objective, coefficients: Coefficients, course: Course) -> Learned:
    """Learn with Adam, whose rate falls to zero along a half cosine, and clamp every coefficient to [0, ceiling].

    Coefficients without a start all start at the best alpha of the straight path, by the goal on the held-back images
    or, without any, on the images of the first steps. At the end the held-back images choose between points of the
    straight path, the learned point and points between them. Processes share the images of every step and look, add up
    their gradients, and end with the same coefficients, whether they take all steps or resume an interrupted run.

    Args:
        objective: Calibration loss; left at the chosen coefficients.
        coefficients: Changed in place.
        course: The settings.

    Returns:
        The losses of each step, and the choice.

    Raises:
        MeasureError: If a loss is not finite.
    """
    return _Run(objective, coefficients, course).learned()


def prepare(objective: Objective, goal: Goal, steps: int, *, batch: int | None = None) -> list[Step]:
    """Lay out steps and compute the teacher's answers to them, with nothing held back.

    Args:
        objective: Calibration loss; left at the teacher's weights.
        goal: The goal to minimise.
        steps: Number of steps.
        batch: Maximum number of images per step; ``None`` for the size of a calibration batch.
    """
    layout = lay_out(objective, steps, batch=batch)
    return asked(objective, layout.steps, goal, kept=embeds_less_at_once(objective, layout.steps))


class _Run:
    """One run of learning, from its layout to its choice."""

    def __init__(self, objective: Objective, coefficients: Coefficients, course: Course) -> None:
        self._objective, self._coefficients, self._course = objective, coefficients, course
        self._keep = objective.keep
        # the looks at the held-back images use every changed copy
        self._whole = replace(course.goal, copies=None)
        self._descent = Descent(coefficients.values, course.rate, course.steps)
        self._trace = torch.zeros(course.steps, len(fields(Losses)), dtype=torch.float64)
        # goal and accuracy at every point of the path, and then the alpha where learning starts
        self._path = torch.zeros(len(ALPHAS), len(fields(Seen)), dtype=torch.float64)
        self._start = torch.zeros((), dtype=torch.float64)
        self._state = {"trace": self._trace, "path": self._path, "start": self._start, **self._descent.state}

    def learned(self) -> Learned:
        """Learn, or resume learning, and choose."""
        begin = self._restored()
        layout = lay_out(self._objective, self._course.steps, batch=self._course.batch, share=self._course.held_back)
        drawn = with_unlabelled(self._objective, layout.steps, self._course.goal.unlabelled)
        steps = self._dealt(drawn[begin or 0 :], self._course.goal)
        looks = self._dealt(layout.held, self._whole)
        walks = begin is None and (bool(looks) or not self._coefficients.started)
        tried = (looks or steps[:TRIED]) if walks else []
        self._announce(steps, looks, tried)
        if not self._objective.path.text_changes:
            self._objective.criterion.prompt_features()  # computed once for all steps, so in float32
        looks, steps = self._asked(looks, self._whole), self._asked(steps, self._course.goal)
        if walks:
            self._walk(looks or steps[:TRIED], self._whole if looks else self._course.goal)
        self._thin(anew=begin is None)
        self._descend(steps)
        choice = self._chosen(looks, layout.images_held) if looks else None
        self._coefficients.place()
        return Learned([Losses(*row) for row in self._trace.tolist()], choice, self._walked())

    def _restored(self) -> int | None:
        """Number of steps taken by an earlier run; ``None`` if there was none."""
        if not self._keep or not self._keep.restore(self._state):
            return None
        taken = int(self._descent.taken)
        self._coefficients.begin_at(float(self._start))
        self._keep.say(f"learning resumes after step {taken} of {self._course.steps}, saved by an earlier run")
        return taken

    def _dealt(self, steps: Sequence[Step], goal: Goal) -> list[Step]:
        """Share the images among the processes."""
        counts = [count for step in steps for count in (len(step), goal.copied(len(step))) if count]
        return dealt(self._objective, steps, min(counts, default=0))

    def _announce(self, steps: Sequence[Step], looks: Sequence[Step], tried: Sequence[Step]) -> None:
        goal, whole = self._course.goal, self._whole
        work = sum(FORWARD * len(goal.teachers) * goal.copied(len(step)) * step.part for step in steps)
        work += sum(GRADIENT * goal.seen(len(step)) * step.part for step in steps)
        work += sum(FORWARD * len(whole.teachers) * whole.copied(len(step)) * step.part for step in looks)
        work += sum(FORWARD * len(self._candidates) * whole.seen(len(step)) * step.part for step in looks)
        work += sum(FORWARD * len(ALPHAS) * (whole if looks else goal).seen(len(step)) * step.part for step in tried)
        if self._course.thin:
            work += GRADIENT * sum(len(batch) for batch in self._objective.shares.batches)
        prompts = self._prompts(steps, looks, tried)
        self._objective.announce_work(work, prompts=prompts, precision=goal.precision)

    def _prompts(self, steps: Sequence[Step], looks: Sequence[Step], tried: Sequence[Step]) -> float:
        """Forward passes of prompts; all of them once if the text tower does not change."""
        objective, thinned = self._objective, 0.0
        if not objective.path.text_changes:
            return objective.prompt_passes(forward=1)
        if self._course.thin:
            with objective.fewer_prompts():
                thinned = objective.prompt_passes(gradient=1)
        asked_once = len(self._course.goal.teachers) * prompts_at(objective, steps)
        seen = (len(self._whole.teachers) + len(self._candidates)) * prompts_at(objective, looks)
        walked = len(ALPHAS) * prompts_at(objective, tried)
        return asked_once + GRADIENT * own_prompts(objective, steps) + seen + walked + thinned

    def _asked(self, steps: list[Step], goal: Goal) -> list[Step]:
        return asked(self._objective, steps, goal, kept=embeds_less_at_once(self._objective, steps))

    def _walk(self, looks: Sequence[Step], goal: Goal) -> None:
        """Evaluate points of the straight path, and start at the best one unless a start is given."""
        for row, alpha in enumerate(ALPHAS):
            self._objective.path.move_to(alpha)
            self._path[row] = torch.tensor(astuple(look(self._objective, looks, goal)))
        if not self._coefficients.started:
            self._coefficients.fill(ALPHAS[int(self._path[:, 0].argmin())])
        self._start.fill_(self._coefficients.start)

    def _thin(self, *, anew: bool) -> None:
        """Make parameters sparse, the same ones in every run that resumes with these scores."""
        if self._course.thin is None:
            return
        self._objective.path.move_to(self._coefficients.start)
        self._coefficients.make_sparse(*self._course.thin())
        if anew:
            self._coefficients.disturb(self._objective.seed)

    def _walked(self) -> LossPath | None:
        losses = [Seen(*row).loss for row in self._path.tolist()]
        return LossPath(alphas=ALPHAS, losses=tuple(losses)) if any(losses) else None

    def _descend(self, steps: Sequence[Step]) -> None:
        objective, coefficients, goal = self._objective, self._coefficients, self._course.goal
        ceiling = self._course.ceiling_from(coefficients.start)
        at_once = Activations(objective, goal.precision).images()
        for step in steps:
            coefficients.place()
            losses = descend(objective, step, goal, at_once=at_once, last=coefficients.collected)
            self._trace[step.number] = torch.tensor(astuple(losses))
            if step.part < 1:
                coefficients.add_up()
            with self._keep.changing(self._state) if self._keep else nullcontext():
                self._descent.step(ceiling)
            coefficients.drop_gradients()
            objective.work.tick(GRADIENT * goal.seen(len(step)) * step.part)
            if self._keep:
                self._keep.save(self._state, last=step.number + 1 == self._course.steps)

    def _chosen(self, looks: Sequence[Step], images: int) -> HeldBackChoice:
        """Let the held-back images choose, and move to their choice."""
        path = {alpha: Seen(*row) for alpha, row in zip(ALPHAS, self._path.tolist(), strict=True)}
        tried = {candidate: self._seen(candidate, looks) for candidate in self._candidates}
        limit, sparse = self._course.max_loss, bool(self._coefficients.sparse)
        choice = choose(path, tried, images=images, max_loss=limit, path_counts=not sparse)
        if choice.alpha is None:
            self._coefficients.move(choice.part, choice.beyond)
        else:
            self._coefficients.flatten(choice.alpha)
        return choice

    @property
    def _candidates(self) -> tuple[Candidate, ...]:
        return CANDIDATES if self._course.thin is None else CANDIDATES + UNDER_A_MASK

    def _seen(self, candidate: Candidate, looks: Sequence[Step]) -> Seen:
        self._coefficients.move(candidate.part, candidate.beyond)
        self._coefficients.place()
        return look(self._objective, looks, self._whole)
