"""The state of a running merge."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from clipmerge.checkpoint import Checkpoint, Inputs
from clipmerge.distributed import is_main_process
from clipmerge.finding import Finding
from clipmerge.output.record import Measured
from clipmerge.planning.measurements import CalibrationRecord, Measurements
from clipmerge.planning.plan import HeadRecord, Plan, SourceRecord
from clipmerge.planning.recipe import Recipe
from clipmerge.planning.verdict import Verdict
from clipmerge.progress import Progress
from clipmerge.types import Json

if TYPE_CHECKING:  # a merge without images imports no module that reads images
    from torch import Tensor

    from clipmerge.images import ImageSet
    from clipmerge.images.image_set import CaptionedImages, LabelledImages


@dataclass
class RunCache:
    """Results shared by requests that differ only in the recipe."""

    # theta_0, theta_1 ... theta_K; empty until they are opened
    checkpoints: tuple[Checkpoint, ...] = ()
    inputs: dict[str, Inputs] = field(default_factory=dict)  # aligned, by the recipe's ``missing``
    # by measure and options
    measured: dict[str, tuple[Measurements, CalibrationRecord]] = field(default_factory=dict)
    # doubts about the pair; ``None`` until it is checked
    doubts: list[Finding] | None = None
    # the source of `data`, and the number of images that it was opened for
    data: tuple[int, LabelledImages | CaptionedImages] | None = None


@dataclass
class Run:
    """The state of a running merge."""

    inputs: Inputs
    progress: Progress
    plan: Plan | None = None  # until it is decided
    # what goes into the record beside the plan
    measurements: Measurements | None = None
    measured: Measured = field(default_factory=Measured)
    calibration: CalibrationRecord | None = None
    verdict: Verdict | None = None
    warnings: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)  # by stage
    command: str = ""  # repeats the merge
    head: HeadRecord | None = None  # the classes of a head whose zero-shot counterpart was built
    hashing: list[Future[dict[str, str]]] = field(default_factory=list)  # of the inputs
    cleanups: list[Callable[[], None]] = field(default_factory=list)  # called by `finish`
    # called with Ctrl-C or SIGTERM, to tell what is left
    when_stopped: list[Callable[[BaseException], None]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)  # doubts about the inputs
    learned: dict[str, Tensor] = field(default_factory=dict)  # coefficients, in every process
    # images that the measure did not see, if it used images; or that learning did not see, and the
    # number of these that chose how far to go from what was learned
    held_back: LabelledImages | CaptionedImages | None = None
    choosers: int = 0
    # images that it saw, if other tasks are compared with them
    measured_on: ImageSet | None = None
    cache: RunCache = field(default_factory=RunCache)

    @contextmanager
    def timed(self, stage: str, title: str = "") -> Iterator[None]:
        """Time a stage under its name, and show it under another."""
        self.progress.stage(title or stage)
        begin = time.perf_counter()
        try:
            yield
        except KeyboardInterrupt as stopped:
            for tell in self.when_stopped:
                tell(stopped)
            raise
        self.seconds[stage] = round(self.seconds.get(stage, 0.0) + time.perf_counter() - begin, 3)

    @property
    def is_main(self) -> bool:
        """Whether this process decides and writes."""
        return is_main_process()

    @property
    def decided_plan(self) -> Plan:
        """The plan; without layers in processes that do not decide."""
        if self.plan is not None:
            return self.plan
        count = len(self.inputs.finetuned)
        recipe = Recipe(name="none", method={})
        weights = (1.0 / count,) * count
        return Plan(recipe=recipe, **self.sources(hashed=False), weights=weights, layers={})

    def sources(self, *, hashed: bool) -> Json:
        """The inputs as fields of a plan."""
        zeroshot, *finetuned = (
            SourceRecord(**checkpoint.provenance(hashed=hashed), model=checkpoint.architecture)
            for checkpoint in self.inputs.checkpoints
        )
        return {"zeroshot": zeroshot, "finetuned": tuple(finetuned)}

    def finish(self) -> None:
        """Remove the files for resuming, because the result is complete."""
        for clear in self.cleanups:
            clear()

    def hash_inputs(self) -> None:
        """Start hashing the inputs in the background; `hashed_plan` waits for them."""
        pool = ThreadPoolExecutor(max_workers=2)
        self.hashing = [
            pool.submit(getattr, checkpoint, "hashes") for checkpoint in self.inputs.checkpoints
        ]
        pool.shutdown(wait=False)

    def hashed_plan(self) -> Plan:
        """The plan with its inputs' files and their hashes filled in."""
        assert self.plan is not None  # called only after the decision
        for future in self.hashing:
            future.result()
        return self.plan.replace(**self.sources(hashed=True))
