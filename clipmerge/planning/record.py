"""The record of a merge, as printed by ``--json``, stored in ``clipmerge.json`` and reported."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from clipmerge import __version__
from clipmerge.errors import OutputError, shorten
from clipmerge.files.staging import RECORD
from clipmerge.planning import Frozen, read_json
from clipmerge.planning.measurements import CalibrationRecord, Observations, StatisticAbout
from clipmerge.planning.plan import Plan, SourceRecord
from clipmerge.planning.recipe import MAX_LOSS
from clipmerge.types import Json, Kind, Names, Recommendation

#: Format of the record of a sweep; see `docs/how-to/sweep.md`.
SWEEP_FORMAT = "clipmerge-sweep/4"
_Count = Annotated[int, Field(ge=0, lt=2**63)]
#: Values of K in recall at K.
RANKS = (1, 5, 10)
#: Recall at K of image-text retrieval, by direction and K as text: ``image_to_text``, the share of
#: the images with one of their captions among the K best-matching, and ``text_to_image``, the share
#: of the captions with their image among the K best-matching.
Recall = dict[str, dict[str, float]]

#: Question that a source answers: accuracy on the target, under a natural shift of it (its classes
#: are all among the target's), or on another task.
Question = Literal["target", "shift", "task"]
#: Each question as part of a sentence about an accuracy.
QUESTIONS: dict[Question, str] = {
    "target": "on the target",
    "shift": "under shift",
    "task": "on other tasks",
}

_Share = Annotated[float, Field(ge=-1, le=1)]
# If half an interval is wider than this share, numbers are shown in whole points.
_COARSE = 0.05
# In whole points, a smaller share would be shown as 0.
_SHOWN = 0.005


class Estimate(Frozen):
    """An accuracy, or a difference of two accuracies, with its 95% interval."""

    value: _Share
    interval: tuple[_Share, _Share]

    @property
    def digits(self) -> int:
        """Digits after the decimal point of a percentage: 0 if the interval is wide, else 1."""
        low, high = self.interval
        return 0 if (high - low) / 2 > _COARSE else 1

    def as_share(self) -> str:
        """Format the share in per cent.

        Example:
            >>> Estimate(value=0.758, interval=(0.66, 0.83)).as_share()
            '76'
            >>> Estimate(value=0.758, interval=(0.72, 0.79)).as_share()
            '75.8'
        """
        return f"{100 * self.value:.{self.digits}f}"

    def as_difference(self) -> str:
        """Format the difference in points, with its interval.

        Example:
            >>> Estimate(value=0.019, interval=(-0.067, 0.104)).as_difference()
            '+2 [-7, +10]'
            >>> Estimate(value=0.06, interval=(0.002, 0.118)).as_difference()
            '+6.0 [+0.2, +11.8]'
            >>> Estimate(value=-0.0001, interval=(-0.03, 0.03)).as_difference()
            '0.0 [-3.0, +3.0]'
        """
        digits = self.digits
        if any(0 < abs(end) < _SHOWN for end in self.interval):
            digits = 1
        texts = (f"{100 * share:+.{digits}f}" for share in (self.value, *self.interval))
        value, low, high = (text if float(text) else text[1:] for text in texts)
        return f"{value} [{low}, {high}]"


class Comparison(Frozen):
    """The accuracy of every model on one source of images.

    Attributes:
        name: ``target``, ``corrupted``, or the name given with ``--ood``.
        question: Whether images given with ``--ood`` are of a ``shift`` or of another ``task``;
            ``None`` for other images.
        source: Where the images come from.
        revision: The commit, for a data set of the Hub.
        images: Number of images.
        models: Accuracy by model: ``zero-shot``, ``fine-tuned`` (or ``fine-tuned 1``, ...) and
            ``merged``. With captions, the mean of recall at 1 in both directions.
        change: Accuracy of the merged minus that of the fine-tuned model. Of several fine-tuned
            models, it is the one that is most accurate on the target's images.
        finetuning_change: Accuracy of this fine-tuned model minus that of the zero-shot model.
        curve: Accuracy of plain interpolation at each of the verdict's `alphas`; empty for
            corrupted images.
        class_names: The first classes, for examples; empty for captions.
        recall: Recall at K by model, for captions.
    """

    name: str
    question: Question | None = None
    source: str
    revision: str | None = None
    images: _Count
    models: dict[str, Estimate]
    change: Estimate
    finetuning_change: Estimate
    curve: tuple[_Share, ...] = ()
    class_names: Names = ()
    recall: dict[str, Recall] = Field(default_factory=dict)


class Answer(Frozen):
    """The answer to one question: mean accuracies over its sources.

    Attributes:
        merged: Accuracy of the merged model.
        curve: Accuracy of plain interpolation at each of the verdict's `alphas`.
        gain: Accuracy of the merged model minus the best accuracy of plain interpolation, among
            points that are at least as accurate on the target; ``None`` for the target itself.
    """

    merged: Estimate
    curve: tuple[_Share, ...]
    gain: Estimate | None = None


class Verdict(Frozen):
    """Advice whether to use a merged model, with the accuracies behind it.

    Attributes:
        recommendation: What to do.
        reason: The rule that decided, as a word for programs.
        sentence: Recommendation and reason in words; the numbers are in the fields below.
        max_loss: Accepted loss of accuracy, in points.
        alphas: Alphas of plain interpolation that were scored beside the merge.
        best_alpha: The best of these alphas that lose at most `max_loss` on the target: the most
            accurate one under shift; without shifts, on other tasks; without ``--ood``, on the
            target.
        chose: Whether some of the target's test images also chose how far the merge goes.
        target: The models on the target's images.
        corrupted: The models on the same images under corruptions that no recipe learns from.
        ood: The models on each source given with ``--ood``.
        answers: Accuracies and gains on the target, under shift and on other tasks.
    """

    recommendation: Recommendation
    reason: str
    sentence: str
    max_loss: Annotated[float, Field(ge=0)] = MAX_LOSS
    alphas: tuple[float, ...]
    best_alpha: float
    chose: bool = False
    target: Comparison
    corrupted: Comparison
    ood: tuple[Comparison, ...] = ()
    answers: dict[Question, Answer]

    @property
    def sources(self) -> tuple[Comparison, ...]:
        """The target and the ``--ood`` sources."""
        return (self.target, *self.ood)


def finetuned_names(count: int) -> list[str]:
    """Name each of ``count`` fine-tuned models.

    Example:
        >>> finetuned_names(1), finetuned_names(2)
        (['fine-tuned'], ['fine-tuned 1', 'fine-tuned 2'])
    """
    if count == 1:
        return ["fine-tuned"]
    return [f"fine-tuned {number + 1}" for number in range(count)]


class Findings(Observations):
    """The results of the measure and the method, for reports; mostly empty without a measure.

    Attributes:
        decision: The reason for the whole decision, as a sentence without its full stop.
        reasons: The reason for a layer's settings, by layer; not every layer has one.
        statistics: How to read each statistic in `Record.measurements`.
        straggler_statistic: Statistic by which stragglers are found; ``None`` if the method looks
            for none.
        straggler_scores: ``{"z": ..., "stability": ...}`` or ``{"share": ...}`` by layer.
    """

    decision: str = ""
    reasons: dict[str, str] = Field(default_factory=dict)
    statistics: dict[str, StatisticAbout] = Field(default_factory=dict)
    straggler_statistic: str | None = None
    straggler_scores: dict[str, dict[str, float]] = Field(default_factory=dict)


class Record(Frozen):
    """A merge: its plan, the measurements behind the plan, the verdict and the files written.

    Attributes:
        format: Version of this format.
        clipmerge: Version of clipmerge that wrote it.
        output: The last part of the path that was written; ``None`` if nothing was.
        files: sha256 by name of each file written.
        family: Family of the model, such as ``clip``.
        kind: What the output is: ``full`` for both towers, ``vision`` or ``text`` for one, or
            ``classifier`` for an image tower with a head.
        plan: The settings. In a finished record local sources are named by the last part of their
            path.
        measurements: Measured values by layer and statistic.
        measured: Further results of the measure and the method.
        calibration: The images used for measuring, if there were any.
        verdict: Whether to use the merge; ``None`` without test images.
        warnings: Warnings, one sentence each.
        command: Command that repeats the merge.
        date: Day of the merge, such as ``2026-11-30``.
        seconds: Wall-clock seconds by stage.
    """

    format: Literal["clipmerge-record/5"] = "clipmerge-record/5"
    clipmerge: str = __version__
    output: str | None = None
    files: dict[str, str | None] = Field(default_factory=dict)
    family: str | None = None
    kind: Kind = "full"
    plan: Plan
    measurements: dict[str, dict[str, float]] = Field(default_factory=dict)
    measured: Findings = Findings()
    calibration: CalibrationRecord | None = None
    verdict: Verdict | None = None
    warnings: Names = ()
    command: str = ""
    date: str | None = None
    seconds: dict[str, float] = Field(default_factory=dict)

    @property
    def checkpoints(self) -> list[tuple[str, SourceRecord]]:
        """Role and source of each checkpoint, the zero-shot one first."""
        roles = ["zero-shot", *finetuned_names(len(self.plan.finetuned))]
        return list(zip(roles, self.plan.checkpoints, strict=True))

    def as_json(self) -> Json:
        """Return the record as a JSON object."""
        return self.model_dump(mode="json")


def read_output(folder: Path) -> Record:
    """Read the record of an output folder. All files that it lists must exist."""
    advice = "give a folder that `clipmerge merge --output` of this version wrote"
    record = read_json(Record, folder / RECORD, OutputError, advice)
    missing = [name for name in record.files if not (folder / name).is_file()]
    if missing:
        raise OutputError(f"{folder}: {shorten(missing)} missing; merge again")
    return record
