"""Make and judge one pair of real pictures, in a process of its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from benchmarks.shifts.evaluation import Evaluation, contestants, evaluate_pair
from benchmarks.shifts.experiment import TrainedPair, locked
from benchmarks.shifts.photos.judging import judged
from benchmarks.shifts.photos.pairs import Spec
from benchmarks.shifts.training import logged


class Testbed(Protocol):
    """Makes pairs, and keeps them in its cache."""

    @property
    def cache(self) -> Path: ...

    def make_pair(self, spec: Spec) -> TrainedPair: ...


AnyTestbed = TypeVar("AnyTestbed", bound=Testbed)


@dataclass(frozen=True)
class Job(Generic[AnyTestbed]):
    """Settings shared by all processes of one run."""

    testbed: AnyTestbed
    results: Path
    recipes: tuple[str, ...]
    again: tuple[str, ...]
    how: Evaluation

    def models(self, spec: Spec) -> Path:
        with logged():
            return self.testbed.make_pair(spec).finetuned

    def pair(self, spec: Spec) -> Path:
        file = self.results / f"{spec.name}.json"
        # another process working on the same pair would lose rows
        with logged(), locked(self.testbed.cache / f".{file.stem}.lock"):
            pair = self.testbed.make_pair(spec)
            evaluate_pair(
                pair, contestants(only=self.recipes), file, self.how, again=self.again, judge=judged
            )
        return file
