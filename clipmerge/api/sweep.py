"""`clipmerge sweep`: compare plain interpolation, recipes and checkpoints on the target, under
shifts and on other tasks.

Each recipe makes its plan by the functions of `merge`, without the OOD images. No merged checkpoint
is written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from clipmerge import __version__
from clipmerge.api._call import CallJournal
from clipmerge.api._images import check_images, split_for_recipe
from clipmerge.api._pair import (
    CheckpointLike,
    Pair,
    as_addresses,
    list_checkpoints,
    open_pair,
)
from clipmerge.api.merge import check_recipe, decide, open_data
from clipmerge.checkpoint import Inputs, align_checkpoints, open_checkpoint
from clipmerge.checkpoint.views import convert_checkpoint
from clipmerge.distributed import is_main_process
from clipmerge.errors import UsageError
from clipmerge.evaluation.scorer import Move, Scorer, stack_correct
from clipmerge.evaluation.tradeoff import (
    RESAMPLES,
    Correct,
    add_tenths,
    gains_over_curve,
    mean_accuracy,
    mean_estimate,
    question_of,
)
from clipmerge.files import local_path
from clipmerge.files.staging import check_output, stage_output
from clipmerge.images.copies import overlap_notes
from clipmerge.images.dataset import open_images
from clipmerge.images.image_set import Images
from clipmerge.learning.interpolate import WeightPath
from clipmerge.options import SweepOptions, named_sources
from clipmerge.planning import Rows, Tabular
from clipmerge.planning.plan import SourceRecord, public_source
from clipmerge.planning.recipe import MAX_LOSS, Recipe, load_recipe
from clipmerge.planning.record import SWEEP_FORMAT
from clipmerge.progress import Journal, Progress
from clipmerge.report.sweep import sweep_sentence
from clipmerge.report.wording import decision_sentence
from clipmerge.stats import LEVEL
from clipmerge.types import Json, Missing, Names, StrPath

#: The record in the output folder of a sweep, which identifies it.
SWEEP_RECORD = "sweep.json"
_NAMES = "backslashreplace"


class _Point(NamedTuple):
    """A point of the comparison: an alpha of the curve, a recipe's merge, or a checkpoint.

    Attributes:
        about: The fields that describe it in the record.
        move: Sets the model's weights to those of the point.
        max_loss: Accuracy, in points, that it may lose on the target.
    """

    about: Json
    move: Move
    max_loss: float = MAX_LOSS


@dataclass(frozen=True, repr=False)
class SweepResult(Tabular):
    """Result of `sweep`.

    Attributes:
        path: The output folder; ``None`` if nothing was written.
        record: The content of ``sweep.json``.
        correct: Whether each image was recognised, by source: shape (points, images), bool. The
            points are those of the curve, then the recipes, then the checkpoints.
        warnings: Warnings, one line each.
    """

    path: Path | None
    record: Json
    correct: dict[str, Correct]
    warnings: Names = ()

    def _rows(self) -> Rows:
        rows = []
        for point in (*self.record["curve"], *self.record["recipes"], *self.record["points"]):
            name = point.get("name") or f"alpha {point['alpha']:g}"
            row = {"point": name, **point["accuracy"]}
            for kind in ("mean", "gain"):
                for question, estimate in point[kind].items():
                    row[f"{kind} {question}"] = estimate["value"]
            rows.append(row)
        return rows

    def _repr_html_(self) -> str:
        """Show the answer, the table and the picture in a notebook."""
        from clipmerge.report.notebook import sweep_html

        return sweep_html(self.record)

    def _caption(self) -> str:
        return str(self.record["answer"])


def sweep(
    zeroshot: CheckpointLike,
    finetuned: CheckpointLike | Sequence[CheckpointLike],
    *,
    id: Mapping[str, Any] | Sequence[StrPath] | StrPath,
    ood: Mapping[str, Any] | Sequence[StrPath] | StrPath,
    output: StrPath | None = None,
    processor: Any = None,
    progress: Progress | None = None,
    **options: Any,
) -> SweepResult:
    """Compare plain interpolation and recipes on images of the target (ID) and others (OOD).

    Args:
        zeroshot: theta_0; see `merge`.
        finetuned: theta_1 ... theta_K; see `merge`. With several, the curve ends at their average.
        id: Test images of the target: a mapping from names to sources, or one or several texts
            ``NAME=SOURCE`` or paths. A source has a form that `merge` accepts as ``data``.
        ood: Images of shifts and of other tasks, in one of these forms.
        output: Folder to write; ``None`` to write nothing.
        processor: See `merge`.
        progress: See `merge`.
        **options: The fields of `clipmerge.options.SweepOptions`.

    Returns:
        The record, and whether each image was recognised at each point.

    Raises:
        UsageError: If two arguments contradict each other.
        ClipmergeError: If another argument cannot be used.
    """
    opts = SweepOptions.of(options)
    checkpoints = list_checkpoints(zeroshot, finetuned)
    given = {"id": id, "ood": ood, **options, "output": output}
    journal = CallJournal(progress, "sweep", *checkpoints, **given)
    recipes = [load_recipe(each, opts.set, max_loss=opts.max_loss) for each in opts.recipes]
    ids, oods, shown = named_sources(id), named_sources(ood), opts.points
    _check_names(ids, oods, [*(recipe.name for recipe in recipes), *shown])
    if opts.set and not recipes:
        raise UsageError("`set` changes recipes, and there are none; give `recipes` too")
    target = None if output is None else local_path(output)
    if target is not None and is_main_process():
        read = [*checkpoints, opts.data, opts.classes, *ids.values(), *oods.values()]
        check_output(target, overwrite=opts.overwrite, read=read, record=SWEEP_RECORD)
    # keys that only one checkpoint has are an error unless a recipe allows them
    missing: Missing = next((each.missing for each in recipes if each.missing != "error"), "error")
    with (
        open_pair(checkpoints, opts, journal, missing=missing, processor=processor) as pair,
        as_addresses(list(shown.values()), processor) as places,
    ):
        sources: dict[str, Images] = {}
        for name, source in (*ids.items(), *oods.items()):
            sources[name] = open_images(source, opts.classes, columns=opts.columns)
            journal.warn(*sources[name].notes)
        # only recipes use the images of `data`
        pair, data = open_data(pair, opts if recipes else replace(opts, data=None), journal)
        if data is not None:
            journal.warn(*overlap_notes(data, sources))
        check_images(pair, sources if data is None else {**sources, "": data}, opts, journal)
        # losses are measured against the fine-tuned model, gains against at least the tenths
        alphas = sorted({*opts.alphas, 1.0})
        if recipes or shown:
            alphas = add_tenths(alphas)
        points = [
            _Point({"alpha": alpha}, partial(WeightPath.set_alpha, alpha=alpha)) for alpha in alphas
        ]
        points += [_decide(pair, recipe, data, opts, journal) for recipe in recipes]
        for name, place in zip(shown, places, strict=True):
            points.append(_open_point(name, place, pair.inputs, opts.model))
        questions: dict[str, list[str]] = {"target": list(ids), "shift": [], "task": []}
        for name in oods:
            questions[question_of(sources[name], [sources[each] for each in ids])].append(name)
        journal.stage("evaluate")
        path, dtype = pair.path, pair.inputs.dtype
        scorer = Scorer(path.model, opts, journal, sources, path=path, dtype=dtype)
        outcomes = scorer.score([point.move for point in points])
        correct = {name: stack_correct(each) for name, each in outcomes.items()}
        journal.stage("bootstrap")
        record = _make_sweep_record(pair, correct, points, questions, sources, opts, journal)
        if target is not None and is_main_process():
            record["output"] = target.name
            _write_sweep(record, target, overwrite=opts.overwrite)
    return SweepResult(target, record, correct, tuple(record["warnings"]))


def _check_names(ids: Json, oods: Json, points: list[str]) -> None:
    if not ids or not oods:
        raise UsageError("a sweep needs at least one `id` and one `ood` source")
    for name in ids.keys() & oods.keys():
        raise UsageError(
            f"`id` and `ood`: both have a source named '{name}'; write NAME=SOURCE, each name once"
        )
    for name in points:
        if points.count(name) > 1:
            raise UsageError(
                f"two recipes or points are named '{name}'; give a recipe another `name:` in its"
                " file, or write NAME=CHECKPOINT with another name"
            )


def _decide(
    pair: Pair, recipe: Recipe, data: Images | None, options: SweepOptions, journal: Journal
) -> _Point:
    """Run a recipe as `merge` does, and return its merge as a point of the comparison."""
    check_recipe(pair, recipe, has_images=data is not None)
    split = None
    if recipe.measure and data is not None:
        # split as in `merge`, so that both decide alike
        split = split_for_recipe(data, recipe, options.images, options.seed, judged=True)
        journal.warn(*split.notes)
    made = decide(pair, recipe, split, options, journal)
    about = {
        "name": recipe.name,
        "decision": decision_sentence(made.plan, made.measured),
        "calibration": made.calibration and made.calibration.model_dump(mode="json"),
        "recipe": recipe.model_dump(mode="json"),
    }
    return _Point(about, partial(WeightPath.set_plan, plan=made.plan), recipe.max_loss)


def _open_point(name: str, place: str, inputs: Inputs, model: str | None) -> _Point:
    """Open a checkpoint that the user named, and return it as a point of the comparison."""
    opened = open_checkpoint(place, base=inputs.zeroshot, model=model)
    point = convert_checkpoint(opened, inputs.zeroshot)
    other = align_checkpoints(inputs.zeroshot, [point], dtype="float32")
    (source,) = Pair(other).sources(hashed=True)["finetuned"]
    about = {"name": name, "checkpoint": _public_json(source)}
    return _Point(about, partial(WeightPath.set_checkpoint, other=other))


def _make_sweep_record(
    pair: Pair,
    correct: dict[str, Correct],
    points: list[_Point],
    questions: dict[str, list[str]],
    sources: dict[str, Images],
    options: SweepOptions,
    journal: CallJournal,
) -> Json:
    """Make the content of ``sweep.json``."""
    rows = _accuracy_rows(points, correct, questions, options)
    for row in rows:
        if "name" in row and row["exceeds_max_loss"]:
            journal.warn(f"{row['name']} loses more than `max_loss` on the target")
    journal.stage("draw")
    pinned = pair.sources(hashed=True)
    record: Json = {
        "format": SWEEP_FORMAT,
        "clipmerge": __version__,
        "output": None,
        "command": journal.command,
        "zeroshot": _public_json(pinned["zeroshot"]),
        "finetuned": list(map(_public_json, pinned["finetuned"])),
        **questions,
        "sources": {
            name: public_source(images.source, images.revision) for name, images in sources.items()
        },
        "images": {name: len(images) for name, images in sources.items()},
        "seed": options.seed,
        "bootstrap": {"resamples": RESAMPLES, "level": LEVEL},
        "curve": [row for row in rows if "alpha" in row],
        "recipes": [row for row in rows if "recipe" in row],
        "points": [row for row in rows if "checkpoint" in row],
        "warnings": list(map(journal.without_folders, journal.warnings)),
        "seconds": journal.seconds,
    }
    return record | {"answer": sweep_sentence(record)}


def _public_json(source: SourceRecord) -> Json:
    return source.public.model_dump(mode="json")


def _accuracy_rows(
    points: list[_Point],
    correct: dict[str, Correct],
    questions: dict[str, list[str]],
    options: SweepOptions,
) -> list[Json]:
    """Compute a row for each point: its accuracies, its gains, and whether it loses more than the
    limit on the target.
    """
    alphas = [point.about["alpha"] for point in points if "alpha" in point.about]
    by_question = {
        question: [correct[name] for name in names]
        for question, names in questions.items()
        if names
    }
    target = by_question["target"]
    gains = {
        question: gains_over_curve(target, others, len(alphas), seed=options.seed)
        for question, others in by_question.items()
        if question != "target"
    }
    accuracy = 100 * mean_accuracy(target)
    rows: list[Json] = []
    for number, point in enumerate(points):
        limit = point.max_loss if options.max_loss is None else options.max_loss
        lost = accuracy[alphas.index(1.0)] - accuracy[number]
        means, gained = {}, {}
        for question, each in by_question.items():
            mean = mean_estimate([right[number] for right in each])
            means[question] = mean.model_dump(mode="json")
        if number >= len(alphas):  # not on the curve
            for question, estimates in gains.items():
                gained[question] = estimates[number - len(alphas)].model_dump(mode="json")
        row = {
            "accuracy": {name: float(right[number].mean()) for name, right in correct.items()},
            "mean": means,
            "gain": gained,
            # accuracies are ratios of counts, so rounding errors are far below 1e-7
            "exceeds_max_loss": bool(lost > limit + 1e-7),
        }
        rows.append(point.about | row)
    return rows


def _write_sweep(record: Json, output: Path, *, overwrite: bool) -> None:
    """Write the record, the picture and the page."""
    from clipmerge.report.figures import png, sweep_figure
    from clipmerge.report.sweep import sweep_page

    picture = png(sweep_figure(record))
    page = sweep_page(record, picture)
    with stage_output(output, overwrite=overwrite) as folder:
        (folder / "sweep.png").write_bytes(picture)
        (folder / "sweep.html").write_text(page, encoding="utf-8", errors=_NAMES)
        (folder / SWEEP_RECORD).write_text(
            json.dumps(record, indent=2, allow_nan=False) + "\n", encoding="utf-8"
        )
