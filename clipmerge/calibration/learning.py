"""Learn coefficients by gradient descent, and let images that learning never saw choose the result."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import astuple, dataclass, fields, replace
from functools import partial

import torch
from torch import Tensor

from clipmerge.calibration.activations import Activations, forecast
from clipmerge.calibration.anchor import UNTUNED, find_anchor, finetuned_rank
from clipmerge.calibration.choice import (
    CANDIDATES,
    UNDER_A_MASK,
    Candidate,
    ValidationScore,
    choose,
    embeds_less_at_once,
    own_prompts,
    validate,
    validate_corrupted,
)
from clipmerge.calibration.coefficients import Coefficients
from clipmerge.calibration.descent import Descent
from clipmerge.calibration.goal import (
    Goal,
    Losses,
    Pictures,
    backpropagate,
    losses_of,
    make_pictures,
    with_teacher_targets,
)
from clipmerge.calibration.objective import FORWARD, GRADIENT, Objective
from clipmerge.calibration.steps import Layout, Step, lay_out, shard_steps, with_unlabelled
from clipmerge.models.memory import Pieces
from clipmerge.planning.measurements import HeldBackChoice, LossPath

#: Points of the path that are tried as a start, and the number of steps whose images compare them if no images are
#: held back.
ALPHAS, PATH_STEPS = tuple(tenth / 10 for tenth in range(11)), 4
#: The zero-shot model's predictions teach if they remove this share of the uncertainty about the labels, else features
#: of the straight path do: predictions that are sure and wrong would be held with great force, a cosine is bounded.
SKILLED = 1 / 4


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
        judges_zeroshot: Whether features of the straight path are held, in half of the steps, if the zero-shot model
            does not know the target.
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
    judges_zeroshot: bool = False

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

    Coefficients without a start all start at the anchor if features of the straight path are held, at 0.5 if those of
    the zero-shot model are, and else at the best alpha of the straight path by the goal on the held-back images or,
    without any, on the images of the first steps. At the end the held-back
    images choose between a point of the straight path, the learned point and points between them. Processes share the
    images of every step, add up their gradients, and end with the same coefficients, whether they take all steps or
    resume an interrupted run.

    Args:
        objective: Calibration loss; left at the chosen coefficients.
        coefficients: Changed in place.
        config: The settings.

    Raises:
        MeasureError: If a loss is not finite.
    """
    layout = lay_out(objective, config.steps, batch=config.batch, share=config.held_back)
    skill = rank = None
    if config.judges_zeroshot:
        skill = _zeroshot_skill(objective, config.goal, _path_steps(layout))
        if skill < SKILLED:
            goal = replace(config.goal, divergence="path-features")
            config = replace(config, goal=goal, steps=math.ceil(config.steps / 2))
        else:
            rank = finetuned_rank(objective)
    if config.goal.divergence == "path-features":
        anchor = find_anchor(objective, config.max_loss)
        rank = anchor.finetuned_rank
        config = replace(config, goal=replace(config.goal, anchor=anchor.alpha))
        if not anchor.harmed and anchor.alpha > UNTUNED and not coefficients.has_start:
            # where fine-tuning has done little harm, learning and masks lose more than they mend
            config = replace(config, steps=0, sparsify=None)
    found = _Run(objective, coefficients, config, layout).learn()
    if found.choice is None:
        return found
    return replace(found, choice=found.choice.model_copy(update={"zeroshot_skill": skill, "finetuned_rank": rank}))


def _zeroshot_skill(objective: Objective, goal: Goal, steps: Sequence[Step]) -> float:
    """Share of the uncertainty about the labels of the steps' images that the zero-shot predictions remove."""
    goal = replace(goal, robustness=0.0)
    steps = shard_steps(objective, steps, min(map(len, steps)))
    objective.work.announce(FORWARD * sum(len(step) * step.work_share for step in steps))
    _embed_fixed_prompts(objective)
    objective.path.move_to(0.0)
    every = objective.criterion.prompts.classes
    classes = [every if step.classes is None else len(step.classes) for step in steps]
    return 1 - validate(objective, steps, goal).loss / math.log(sum(classes) / len(classes))


def _embed_fixed_prompts(objective: Objective) -> None:
    """Embed all prompts once for all steps, so in float32, if the text tower does not change."""
    if not objective.path.text_changes:
        objective.criterion.prompt_features()


def _path_steps(layout: Layout) -> Sequence[Step]:
    """The steps whose images compare points of the path: those held back, or the first ones."""
    return layout.validation_steps or layout.steps[:PATH_STEPS]


