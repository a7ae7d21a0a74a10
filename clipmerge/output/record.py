"""The record of a merge: printed by ``--format json``, stored as ``clipmerge.json``, the only input
of a report.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError

from clipmerge import __version__
from clipmerge.config import OutputDtype
from clipmerge.errors import OutputError, shorten
from clipmerge.files.limits import MAX_RECORD_VALUES
from clipmerge.files.reading import parse_json, read_text, refusing
from clipmerge.files.side_files import find_inside
from clipmerge.files.staging import RECORD
from clipmerge.finding import Finding
from clipmerge.frozen import FewLayers, Frozen, LittleMeasured, Plain
from clipmerge.planning.earlier import upgrade_format
from clipmerge.planning.measurements import Check, HeldBackChoice, LossPath, StatisticAbout
from clipmerge.planning.merge_effect import MergeEffect, ShareOfImages, finetuned_names
from clipmerge.planning.other_tasks import OtherTaskScores
from clipmerge.planning.plan import Combination, LayerPlan, Plan
from clipmerge.planning.provenance import CalibrationRecord, SourceRecord
from clipmerge.planning.recipe import Recipe
from clipmerge.types import Json, Layers, Names, Shape

if TYPE_CHECKING:
    from torch import Tensor

    from clipmerge.run import Run

FORMAT = "clipmerge-record/3"
_EARLIER_FORMAT = "clipmerge-record/2"
#: Format of the record of a sweep; see `docs/how-to/sweep.md`.
SWEEP_FORMAT = "clipmerge-sweep/3"
EARLIER_SWEEP_FORMAT = "clipmerge-sweep/2"
#: Fields of published records only, or of records with results to publish.
PUBLISHED = ("accuracy", "images", "sources", "card")
# Fields that the record takes from the plan as they are.
_OF_THE_PLAN = (
    "zeroshot",
    "finetuned",
    "weights",
    "combine",
    "dtype",
    "decision",
    "seed",
    "warnings",
    "stragglers",
    "straggler_statistic",
    "straggler_scores",
    "effect",
    "other_tasks",
    "calibration",
)
_UNTOUCHED = LayerPlan(alpha=0.0, reason=Finding.of("not-in-plan"))
#: Equal bins from 0 to `TOP`, twice the fine-tuned model's: no coefficient is learned beyond it.
BINS, TOP = 40, 2.0
_Count = Annotated[int, Field(ge=0, lt=2**63)]


def _complete_recipe(value: Any) -> Any:
    """Accept the recipe of a plan written by hand, which may lack the name and the method."""
    return {"name": "unnamed recipe", "method": {}, **value} if isinstance(value, dict) else value


def map_text(value: Any, change: Callable[[str], str]) -> Any:
    """Apply ``change`` to every string in nested dicts and lists, names of fields included."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(key): map_text(item, change) for key, item in value.items()}
    return [map_text(item, change) for item in value] if isinstance(value, (list, tuple)) else value


class LayerRecord(Frozen):
    """The settings and the size of one layer.

    Attributes:
        alpha: Coefficient: 0 = zero-shot, 1 = fine-tuned; the mean of learned ones.
        alpha_range: Smallest and largest learned coefficient; ``None`` if the whole layer has one
            alpha.
        density: Share of the task vector kept.
        mask: Name of the mask, if one was used.
        mask_options: The mask's own options.
        reason: Reason for the settings, if there is one.
        parameters: Number of parameters; ``None`` if not recorded.
        size: Number of entries; ``None`` if not recorded.
        change: ||task_vector|| / ||theta_0||; ``None`` if not measured.
        zeroshot_share: Share of the entries whose learned coefficient is 0; ``None`` for one alpha
            for the whole layer.
    """

    alpha: float
    alpha_range: tuple[float, float] | None = None
    density: float = 1.0
    mask: str | None = None
    mask_options: dict[str, Plain] = Field(default_factory=dict)
    reason: Finding | None = None
    parameters: _Count | None = None
    size: _Count | None = None
    change: float | None = None
    zeroshot_share: ShareOfImages | None = None

    @property
    def effective_density(self) -> float:
        """Share of the change that is kept: by the mask, and by learned coefficients, some of which
        are 0.
        """
        return min(self.density, 1 - (self.zeroshot_share or 0.0))


class Published(Frozen):
    """The place of a published model.

    Attributes:
        url: The repository's page.
        repo_id: ``org/name``.
        commit: The commit that holds the model.
        created: Whether the repository was created.
        changed: False if the Hub already held exactly these files.
        pull_request: The page of the pull request, if one was made.
        not_published: Files in the folder that were not published, because they are not part of the
            output.
        would_change: Files that a dry run found to differ from those on the Hub.
    """

    url: str
    repo_id: str
    commit: str
    created: bool
    changed: bool
    pull_request: str | None = None
    not_published: Names = ()
    would_change: Names = ()


