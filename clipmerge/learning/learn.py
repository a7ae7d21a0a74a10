"""Learn coefficients by gradient descent, and let images that learning never saw choose the
result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, fields, replace
from functools import cache, partial

import torch
from torch import Tensor

from clipmerge.files.staging import defer_signals
from clipmerge.learning.activations import Activations
from clipmerge.learning.anchor import find_anchor, finetuned_rank
from clipmerge.learning.choice import (
    CANDIDATES,
    UNDER_A_MASK,
    Candidate,
    ValidationScore,
    accurate_points,
    choose,
    validate_corrupted,
    validate_views,
    with_copies,
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
    Layout,
    Step,
    lay_out,
    shard_steps,
    with_unlabelled,
)
from clipmerge.models.memory import Pieces
from clipmerge.planning.measurements import HeldBackChoice, LossPath

#: Points of the path that are tried as a start, and the number of steps whose images compare them
#: if no images are held back.
ALPHAS, PATH_STEPS = tuple(tenth / 10 for tenth in range(11)), 4
#: The zero-shot model's predictions teach if they remove this share of the uncertainty about the
#: labels, else features of the straight path do: predictions that are sure and wrong would be held
#: with great force, a cosine is bounded.
SKILLED = 1 / 4
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
        judges_zeroshot: Whether features of the straight path are held, in half of the steps, if
            the zero-shot model does not know the target.
        ceiling: Largest coefficient; ``None`` for twice the coefficient where learning starts, at
            least 1.
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


@dataclass(frozen=True)
class Learned:
    """The result of learning.

    Attributes:
        trace: The losses of each step.
        choice: The choice of the held-back images; ``None`` if none are held back.
        path: Loss along the straight path, on views of the images it was evaluated on; ``None`` if
            it was not.
    """

    trace: list[Losses]
    choice: HeldBackChoice | None = None
    path: LossPath | None = None


def learn(objective: Objective, coefficients: Coefficients, config: LearningConfig) -> Learned:
    """Learn with Adam, whose rate falls to zero along a half cosine, and clamp every coefficient to
    [0, ceiling].

    Coefficients without a start all start at the anchor if features of the straight path are held,
    at 0.5 if those of the zero-shot model are, and else at the best alpha of the straight path by
    the goal on the held-back images or, without any, on the images of the first steps. At the end
    the held-back images choose between a point of the straight path, the learned point and points
    between them. Processes share the images of every step, add up their gradients, and end with the
    same coefficients, whether they take all steps or resume an interrupted run.

    Args:
        objective: Calibration loss; left at the chosen coefficients.
        coefficients: Changed in place.
        config: The settings.

    Raises:
        MeasureError: If a loss is not finite.
    """
    layout = lay_out(objective, config.steps, batch=config.batch, share=config.held_back)
    skill = rank = views = None
    # so that what is found out before the steps is part of one progress with them
    pictures = sum(config.goal.picture_count(len(step)) for step in layout.steps)
    ahead = GRADIENT * pictures / objective.shares.context.world_size
    objective.work.announce(ahead)
    if config.judges_zeroshot:
        skill, views = _zeroshot_skill(objective, config.goal, _path_steps(layout))
        if skill < SKILLED:
            goal = replace(config.goal, divergence="path-features")
            config = replace(config, goal=goal, steps=math.ceil(config.steps / 2))
        else:
            rank = finetuned_rank(objective, config.goal.precision)
    if config.goal.divergence == "path-features":
        anchor = find_anchor(objective, config.max_loss)
        rank = anchor.finetuned_rank
        config = replace(config, goal=replace(config.goal, anchor=anchor.alpha))
    objective.work.announce(-ahead)
    found = _Run(objective, coefficients, config, layout, views).learn()
    if found.choice is None:
        return found
    return replace(
        found,
        choice=found.choice.model_copy(update={"zeroshot_skill": skill, "finetuned_rank": rank}),
    )


def _zeroshot_skill(
    objective: Objective, goal: Goal, steps: Sequence[Step]
) -> tuple[float, Tensor]:
    """Share of the uncertainty about the labels of the steps' images that the zero-shot predictions
    remove.

    Returns:
        This share, and the zero-shot model's `validate_views`.
    """
    steps = shard_steps(objective, steps, min(map(len, steps)))
    objective.work.announce(FORWARD * sum(len(step) * step.work_share for step in steps))
    _embed_fixed_prompts(objective)
    objective.path.move_to(0.0)
    classes = [
        objective.criterion.prompts.classes if step.classes is None else len(step.classes)
        for step in steps
    ]
    views = validate_views(objective, steps, goal)
    return 1 - float(views[1].mean()) / math.log(sum(classes) / len(classes)), views


def _embed_fixed_prompts(objective: Objective) -> None:
    """Embed all prompts once for all steps, so in float32, if the text tower does not change."""
    if not objective.path.text_changes:
        objective.criterion.prompt_features()


def _path_steps(layout: Layout) -> Sequence[Step]:
    """The steps whose images compare points of the path: those held back, or the first ones."""
    return layout.validation_steps or layout.steps[:PATH_STEPS]


class _Run:
    """One run of learning, from its layout to its choice."""

    def __init__(
        self,
        objective: Objective,
        coefficients: Coefficients,
        config: LearningConfig,
        layout: Layout,
        zeroshot_views: Tensor | None,
    ) -> None:
        self._objective, self._coefficients, self._config, self._layout = (
            objective,
            coefficients,
            config,
            layout,
        )
        self._zeroshot_views = zeroshot_views
        # the point of the path that is taken for it, if features of the path are held
        self._anchor = config.goal.anchor if config.goal.divergence == "path-features" else None
        self._storage = objective.learning_state
        self._candidates = (CANDIDATES if config.steps else ()) + (
            UNDER_A_MASK if config.sparsify else ()
        )
        self._descent = Descent(coefficients.values, config.rate, config.steps)
        self._trace = torch.zeros(config.steps, len(fields(Losses)), dtype=torch.float64)
        images = len({position for step in _path_steps(layout) for position in step.positions})
        # the scores of all points of the path, and the alpha where learning starts
        self._path = torch.zeros(len(ALPHAS), 3, images, dtype=torch.float64)
        self._start = torch.zeros((), dtype=torch.float64)
        self._state = {
            "trace": self._trace,
            "path": self._path,
            "start": self._start,
            **self._descent.state,
        }

    def learn(self) -> Learned:
        """Learn, or resume learning, and choose."""
        objective, coefficients, goal = self._objective, self._coefficients, self._config.goal
        begin = self._restore()
        laid_out = self._layout.steps[: self._config.steps]
        steps = self._shard(
            with_unlabelled(objective, laid_out, goal.unlabelled_count)[begin or 0 :]
        )
        validates = bool(self._layout.validation_steps)
        tries_path = begin is None and (validates or coefficients.start is None)
        path_steps = self._shard(_path_steps(self._layout)) if tries_path or validates else []
        judged = validates and bool(self._candidates)
        points = (len(ALPHAS) - (self._zeroshot_views is not None)) * tries_path + len(
            self._candidates
        ) * validates
        self._announce(steps, path_steps, points, judged=judged)
        _embed_fixed_prompts(objective)
        pieces = self._pieces(steps)
        whole = replace(goal, copies=None)
        path_steps = with_teacher_targets(objective, path_steps, whole, judged=judged)
        if tries_path:
            self._try_path(path_steps, whole)
        self._start.fill_(coefficients.start or 0.0)
        self._sparsify(anew=begin is None)
        for few in self._with_targets(steps):
            self._descend(few, pieces)
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
        self._coefficients.start = float(self._start)
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

    def _announce(
        self, steps: Sequence[Step], path_steps: Sequence[Step], points: int, *, judged: bool
    ) -> None:
        """Announce the steps' work, and that of so many points on the views of ``path_steps``."""
        goal = self._config.goal
        teachers = FORWARD * len(goal.teachers)
        work = FORWARD * float(
            judged
        )  # until the choice is made, which may take more than is known now
        for step in steps:
            taught, images = goal.copy_count(len(step)), goal.picture_count(len(step))
            work += (teachers * taught + GRADIENT * images) * step.work_share
        for step in path_steps:
            work += (teachers * (1 + judged) + FORWARD * points) * len(step) * step.work_share
        if self._config.sparsify:
            work += GRADIENT * sum(len(batch) for batch in self._objective.shares.batches)
        self._objective.work.announce(work)

    def _try_path(self, steps: Sequence[Step], goal: Goal) -> None:
        """Evaluate points of the straight path, and start at one of them unless a start is given.

        A goal is at least the loss of the views, and is this loss where nothing needs to know it.
        """
        objective, steps = self._objective, with_pictures(self._objective, steps, goal)
        for row, alpha in enumerate(ALPHAS):
            views = self._zeroshot_views
            if alpha or views is None:
                objective.path.move_to(alpha)
                views = validate_views(objective, steps, goal)
            self._path[row] = views[[1, 0, 1]]
        needed = accurate_points(
            dict(zip(ALPHAS, self._path[:, 1], strict=True)), self._config.max_loss, self._anchor
        )
        lowest = math.inf if self._anchor is None else -math.inf
        for row in self._path[:, 0].mean(-1).argsort().tolist():
            alpha, loss = ALPHAS[row], float(self._path[row, 0].mean())
            # the zero-shot model's predictions do not diverge from themselves
            if (alpha in needed or loss <= lowest) and (alpha or goal.holds_features):
                objective.path.move_to(alpha)
                self._path[row] = with_copies(objective, steps, goal, self._path[row, 1:]).rows
            lowest = min(lowest, float(self._path[row, 0].mean()))
        if self._coefficients.start is None:
            best = ALPHAS[int(self._path[:, 0].mean(-1).argmin())]
            # where fine-tuning has moved all features, the best is nearly fine-tuned: nothing is
            # regained from there
            self._coefficients.fill(goal.anchor if goal.holds_features else best)

    def _sparsify(self, *, anew: bool) -> None:
        """Make parameters sparse, the same ones in every run that resumes with these scores."""
        if self._config.sparsify is None:
            return
        self._objective.path.move_to(float(self._start))
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
        # by default as far above the start as zero-shot is below it, but at least fine-tuned
        ceiling = self._config.ceiling or max(1.0, 2 * float(self._start))
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
                self._descent.step(ceiling)
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
        steps = with_pictures(objective, steps, goal)
        path = {
            alpha: ValidationScore(rows) for alpha, rows in zip(ALPHAS, self._path, strict=True)
        }

        @cache
        def views_of(candidate: Candidate) -> Tensor:
            self._go_to(candidate)
            return validate_views(objective, steps, goal)

        def score_of(candidate: Candidate) -> ValidationScore:
            views = views_of(candidate)
            self._go_to(candidate)
            return with_copies(objective, steps, goal, views)

        def corrupted_of(candidate: Candidate) -> Tensor:
            self._go_to(candidate)
            return validate_corrupted(objective, steps, goal)

        choice = choose(
            path,
            self._candidates,
            lambda candidate: views_of(candidate)[0],
            score_of,
            corrupted_of,
            max_loss=self._config.max_loss,
            anchor=self._anchor,
            path_counts=not self._coefficients.sparse,
        )
        spared = len(self._candidates) - views_of.cache_info().currsize
        images = sum(len(step) * step.work_share for step in steps)
        objective.work.announce(-FORWARD * (images * spared + bool(self._candidates)))
        objective.work.tick(0)
        if choice.alpha is None:
            self._coefficients.move(choice.shrink, choice.extrapolation)
        else:
            self._coefficients.flatten(choice.alpha)
        last_steps = self._trace[-max(1, len(self._trace) // 10) :]
        train_accuracy = Losses(*last_steps.mean(0).tolist()).accuracy if len(last_steps) else None
        return choice.model_copy(
            update={"train_accuracy": train_accuracy, "distill_target": goal.divergence}
        )
