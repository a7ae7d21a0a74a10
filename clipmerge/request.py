"""Requests, and the state of a running merge."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipmerge.checkpoint import Inputs
from clipmerge.config import Device, OutputDtype
from clipmerge.distributed import is_main_process
from clipmerge.images import Columns
from clipmerge.images.split import SHARE
from clipmerge.planning.merge_effect import MAX_LOSS
from clipmerge.planning.plan import Plan
from clipmerge.planning.provenance import HeadRecord, SourceRecord
from clipmerge.planning.recipe import Recipe
from clipmerge.progress import Progress

if TYPE_CHECKING:  # a merge without images imports no module that reads images
    from clipmerge.images.dataset import LabelledImages
    from clipmerge.images.prompts import ClassNames


@dataclass(frozen=True)
class Calibration:
    """The images to measure on, and settings for measuring.

    Attributes:
        source: A folder, Parquet or tar files, ``hf://datasets/...``, ``digits`` or images in
            memory; see `clipmerge.images.dataset.load_images`.
        classes: File with class names, or the names in the order of the classes.
        templates: Prompt templates; empty for the default.
        images: Images sampled, class-balanced.
        batch_size: Images per batch; ``None`` for at most 128 and at least eight batches.
        device: Device to measure on.
        columns: Columns of images and labels named by the user.
        images_at_once: Images computed at once; ``None`` for a whole batch.
        held_back: Share of the images held back from the decision to measure the effect of the
            merge, see `docs/explanation/the-answer.md`; 0 to decide on all images and measure no
            effect.
        unlabelled: Images from where the model will be used, for recipes that learn; their labels
            are not read. A source like ``source``, or ``None``.
        state: Folder where unfinished learning is saved; ``None`` for the user's cache.
    """

    source: Any = None
    classes: ClassNames = None
    templates: tuple[str, ...] = ()
    images: int = 1024
    batch_size: int | None = None
    device: Device = "auto"
    columns: Columns = field(default_factory=Columns)
    images_at_once: int | None = None
    held_back: float = SHARE
    unlabelled: Any = None
    state: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a merge and a sweep are asked for alike."""

    seed: int = 0  # of the samples, the bootstrap and the random masks
    dtype: OutputDtype = "keep"
    command: str = ""  # repeats the call, for the record
    hashed: bool = True  # the weights of inputs and output
    # points that may be lost against the fine-tuned model's accuracy without a warning
    max_loss: float = MAX_LOSS
    # a greater loss, or a checkpoint that did not start from the zero-shot one, is an error
    strict: bool = False
    keep: dict[str, Any] = field(
        default_factory=dict
    )  # sources of tasks that the models were not fine-tuned for


@dataclass(frozen=True)
class MergeRequest(Settings):
    """Everything that determines a plan."""

    zeroshot: str  # source of theta_0
    finetuned: tuple[str, ...]  # sources of theta_1 ... theta_K
    recipe: Recipe
    calibration: Calibration = Calibration()  # the images, for recipes that measure

    @property
    def checkpoints(self) -> tuple[str, ...]:
        """Sources of theta_0, theta_1 ... theta_K."""
        return (self.zeroshot, *self.finetuned)


#: Points of a sweep's curve, by default.
ALPHAS = tuple(round(0.1 * step, 1) for step in range(11))