class DataSource(Frozen):
    """The source of the images of a published accuracy, as the user wrote it, its commit, and the
    day on which the accuracy was measured, such as ``2026-11-30``.
    """

    source: str | None = None
    revision: str | None = None
    date: str | None = None


class MergeRecord(Frozen):
    """The inputs, settings and results of a merge.

    Attributes:
        format: Version of this format.
        clipmerge: Version of clipmerge that wrote it.
        output: The folder written; ``None`` for a dry run.
        files: sha256 by name of each file written; ``None`` if not hashed.
        family: Family of the model, such as ``clip``.
        classifier: Whether it is an image classifier with a head.
        recipe: The recipe, including overrides.
        zeroshot: theta_0.
        finetuned: theta_1 ... theta_K.
        weights: One factor per fine-tuned checkpoint.
        combine: The rule that replaces the weighted sum, if any.
        dtype: Output dtype, or ``keep``.
        decision: What was found before deciding, and in its text the settings too.
        layers: Settings and size by layer, in network order.
        stragglers: Layers found to be stragglers.
        straggler_statistic: Statistic used to look for stragglers; ``None`` if the method does not.
        straggler_scores: ``{"z": ..., "stability": ...}`` by layer.
        measurements: Values by layer and statistic.
        statistics: Interpretation of each statistic.
        path: Loss along the path, if it was measured.
        trace: Losses at every step of a measure that learns, by name, in nats.
        choice: The point chosen by images held back from learning, if any were.
        coefficients: Number of entries with a learned coefficient in each of 40 equal bins from 0
            to 2, by tower.
        checks: Self-tests of the measure, by statistic.
        effect: Accuracies on held-back images, if there were any.
        other_tasks: Scores on tasks that the models were not fine-tuned for, if any were named.
        calibration: The images used for measuring.
        seed: Seed of the sample, the bootstrap and the random masks.
        warnings: Warnings.
        command: Command that repeats the merge.
        date: Day on which it was decided or applied, such as ``2026-11-30``.
        seconds: Wall-clock seconds by stage.
        accuracy: Accuracy by name of the images; only in published records.
        images: Number of images by name; only in published records.
        sources: Sources of those images, by name; only in published records.
        card: Git's hash of the model card; only in published records.
    """

    format: Literal["clipmerge-record/3"] = FORMAT  # type: ignore[assignment]
    clipmerge: str | None = None
    output: str | None = None
    files: dict[str, str | None] = Field(default_factory=dict)
    family: str | None = None
    classifier: bool = False
    recipe: Annotated[Recipe, BeforeValidator(_complete_recipe)]
    zeroshot: SourceRecord
    finetuned: tuple[SourceRecord, ...] = Field(min_length=1)
    weights: tuple[float, ...] = (1.0,)
    combine: Combination | None = None
    dtype: OutputDtype = "keep"
    decision: Finding | None = None
    layers: Annotated[dict[str, LayerRecord], FewLayers] = Field(min_length=1)
    stragglers: Names = ()
    straggler_statistic: str | None = None
    straggler_scores: dict[str, dict[str, float]] = Field(default_factory=dict)
    measurements: Annotated[dict[str, dict[str, float]], LittleMeasured] = Field(
        default_factory=dict
    )
    statistics: dict[str, StatisticAbout] = Field(default_factory=dict)
    path: LossPath | None = None
    trace: dict[str, tuple[float, ...]] = Field(default_factory=dict)
    choice: HeldBackChoice | None = None
    coefficients: dict[str, tuple[_Count, ...]] = Field(default_factory=dict)
    checks: dict[str, Check] = Field(default_factory=dict)
    effect: MergeEffect | None = None
    other_tasks: tuple[OtherTaskScores, ...] = ()
    calibration: CalibrationRecord | None = None
    seed: int = 0
    warnings: tuple[Finding, ...] = ()
    command: str = ""
    date: str | None = None
    seconds: dict[str, float] = Field(default_factory=dict)
    accuracy: dict[str, ShareOfImages] | None = None
    images: dict[str, _Count] | None = None
    sources: dict[str, DataSource] | None = None
    card: str | None = None

    @property
    def checkpoints(self) -> list[tuple[str, SourceRecord]]:
        """Role and source of every input checkpoint, the zero-shot one first."""
        roles = finetuned_names(len(self.finetuned))
        return [("zero-shot", self.zeroshot), *zip(roles, self.finetuned, strict=True)]

    @property
    def found_stragglers(self) -> list[str]:
        """The stragglers among the layers, in network order."""
        return [layer for layer in self.layers if layer in self.stragglers]

    @property
    def looked_for_stragglers(self) -> bool:
        """Whether the merge looked for stragglers."""
        return self.straggler_statistic is not None or bool(self.found_stragglers)

    def as_json(self) -> Json:
        """Return the JSON object; fields of published records are left out of others."""
        data = self.model_dump(mode="json")
        return {
            key: value for key, value in data.items() if value is not None or key not in PUBLISHED
        }


