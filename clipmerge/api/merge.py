"""`clipmerge merge`: open, measure, decide, judge, write. `clipmerge plan` stops after deciding.

Under ``accelerate launch`` or ``torchrun``, every process makes the same plan and the same verdict.
Only the main process checks the output folder and writes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipmerge.api._call import CallJournal
from clipmerge.api._pair import (
    CheckpointLike,
    Pair,
    list_checkpoints,
    open_pair,
    with_zeroshot_head,
)
from clipmerge.api._write import MergeResult, write_merged
from clipmerge.distributed import is_main_process
from clipmerge.errors import UsageError, VerdictError
from clipmerge.files import local_path
from clipmerge.files.staging import check_output, check_output_file
from clipmerge.layers import match_layers
from clipmerge.methods import Decision, Task, run_method
from clipmerge.options import DecisionOptions, MergeOptions, PlanOptions
from clipmerge.planning.plan import Plan, TensorsRecord
from clipmerge.planning.recipe import Recipe, RecipeLike, load_recipe
from clipmerge.planning.record import Findings, Record
from clipmerge.progress import Journal, Progress
from clipmerge.types import Layers, StrPath

if TYPE_CHECKING:  # a merge without images imports no module that reads images
    from clipmerge.images.image_set import Images
    from clipmerge.images.split import Split


def merge(
    zeroshot: CheckpointLike,
    finetuned: CheckpointLike | Sequence[CheckpointLike],
    recipe: RecipeLike | None = None,
    *,
    output: StrPath | None = None,
    processor: Any = None,
    progress: Progress | None = None,
    **options: Any,
) -> MergeResult:
    """Merge a fine-tuned model with its zero-shot self, and write the result.

    Args:
        zeroshot: theta_0: a folder, a file, ``org/name[@revision]``, or a model of transformers or
            open_clip.
        finetuned: theta_1, in one of these forms; or a sequence of several checkpoints that were
            fine-tuned from the same zero-shot model.
        recipe: Name of a recipe, path of a YAML file, a mapping with the content of one, or a
            `Recipe`. The default is ``auto`` if ``data`` is given and ``alpha`` is not, else
            ``wise-ft``.
        output: Folder to write, completely or not at all; ``None`` to write nothing.
        processor: Processor of models in memory, or the folder of one. By default it is read from
            the folder that a model was loaded from. For open_clip: the name of the architecture, or
            the model's folder.
        progress: Receives progress, notes and warnings. The default logs them to ``clipmerge``,
            and shows a bar on a terminal and in a notebook.
        **options: The fields of `clipmerge.options.MergeOptions`.

    Returns:
        The folder, the plan and the record.

    Raises:
        VerdictError: If the verdict is one of ``fail_on``; its ``result`` has the record.
        ClipmergeError: If an argument cannot be used. One line names the problem, the
            place and the remedy.
    """
    opts = MergeOptions.of(options)
    checkpoints = list_checkpoints(zeroshot, finetuned)
    journal = CallJournal(progress, "merge", *checkpoints, recipe=recipe, **options, output=output)
    chosen = choose_recipe(recipe, opts, journal)
    target = check_output_folder(output, opts, checkpoints)
    with open_and_decide(checkpoints, chosen, opts, journal, processor) as (pair, split, record):
        if split is not None and split.test and opts.verdict:
            from clipmerge.api._images import judge_plan

            record = judge_plan(pair, record, split, opts, journal)
        word = record.verdict.recommendation if record.verdict else ""
        refused = word if word in opts.fail_on else ""
        result = write_merged(pair, record, None if refused else target, opts, journal)
        if refused:
            said = f"the verdict is {refused}, so nothing was written (`fail_on`)"
            raise VerdictError(said, result)
    if opts.push is None or result.record is None:
        return result
    from clipmerge.publish.push import push

    assert target is not None
    published = push(
        target, opts.push, private=opts.private, license=opts.license, progress=journal
    )
    return replace(result, published=published)


def plan(
    zeroshot: CheckpointLike,
    finetuned: CheckpointLike | Sequence[CheckpointLike],
    recipe: RecipeLike | None = None,
    *,
    output: StrPath | None = None,
    processor: Any = None,
    progress: Progress | None = None,
    **options: Any,
) -> Plan:
    """Measure and decide as `merge` does, and return the plan without merging.

    Args:
        zeroshot: theta_0; see `merge`.
        finetuned: theta_1 ... theta_K; see `merge`.
        recipe: See `merge`.
        output: JSON file to write the plan to; ``None`` to write nothing. `Plan.save` can write it
            later.
        processor: See `merge`.
        progress: See `merge`.
        **options: The fields of `clipmerge.options.PlanOptions`.

    Returns:
        The plan.

    Raises:
        ClipmergeError: If an argument cannot be used. One line names the problem, the
            place and the remedy.
    """
    opts = PlanOptions.of(options)
    journal = Journal(progress)
    chosen = choose_recipe(recipe, opts, journal)
    target = None if output is None else local_path(output)
    if target is not None and is_main_process():
        check_output_file(target, overwrite=opts.overwrite)
    checkpoints = list_checkpoints(zeroshot, finetuned)
    with open_and_decide(checkpoints, chosen, opts, journal, processor) as (pair, _, record):
        if not is_main_process():
            return record.plan
        plan = record.plan.replace(**pair.sources(hashed=True))
        if target is not None:
            plan = plan.save(target, overwrite=opts.overwrite)
    return plan


@contextmanager
def open_and_decide(
    checkpoints: Sequence[CheckpointLike],
    recipe: Recipe,
    options: PlanOptions,
    journal: Journal,
    processor: Any = None,
) -> Iterator[tuple[Pair, Split | None, Record]]:
    """Open the checkpoints and images, run the recipe, and yield the pair, the split of the images
    and the record with the plan. Models in memory are saved to temporary folders until the ``with``
    block ends.
    """
    with open_pair(
        checkpoints, options, journal, missing=recipe.missing, processor=processor
    ) as pair:
        pair, split = open_and_split_images(pair, recipe, options, journal)
        yield pair, split, decide(pair, recipe, split, options, journal)


def choose_recipe(recipe: RecipeLike | None, options: PlanOptions, progress: Progress) -> Recipe:
    """Load the named recipe or the default one, and apply the options that change recipes."""
    if options.ood and options.data is None:
        raise UsageError("`ood` needs `data`: give images of the target too")
    if recipe is None:
        recipe, reason = "wise-ft", "there are no images"
        if options.alpha is not None:  # `auto` would multiply learned coefficients by it
            reason = "an alpha is given"
        elif options.data is not None:
            recipe, reason = "auto", "there are images"
        progress.say(
            f"no recipe was named, so it is {recipe}, because {reason} (`recipe` names another)"
        )
    return load_recipe(recipe, options.set, alpha=options.alpha, max_loss=options.max_loss)


def check_output_folder(
    output: StrPath | None, options: MergeOptions, checkpoints: Sequence[CheckpointLike]
) -> Path | None:
    """Check the output folder, the rights to push and `fail_on`, which would otherwise fail only at
    the end. Return the folder's path.
    """
    if options.fail_on and (options.data is None or not options.verdict):
        raise UsageError("`fail_on` needs a verdict: give `data`, and leave out `verdict=False`")
    if options.push is not None:
        if output is None:
            raise UsageError("`push` needs `output`, the folder to publish")
        if is_main_process():
            from clipmerge.publish.push import check_access

            check_access(options.push)
    if output is None:
        return None
    target = local_path(output)
    if is_main_process():
        read = (*checkpoints, options.data, options.classes, *options.ood.values())
        check_output(target, overwrite=options.overwrite, read=read)
    return target


def open_and_split_images(
    pair: Pair, recipe: Recipe, options: PlanOptions, journal: Journal
) -> tuple[Pair, Split | None]:
    """Open, split and check the images, and check that the recipe fits. Return the pair, with a
    zero-shot head if one had to be built, and the split; ``None`` without images.
    """
    pair, images = open_data(pair, options, journal)
    if recipe.measure or recipe.overrides:
        check_recipe(pair, recipe, has_images=images is not None)
    if images is None:
        return pair, None
    from clipmerge.api._images import split_and_check

    split = split_and_check(pair, images, recipe, options, journal)
    if isinstance(options, MergeOptions) and options.verdict and not split.test:
        reason = "there are too few images to hold any back, so there is no verdict"
        if options.fail_on:
            raise UsageError(f"`fail_on` needs a verdict: {reason}")
        journal.warn(reason)
    return pair, split


def open_data(pair: Pair, options: DecisionOptions, journal: Journal) -> tuple[Pair, Images | None]:
    """Open the images of `data`, if there are any. Return the pair, with a zero-shot head if it
    needed one, and the images.
    """
    images = None
    if options.data is not None:
        from clipmerge.images.dataset import open_images

        images = open_images(options.data, options.classes, columns=options.columns)
        journal.warn(*images.notes)
    pair = with_zeroshot_head(pair, images, options.classes, options.template)
    journal.warn(*pair.inputs.notes)  # only now, because building a head replaces the notes
    return pair, images


def check_recipe(pair: Pair, recipe: Recipe, *, has_images: bool) -> None:
    """Raise an error if a recipe does not fit the checkpoints, or needs images and has none."""
    inputs = pair.inputs
    if recipe.measure and not has_images:
        raise UsageError(
            f"recipe '{recipe.name}' needs labelled images of the target: `data` FOLDER with one"
            " subfolder per class (recipes without images: wise-ft, lines, monosoup)"
        )
    for override in recipe.overrides:
        match_layers(override.layers, inputs.merged_layers)
    if recipe.measure and len(inputs.finetuned) > 1 and not recipe.measure_is("SEVERAL"):
        raise UsageError(
            f"measure {recipe.measure['name']}: uses one fine-tuned checkpoint; for several, use a"
            " recipe without a measure, such as 'wise-ft' or 'ties', or the measure 'soup-accuracy'"
        )


def decide(
    pair: Pair,
    recipe: Recipe,
    split: Split | None,
    options: DecisionOptions,
    journal: Journal,
) -> Record:
    """Run the recipe's measure, if it has one, and then its method. Return a record with the plan,
    but without a verdict.
    """
    measurements, calibration = None, None
    if split is not None and recipe.measure is not None:
        from clipmerge.api._images import measure

        measurements, calibration = measure(pair, recipe, split, options, journal)
    journal.stage("decide")
    task = Task(pair.inputs, measurements, options.seed)
    decision = run_method(task, recipe.method)
    if recipe.overrides:
        decision = _apply_overrides(decision, recipe, task.layers)
    plan = Plan(
        recipe=recipe,
        **pair.sources(),
        weights=decision.weights,
        combine=decision.combine,
        dtype=pair.inputs.dtype,
        missing=recipe.missing,
        head=pair.head,
        seed=options.seed,
        layers=decision.layers,
        tensors=TensorsRecord() if decision.scores or decision.coefficients else None,
        stragglers=decision.stragglers,
        scores=dict(decision.scores),
        coefficients=dict(decision.coefficients),
    )
    journal.warn(*plan.check(task.layers, task.shapes))
    return Record(
        plan=plan,
        measurements=measurements.layers if measurements else {},
        measured=Findings(
            decision=decision.found,
            reasons=decision.reasons,
            straggler_statistic=decision.straggler_statistic,
            straggler_scores=decision.straggler_scores,
            **(measurements.observed if measurements else {}),
        ),
        calibration=calibration,
    )


def _apply_overrides(decision: Decision, recipe: Recipe, parameters: Layers) -> Decision:
    """Return the decision with the recipe's overrides applied. A layer with a new alpha loses the
    coefficients that were learned for it.
    """
    layers, reasons = dict(decision.layers), dict(decision.reasons)
    coefficients = dict(decision.coefficients)
    for override in recipe.overrides:
        for name in match_layers(override.layers, layers):
            layers[name] = layers[name].with_override(override)
            reasons[name] = f"override '{override.layers}'"
            if override.alpha is not None:
                for parameter in parameters[name]:
                    coefficients.pop(parameter, None)
    return replace(decision, layers=layers, reasons=reasons, coefficients=coefficients)