@dataclass(frozen=True)
class SweepRequest(Settings):
    """Everything that determines a sweep; ``calibration`` also has the settings of all sources of
    images.
    """

    zeroshot: str  # source of theta_0
    finetuned: str  # source of theta_1
    id_sources: dict[str, Any]  # images like those it was fine-tuned on, by name
    ood_sources: dict[str, Any]  # images unlike them, by name
    recipes: tuple[Recipe, ...] = ()
    alphas: tuple[float, ...] = ALPHAS  # points of the curve, ascending
    calibration: Calibration = Calibration()
    further: tuple[
        str, ...
    ] = ()  # sources of theta_2 ... theta_K; the curve then goes to the average
    points: dict[str, str] = field(
        default_factory=dict
    )  # checkpoints to show beside the curve as they are, by name
    limit: int | None = None  # images sampled from each source, class-balanced
    checks_overlap: bool = True  # whether sources are searched for images that they share

    @property
    def checkpoints(self) -> tuple[str, ...]:
        """Sources of theta_0, theta_1 ... theta_K."""
        return (self.zeroshot, self.finetuned, *self.further)

    @property
    def sources(self) -> dict[str, Any]:
        """All images that are evaluated, by name."""
        return {**self.id_sources, **self.ood_sources}

    def merge_request(self, recipe: Recipe) -> MergeRequest:
        """The request of a merge with one of the recipes, which is not judged."""
        settings = {each.name: getattr(self, each.name) for each in fields(Settings)}
        unlabelled = self.calibration.unlabelled if recipe.learns_from_unlabelled else None
        calibration = replace(self.calibration, unlabelled=unlabelled)
        settings |= {"strict": False, "keep": {}}
        return MergeRequest(
            self.zeroshot, (self.finetuned, *self.further), recipe, calibration, **settings
        )


@dataclass
class Run:
    """The state of a running merge."""

    inputs: Inputs
    progress: Progress
    plan: Plan | None = None  # until it is decided
    seconds: dict[str, float] = field(default_factory=dict)  # by stage
    command: str = ""  # repeats the merge
    head: HeadRecord | None = None  # the classes of a head whose zero-shot counterpart was built
    hashed: bool = True  # the weights of inputs and output
    hashing: list[Future[dict[str, str]]] = field(default_factory=list)  # of the inputs
    cleanups: list[Callable[[], None]] = field(default_factory=list)  # called by `finish`
    held_back: LabelledImages | None = (
        None  # images that the measure did not see, if it used images
    )
    measured_on: LabelledImages | None = (
        None  # images that it saw, if other tasks are compared with them
    )

    @contextmanager
    def timed(self, stage: str, title: str = "") -> Iterator[None]:
        """Time a stage under its name, and show it under another."""
        self.progress.stage(title or stage)
        begin = time.perf_counter()
        yield
        self.seconds[stage] = round(self.seconds.get(stage, 0.0) + time.perf_counter() - begin, 3)

    def warn(self, text: str, *, aloud: bool = True) -> None:
        """Put a warning into the plan, and report it."""
        if aloud:
            self.progress.say(text)
        self.plan = self.plan and self.plan.model_copy(
            update={"warnings": (*self.plan.warnings, text)}
        )

    @property
    def is_main(self) -> bool:
        """Whether this process decides and writes."""
        return is_main_process()

    @property
    def light_plan(self) -> Plan:
        """The plan with its tensors, without those of the measure; without layers in processes that
        do not decide.
        """
        if self.plan is not None:
            measured = self.plan.measurements
            # tensors that a measure keeps for methods can be as large as the model
            light = measured and measured.model_copy(
                update={"coefficients": {}, "gradients": {}, "tensors": {}}
            )
            return self.plan.model_copy(update={"measurements": light})
        count = len(self.inputs.finetuned)
        return Plan(
            recipe={}, **self.sources(hashed=False), weights=(1.0 / count,) * count, layers={}
        )

    def sources(self, *, hashed: bool) -> dict[str, Any]:
        """The inputs as fields of a plan."""
        zeroshot, *finetuned = (
            SourceRecord(**each.provenance(hashed=hashed)) for each in self.inputs.checkpoints
        )
        return {"zeroshot": zeroshot, "finetuned": tuple(finetuned)}

    def finish(self) -> None:
        """Remove the files for resuming, because the result is complete."""
        for clear in self.cleanups:
            clear()

    def hash_inputs(self) -> None:
        """Start hashing the inputs in the background, if the user wants hashes; `hashed_plan` waits
        for them.
        """
        if not self.hashed:
            return
        pool = ThreadPoolExecutor(max_workers=2)
        self.hashing = [pool.submit(getattr, each, "hashes") for each in self.inputs.checkpoints]
        pool.shutdown(wait=False)

    def hashed_plan(self) -> Plan:
        """The plan with its inputs' files and their hashes filled in."""
        assert self.plan is not None  # called only after the decision
        for future in self.hashing:
            future.result()
        return self.plan.model_copy(update=self.sources(hashed=self.hashed)).signed()
