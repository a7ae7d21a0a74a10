"""Arguments shared by several functions of the API: their types, defaults, and the request made from them."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ParamSpec, TypeAlias, TypedDict, TypeVar, Unpack, cast, get_args

from clipmerge.api._in_memory import CheckpointLike as CheckpointLike
from clipmerge.api._in_memory import source_of as source_of
from clipmerge.api._in_memory import with_state_key
from clipmerge.api._other_tasks import tasks_named
from clipmerge.api._unlabelled import check_unlabelled
from clipmerge.choices import Device, OutputDtype
from clipmerge.distributed import require_device
from clipmerge.errors import UsageError
from clipmerge.files.paths import is_there
from clipmerge.images.columns import Columns
from clipmerge.images.file_store import local_inputs
from clipmerge.images.prompts import check_templates
from clipmerge.planning.merge_effect import MAX_LOSS
from clipmerge.planning.recipe import Recipe, load_recipe
from clipmerge.request import Calibration, MergeRequest

P = ParamSpec("P")
R = TypeVar("R")

#: Name of a recipe, path of a YAML file, a mapping like a recipe file, or a `Recipe`.
RecipeLike: TypeAlias = "str | os.PathLike[str] | Mapping[str, Any] | Recipe"


class ImageOptions(TypedDict, total=False):
    """Options of all functions that use images; each is named like the command line's flag.

    Attributes:
        classes: File with class names, or the names in the order of the classes.
        template: One prompt template with ``{}`` for the class, or several.
        batch_size: Images per batch; by default at most 128.
        images_at_once: Images computed at once; fewer need less memory and leave the batches as they are.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        image_column: Column of the images, if the data have columns and it is not found.
        label_column: The same for the labels.
    """

    classes: str | os.PathLike[str] | Sequence[str] | None
    template: str | Sequence[str] | None
    batch_size: int | None
    images_at_once: int | None
    device: str
    image_column: str | None
    label_column: str | None


class MergeOptions(ImageOptions, total=False):
    """Options of `merge`, `plan` and `merge_models`, including those of `ImageOptions`.

    Attributes:
        data: Labelled images to measure on: a folder with one subfolder per class, Parquet or tar files,
            ``hf://datasets/org/name:split``, ``digits``; a `datasets.Dataset`; a torch ``Dataset`` or ``DataLoader``
            of (image, label) pairs; or a `Calibration`, which replaces ``images`` and the options of `ImageOptions`.
        images: Images sampled, class-balanced.
        unlabelled: Images from where the model will be used, for a recipe that learns; labels are neither needed nor
            read. A folder with images at any depth, or any other form of ``data``; in memory also a list of PIL images.
            At most ``images`` of them are sampled.
        state_key: Where in the files of FINETUNED the weights are, such as ``ema``; the same as ``FILE#ema``.
        keep: Images of tasks that the models were not fine-tuned for, by name: with classes, or with captions; see
            `docs/keep.md`.
        set: Overrides of the recipe, ``{"method.alpha": 0.4}`` or ``["method.alpha=0.4"]``.
        verdict: Whether to hold back a fifth of the images (`Calibration.held_back`) from the decision, and measure on
            them what the merge bought; see `docs/verdict.md`.
        max_loss: Points of accuracy on those images that may be lost against the fine-tuned model without a warning.
        strict: Whether to write nothing and raise an error: a `VerdictError` for a larger loss, a `CheckpointError` for
            a fine-tuned checkpoint that did not start from the zero-shot one.
        seed: Seed of the sample, the bootstrap and random masks.
        dtype: ``keep``, ``float32``, ``bfloat16`` or ``float16``.
        hash: Whether to record the sha256 of weights.
        command: Command that repeats the call, for the record; by default derived from the arguments.
    """

    data: Any
    images: int
    unlabelled: Any
    state_key: str | None
    keep: Mapping[str, Any] | Sequence[str] | None
    set: Mapping[str, Any] | Sequence[str] | None
    verdict: bool
    max_loss: float
    strict: bool
    seed: int
    dtype: str
    hash: bool
    command: str | None


def with_options(
    source: Callable[..., Any], *, leave_out: tuple[str, ...] = ()
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Show the names and defaults of ``**options`` in a function's signature.

    Args:
        source: The function with the options as keyword-only parameters.
        leave_out: Options of ``source`` that this function does not take.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        own = list(inspect.signature(function).parameters.values())
        shared = [p for p in inspect.signature(source).parameters.values() if p.kind is p.KEYWORD_ONLY]
        parameters = [p for p in own if p.kind is not p.VAR_KEYWORD]
        names = {*leave_out, *(p.name for p in parameters)}
        parameters += [p for p in shared if p.name not in names]
        function.__signature__ = inspect.signature(function).replace(parameters=parameters)  # type: ignore[attr-defined]
        return function

    return decorate


def calibration_from(
    data: Any,
    *,
    classes: str | os.PathLike[str] | Sequence[str] | None = None,
    template: str | Sequence[str] | None = None,
    images: int = 1024,
    unlabelled: Any = None,
    batch_size: int | None = None,
    images_at_once: int | None = None,
    device: str = "auto",
    image_column: str | None = None,
    label_column: str | None = None,
) -> Calibration:
    """Make a `Calibration` from the arguments about images.

    Args:
        data: See `MergeOptions`.
        classes: See `ImageOptions`.
        template: See `ImageOptions`.
        images: See `MergeOptions`.
        unlabelled: See `MergeOptions`.
        batch_size: See `ImageOptions`.
        images_at_once: See `ImageOptions`.
        device: See `ImageOptions`.
        image_column: See `ImageOptions`.
        label_column: See `ImageOptions`.

    Raises:
        UsageError: If a template or the device is invalid, or ``data`` is a `Calibration` and one of its fields is
            given as an argument too.
    """
    made = Calibration(
        source=None if data is None or isinstance(data, Calibration) else source_of(data),
        classes=_class_names(classes),
        templates=check_templates([template] if isinstance(template, str) else list(template or ())),
        images=images,
        batch_size=batch_size,
        images_at_once=images_at_once,
        device=cast(Device, choice("--device", device, get_args(Device))),
        columns=Columns(image_column, label_column),
        unlabelled=None if unlabelled is None else source_of(unlabelled),
    )
    if not isinstance(data, Calibration):
        return made
    if made != Calibration():
        raise UsageError("data is a Calibration, which holds these settings itself; put the other arguments into it")
    return data


@with_options(calibration_from)
def merge_request(
    zeroshot: str,
    finetuned: Sequence[str],
    recipe: RecipeLike,
    *,
    data: Any = None,
    images: int = 1024,
    unlabelled: Any = None,
    state_key: str | None = None,
    keep: Mapping[str, Any] | Sequence[str] | None = None,
    set: Mapping[str, Any] | Sequence[str] | None = None,
    verdict: bool = True,
    max_loss: float = MAX_LOSS,
    strict: bool = False,
    seed: int = 0,
    dtype: str = "keep",
    hash: bool = True,
    command: str | None = None,
    **options: Unpack[ImageOptions],
) -> MergeRequest:
    """Make the request of a merge, and check all options before torch is imported.

    Args:
        zeroshot: Source of theta_0.
        finetuned: Sources of theta_1 ... theta_K.
        recipe: Name, path, mapping like a recipe file, or `Recipe`.
        data: See `MergeOptions`.
        images: See `MergeOptions`.
        unlabelled: See `MergeOptions`.
        state_key: See `MergeOptions`.
        keep: See `MergeOptions`.
        set: See `MergeOptions`.
        verdict: See `MergeOptions`.
        max_loss: See `MergeOptions`.
        strict: See `MergeOptions`.
        seed: See `MergeOptions`.
        dtype: See `MergeOptions`.
        hash: See `MergeOptions`.
        command: See `MergeOptions`.
        **options: See `ImageOptions`.

    Returns:
        The request.

    Raises:
        UsageError: If two options contradict each other, or a checkpoint is given twice.
        RecipeError: If the recipe is invalid.
    """
    require_places((zeroshot, *finetuned))
    calibration = calibration_from(data, images=images, unlabelled=unlabelled, **options)
    request = MergeRequest(
        zeroshot=zeroshot,
        finetuned=with_state_key(finetuned, state_key),
        recipe=load_recipe(recipe, set),
        calibration=calibration if verdict else replace(calibration, held_back=0.0),
        keep=tasks_named(keep),
        max_loss=max_loss,
        strict=strict,
        seed=seed,
        dtype=dtype_from(dtype),
        command=command or "",
        hashed=hash,
    )
    check_request(request)
    return request


def check_request(request: MergeRequest) -> None:
    """Refuse contradictory options, before anything is opened.

    Raises:
        UsageError: If a recipe that measures has no images to measure on, or cannot use the unlabelled images.
    """
    _check_verdict(request)
    check_unlabelled(request.calibration, request.recipe)
    if request.calibration.device in ("cuda", "mps"):  # otherwise torch need not be imported
        require_device(request.calibration.device)
    source = request.calibration.source
    if request.recipe.needs_data and (source is None or source == ""):
        raise UsageError(
            f"recipe '{request.recipe.name}' measures, and needs labelled images of the target data: "
            "--data FOLDER with one subfolder per class (data-free recipes: wise-ft, lines, monosoup)"
        )


def _check_verdict(request: MergeRequest) -> None:
    """Refuse a limit on the loss if no loss would be measured."""
    share = request.calibration.held_back
    if not 0 <= share < 1:
        raise UsageError(
            f"held_back={share:g}: the share of the images that the decision does not see is at least 0 and less than "
            "1, such as 0.2"
        )
    if not request.max_loss >= 0:
        raise UsageError(f"--max-loss {request.max_loss:g}: a loss of accuracy is 0 points or more, such as 3")
    has_images = request.calibration.source is not None and request.calibration.source != ""
    if request.strict and has_images and share == 0:
        raise UsageError(
            "--strict needs images that the decision does not see, to measure the loss of accuracy on; leave out "
            "--no-verdict"
        )


def dtype_from(dtype: str) -> OutputDtype:
    """Check an output dtype.

    Raises:
        UsageError: If it is unknown.
    """
    return cast(OutputDtype, choice("--dtype", dtype, get_args(OutputDtype)))


def name_of(data: Any) -> str | None:
    """Name of a source of images in records: the source itself, or the type of an object in memory."""
    if data is None or isinstance(data, str):
        return data
    from clipmerge.images.known import Named

    return data.address if isinstance(data, Named) else f"{type(data).__name__} in memory"


def _class_names(classes: str | os.PathLike[str] | Sequence[str] | None) -> Path | tuple[str, ...] | None:
    if classes is None or isinstance(classes, (str, os.PathLike)):
        return _named_classes(os.fspath(classes)) if classes else None
    return tuple(classes)


def _named_classes(name: str) -> Path | tuple[str, ...]:
    """A file of class names, or the names of a shipped list; a file wins."""
    from clipmerge.images.known import class_list, class_lists

    return class_list(name) if not Path(name).exists() and name in class_lists() else Path(name)


def require_places(sources: Sequence[str]) -> None:
    """Refuse checkpoints that are neither on disk nor Hub ids, or given twice, before anything else is checked.

    Raises:
        CheckpointError: If a source is neither.
        UsageError: If a source is given twice.
    """
    for source in sources:
        if not is_there(source):
            from clipmerge.checkpoint.opening import hub_id_of

            hub_id_of(source)
    _refuse_twice(sources)


def _refuse_twice(given: Sequence[str]) -> None:
    sources = [str(Path(source).resolve()) if Path(source).exists() else source for source in given]
    for which, source in enumerate(sources):
        if source in sources[:which]:
            raise UsageError(f"{given[which]}: is given twice; name the zero-shot and the fine-tuned checkpoint")


def choice(flag: str, value: str, options: Sequence[str]) -> str:
    """Check a value that is one of a few words.

    Args:
        flag: The flag, for the message.
        value: The value, in upper or lower case.
        options: The accepted words.

    Returns:
        The value in lower case.

    Raises:
        UsageError: If it is not one of them.
    """
    if value.lower() not in {option.lower() for option in options}:
        raise UsageError(f"{flag} {value}: choose from {', '.join(options)}")
    return value.lower()


def several(finetuned: CheckpointLike | Sequence[CheckpointLike]) -> list[CheckpointLike]:
    """Return one checkpoint or several as a list."""
    return list(finetuned) if isinstance(finetuned, (list, tuple)) else [cast("CheckpointLike", finetuned)]


def check_apart(output: Path | None, request: MergeRequest, recipe: RecipeLike, *, overwrite: bool) -> None:
    """Refuse an output folder that cannot be written, or contains an input.

    Args:
        output: The folder; ``None`` if nothing is written.
        request: The request.
        recipe: The recipe as it was given.
        overwrite: Whether an earlier output may be replaced.

    Raises:
        OutputError: If the folder must not be written.
    """
    from clipmerge.output.checks import check_output

    if output is not None:
        given = request.calibration
        images = (given.source, given.unlabelled, given.classes, *request.keep.values())
        read = files_read(*recipe_files(recipe), *images)
        check_output(output, overwrite=overwrite, inputs=local_inputs(*request.sources), read=read)


def recipe_files(*recipes: RecipeLike) -> list[Path]:
    """List the recipes that are files (a folder may have the name of a shipped recipe)."""
    paths = [Path(recipe) for recipe in recipes if isinstance(recipe, (str, os.PathLike))]
    return [path for path in paths if path.is_file()]


def files_read(*named: Any) -> list[Path]:
    """List the local files and folders that are read in addition to the checkpoints.

    Args:
        *named: Files, images and class names; objects in memory are left out.
    """
    return local_inputs(*(os.fspath(each) for each in named if isinstance(each, (str, os.PathLike))))