def prepare(objective: Objective, goal: Goal, steps: int, *, batch: int | None = None) -> list[Step]:
    """Lay out steps with the zero-shot model's targets and nothing held back; leaves the objective at its weights."""
    layout = lay_out(objective, steps, batch=batch)
    cached = embeds_less_at_once(objective, layout.steps)
    return with_teacher_targets(objective, layout.steps, goal, cached=cached)


class _Run:
    """One run of learning, from its layout to its choice."""

    def __init__(
        self, objective: Objective, coefficients: Coefficients, config: LearningConfig, layout: Layout
    ) -> None:
        self._objective, self._coefficients, self._config = objective, coefficients, config
        self._layout = layout
        self._storage = objective.learning_state
        masked = () if config.sparsify is None else UNDER_A_MASK
        self._candidates = (CANDIDATES if config.steps else ()) + masked
        self._descent = Descent(coefficients.values, config.rate, config.steps)
        self._trace = torch.zeros(config.steps, len(fields(Losses)), dtype=torch.float64)
        self._path_steps = _path_steps(self._layout)
        images = len({position for step in self._path_steps for position in step.positions})
        # the scores of all points of the path, and the alpha where learning starts
        self._path = torch.zeros(len(ALPHAS), 3, images, dtype=torch.float64)
        self._start = torch.zeros((), dtype=torch.float64)
        self._state = {"trace": self._trace, "path": self._path, "start": self._start, **self._descent.state}

    def learn(self) -> Learned:
        """Learn, or resume learning, and choose."""
        objective, coefficients = self._objective, self._coefficients
        begin = self._restore()
        laid_out = self._layout.steps[: self._config.steps]
        steps = self._shard(with_unlabelled(objective, laid_out, self._config.goal.unlabelled_count)[begin or 0 :])
        self._path_steps = self._shard(self._path_steps)
        validates = bool(self._layout.validation_steps)
        tries_path = begin is None and (validates or not coefficients.has_start)
        self._announce(steps, tries_path=tries_path)
        _embed_fixed_prompts(objective)
        pieces = self._pieces(steps)
        goal = self._config.goal
        whole = replace(goal, copies=None)
        judged = validates and bool(self._candidates)
        path_steps = self._with_targets(self._path_steps, whole, judged=judged) if tries_path or validates else []
        if tries_path:
            self._try_path(path_steps, whole)
        self._start.fill_(coefficients.start)
        steps = self._with_targets(steps, goal)
        self._sparsify(anew=begin is None)
        self._descend(steps, goal, pieces)
        choice = self._choose(path_steps, whole) if validates else None
        coefficients.place()
        losses = [ValidationScore(rows).loss for rows in self._path]
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

    def _shard(self, steps: Sequence[Step]) -> list[Step]:
        """Share the images among the processes."""
        goal = self._config.goal
        counts = [count for step in steps for count in (len(step), goal.copy_count(len(step))) if count]
        return shard_steps(self._objective, steps, min(counts, default=0))

    def _announce(self, steps: Sequence[Step], *, tries_path: bool) -> None:
        goal, whole = self._config.goal, replace(self._config.goal, copies=None)
        path_steps = self._path_steps if tries_path else []
        validation_steps = self._path_steps if self._layout.validation_steps else []

        def passes(count: int, steps: Sequence[Step], pictures: Callable[[int], int]) -> float:
            return count * sum(pictures(len(step)) * step.work_share for step in steps)

        teachers = FORWARD * len(goal.teachers)
        work = passes(teachers, steps, goal.copy_count) + passes(GRADIENT, steps, goal.picture_count)
        work += passes(teachers, validation_steps or path_steps, whole.copy_count)
        if self._candidates:
            work += passes(teachers, validation_steps, int)
        work += passes(FORWARD * len(ALPHAS), path_steps, whole.picture_count)
        work += passes(FORWARD * len(self._candidates), validation_steps, whole.picture_count)
        if self._config.sparsify:
            work += GRADIENT * sum(len(batch) for batch in self._objective.shares.batches)
        self._objective.work.announce(work)

    def _with_targets(self, steps: Sequence[Step], goal: Goal, *, judged: bool = False) -> list[Step]:
        cached = embeds_less_at_once(self._objective, steps)
        return with_teacher_targets(self._objective, steps, goal, cached=cached, judged=judged)

    def _try_path(self, steps: Sequence[Step], goal: Goal) -> None:
        """Evaluate points of the straight path, and start at one of them unless a start is given."""
        for row, alpha in enumerate(ALPHAS):
            self._objective.path.move_to(alpha)
            self._path[row] = validate(self._objective, steps, goal).rows
        if not self._coefficients.has_start:
            best = ALPHAS[int(self._path[:, 0].mean(-1).argmin())]
            # where fine-tuning has moved all features, the best is nearly fine-tuned: nothing is regained from there
            self._coefficients.fill(goal.anchor if goal.holds_features else best)

    def _sparsify(self, *, anew: bool) -> None:
        """Make parameters sparse, the same ones in every run that resumes with these scores."""
        if self._config.sparsify is None:
            return
        self._objective.path.move_to(self._coefficients.start)
        self._coefficients.make_sparse(*self._config.sparsify())
        if anew:
            self._coefficients.add_noise(self._objective.seed)

    def _pieces(self, steps: Sequence[Step]) -> Pieces:
        """Pictures of a step that go through the model at once; on a card, tell how much memory learning takes."""
        objective, goal = self._objective, self._config.goal
        if not steps:
            return objective.pieces(None)
        device = objective.shares.accelerator.device
        prompts = max(own_prompts(objective, [step]) for step in steps)
        activations = Activations(objective, goal.precision, prompts)
        pieces = objective.pieces(activations.images())
        if device.type == "cpu" or not activations.image:
            return pieces
        pictures = max(math.ceil(goal.picture_count(len(step)) * step.work_share) for step in steps)
        at_once = min(pieces.most or pictures, pictures)
        found = forecast(objective, self._state, activations, pictures, at_once)
        objective.say(f"learning takes {found}; {at_once} of the {pictures} images of a step go through at once")
        if "noise" in goal.changes and goal.robustness:
            objective.noise_drawn_on = device.type
        return pieces

    def _descend(self, steps: Sequence[Step], goal: Goal, pieces: Pieces) -> None:
        objective, coefficients = self._objective, self._coefficients
        ceiling = self._config.ceiling_from(coefficients.start)
        on_card = objective.shares.accelerator.device.type != "cpu"
        ahead: Pictures | None = None
        for place, step in enumerate(steps):
            pictures = ahead or make_pictures(step, goal)
            sums = pieces.tried(len(pictures.pixels), partial(self._backpropagate, step, goal, pictures))
            if on_card and place + 1 < len(steps):  # the CPU goes on while the card computes this step
                ahead = make_pictures(steps[place + 1], goal)
            losses = losses_of(objective, step, sums)
            self._trace[step.number] = torch.tensor(astuple(losses))
            whole = step.shard[1] == 1  # computed by every process
            coefficients.add_up(objective.shares.accelerator.num_processes if whole else 1)
            with self._storage.changing(self._state) if self._storage else nullcontext():
                self._descent.step(ceiling)
            coefficients.drop_gradients()
            objective.work.tick(GRADIENT * goal.picture_count(len(step)) * step.work_share)
            if self._storage:
                self._storage.save(self._state, last=step.number + 1 == self._config.steps)

    def _backpropagate(self, step: Step, goal: Goal, pictures: Pictures, at_once: int) -> Tensor:
        """Compute the gradients of a step, whatever an attempt with more pictures at once has left."""
        self._objective.path.clear_gradients()
        self._coefficients.place()
        last = self._coefficients.collect_gradients
        return backpropagate(self._objective, step, goal, pictures, at_once=at_once, last=last)

    def _go_to(self, at: Candidate) -> None:
        """Set the weights to a point that can be chosen."""
        if at.alpha is not None:
            self._objective.path.move_to(at.alpha)
        else:
            self._coefficients.move(at.part, at.beyond)
            self._coefficients.place()

    def _choose(self, steps: Sequence[Step], goal: Goal) -> HeldBackChoice:
        """Let the held-back images choose, and move to their choice."""
        objective = self._objective
        path = {alpha: ValidationScore(rows) for alpha, rows in zip(ALPHAS, self._path, strict=True)}
        unscored = set(self._candidates)

        def score_of(candidate: Candidate) -> ValidationScore:
            unscored.remove(candidate)
            self._go_to(candidate)
            return validate(objective, steps, goal)

        def corrupted_of(candidate: Candidate) -> Tensor:
            self._go_to(candidate)
            return validate_corrupted(objective, steps, goal)

        choice = choose(
            path,
            self._candidates,
            score_of,
            corrupted_of,
            max_loss=self._config.max_loss,
            anchor=goal.anchor if goal.divergence == "path-features" else None,
            path_counts=not self._coefficients.sparse,
        )
        spared = sum(goal.picture_count(len(step)) * step.work_share for step in steps) * len(unscored)
        objective.work.announce(-FORWARD * spared)
        objective.work.tick(0)
        if choice.alpha is None:
            self._coefficients.move(choice.part, choice.beyond)
        else:
            self._coefficients.flatten(choice.alpha)
        last_steps = self._trace[-max(1, len(self._trace) // 10) :]
        found = {
            "seen_right": Losses(*last_steps.mean(0).tolist()).accuracy if len(last_steps) else None,
            "divergence": goal.divergence,
        }
        return choice.model_copy(update=found)