def merge_record(
    run: Run,
    plan: Plan,
    *,
    output: Path | None = None,
    files: Mapping[str, str | None] | None = None,
) -> MergeRecord:
    """Make the record of a merge."""
    inputs = run.inputs
    coefficients = plan.coefficients
    merged = inputs.merged_layers
    plan = plan.checked(merged)
    measured = plan.measurements
    learned = {
        name: merged[name]
        for name, entry in plan.layers.items()
        if entry.alpha_range and coefficients
    }
    sizes = {name: inputs.entries(name)[0].size for names in merged.values() for name in names}
    shares = _zeroshot_shares(coefficients, learned, sizes)
    values = measured.layers if measured else {}
    from_measure: Json = {}
    if measured:
        from_measure = {
            name: getattr(measured, name) for name in ("path", "trace", "choice", "checks")
        }
        from_measure["statistics"] = {
            statistic.name: statistic.reading for statistic in measured.statistics
        }
    return MergeRecord(
        clipmerge=__version__,
        output=str(output) if output else None,
        files=dict(files or {}),
        family=inputs.library,
        classifier=inputs.is_classifier,
        recipe=Recipe.model_validate(_complete_recipe(plan.recipe)),
        layers={
            layer: LayerRecord(
                **plan.layers.get(layer, _UNTOUCHED).model_dump(exclude={"parameters"}),
                parameters=len(names),
                size=sum(sizes[name] for name in names),
                change=values.get(layer, {}).get("change"),
                zeroshot_share=shares.get(layer),
            )
            for layer, names in merged.items()
        },
        coefficients=histograms(coefficients, learned, sizes),
        command=run.command,
        date=datetime.date.today().isoformat(),
        seconds=dict(run.seconds),
        **{name: getattr(plan, name) for name in _OF_THE_PLAN},
        measurements=values,
        **from_measure,
    )


def histograms(
    coefficients: Mapping[str, Tensor],
    layers: Layers,
    sizes: Mapping[str, int],
) -> dict[str, Shape]:
    """Count a model's entries by their coefficient.

    Example:
        >>> import torch
        >>> counts = histograms({"w": torch.tensor([0.0, 1.0])}, {"vision.0.mlp": ("w",)}, {"w": 2})
        >>> counts["vision"][0], counts["vision"][20]
        (1, 1)
    """
    counts: dict[str, list[int]] = {}
    for layer, names in layers.items():
        for name in names:
            if name in coefficients:
                tower = counts.setdefault(layer.partition(".")[0], [0] * BINS)
                coefficient = coefficients[name].float().clamp(0.0, TOP)
                bin_counts = [
                    int(count) for count in coefficient.histc(bins=BINS, min=0.0, max=TOP).tolist()
                ]
                repeated = sizes[name] // max(1, sum(bin_counts))
                tower[:] = [
                    total + repeated * count for total, count in zip(tower, bin_counts, strict=True)
                ]
    return {tower: tuple(values) for tower, values in counts.items()}


def _zeroshot_shares(
    coefficients: Mapping[str, Tensor],
    layers: Layers,
    sizes: Mapping[str, int],
) -> dict[str, float]:
    """Share of each layer's entries whose learned coefficient is 0: the zero-shot model's bytes."""
    shares = {}
    for layer, names in layers.items():
        learned = [name for name in names if name in coefficients]
        zeros = sum(
            float((coefficients[name] == 0).double().mean()) * sizes[name] for name in learned
        )
        shares[layer] = zeros / max(1, sum(sizes[name] for name in learned))
    return shares


def parse_record(text: str, where: str) -> MergeRecord:
    """Read a record's text."""
    try:
        data = parse_json(text, max_values=MAX_RECORD_VALUES)
        if isinstance(data, dict) and data.get("format") == _EARLIER_FORMAT:
            data = upgrade_format(data) | {"format": FORMAT}
        if isinstance(data, dict) and data.get("format") != FORMAT:
            raise OutputError(
                f"{where}: has the format {str(data.get('format'))[:40]!r}, but this version of"
                f" clipmerge reads {FORMAT!r}; update clipmerge, or merge again"
            )
        return MergeRecord.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])[:80]
        reason = f"{field}: {first['msg']}" if field else first["msg"]
    except ValueError as error:
        reason = str(error)[:80]
    raise OutputError(f"{where}: not a clipmerge record ({reason}). Merge again.")


def read_output(folder: Path) -> MergeRecord:
    """Read the record of a merge output and check that its weights are there."""
    path = folder / RECORD
    if not path.is_file():
        what = "no such folder" if not folder.is_dir() else f"no {RECORD} in it"
        raise OutputError(f"{folder}: {what}. Give a folder written by `clipmerge merge --output`.")
    with refusing(OutputError, f"{path}: cannot be read", ". Merge again."):
        text = read_text(path)
    record = parse_record(text, str(path))
    missing = [name for name in record.files if find_inside(folder, name) is None]
    if missing or not list(folder.glob("*.safetensors")):
        raise OutputError(
            f"{folder}: {shorten(missing or ['*.safetensors'])} missing. Merge again."
        )
    return record
