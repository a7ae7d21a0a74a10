"""Requests made from the options of a function, and checked before torch is imported or anything is
opened.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeAlias, cast, get_args

from clipmerge.api._in_memory import CheckpointLike, source_of, with_state_key
from clipmerge.config import DecisionOptions, Device, OutputDtype, RecipeOptions
from clipmerge.distributed import require_device
from clipmerge.errors import UsageError
from clipmerge.evaluation.settings import check_source_name, named_sources
from clipmerge.files.paths import is_there
from clipmerge.files.staging import RECORD
from clipmerge.images.columns import Columns
from clipmerge.images.file_store import local_inputs
from clipmerge.images.prompts import check_templates
from clipmerge.planning.merge_effect import MAX_LOSS
from clipmerge.planning.recipe import Recipe, load_recipe
from clipmerge.request import Calibration, MergeRequest, SweepRequest

#: Name of a recipe, path of a YAML file, a mapping like a recipe file, or a `Recipe`.
RecipeLike: TypeAlias = "str | os.PathLike[str] | Mapping[str, Any] | Recipe"
_MOST_ALPHAS = 1000


def merge_request(
    zeroshot: str,
    finetuned: Sequence[str],
    recipe: RecipeLike,
    options: RecipeOptions,
    *,
    state_key: str | None = None,
    command: str = "",
) -> MergeRequest:
    """Make the request of a merge from complete options, and check it."""
    require_places((zeroshot, *finetuned))
    settings, changes = settings_from(options), options["set"]
    if options["alpha"] is not None:
        _refuse_set_twice("alpha", "method.alpha", changes)
        texts = (
            [f"{key}={value}" for key, value in changes.items()]
            if isinstance(changes, Mapping)
            else changes or ()
        )
        changes = [*texts, f"method.alpha={options['alpha']!r}"]
    chosen = limited_recipe(recipe, changes, options["max_loss"])
    sources = with_state_key(finetuned, state_key)
    if options["max_loss"] is None:
        settings["max_loss"] = chosen.max_loss
    request = MergeRequest(zeroshot, sources, chosen, command=command, **settings)
    check_request(request)
    return request


def limited_recipe(
    recipe: RecipeLike, changes: Mapping[str, Any] | Sequence[str] | None, max_loss: float | None
) -> Recipe:
    """Load a recipe whose decision keeps to the limit of the user, if there is one."""
    if max_loss is not None:
        _refuse_set_twice("max_loss", "measure.max_loss", changes)
    return load_recipe(recipe, changes).with_max_loss(max_loss)


def _refuse_set_twice(
    option: str, key: str, changes: Mapping[str, Any] | Sequence[str] | None
) -> None:
    if any(text.partition("=")[0].strip() == key for text in changes or ()):
        raise UsageError(f"`{option}` and `set={key}`: both set the same option; give one of them")


def settings_from(options: DecisionOptions) -> dict[str, Any]:
    """The fields that `MergeRequest` and `SweepRequest` share, from complete options."""
    calibration = calibration_from(options)
    return {
        "calibration": calibration if options["verdict"] else replace(calibration, held_back=0.0),
        "keep": named("`keep`", options["keep"]),
        "max_loss": MAX_LOSS if options["max_loss"] is None else options["max_loss"],
        "strict": options["strict"],
        "seed": options["seed"],
        "dtype": cast(OutputDtype, choice("`dtype`", options["dtype"], get_args(OutputDtype))),
        "hashed": options["hash"],
    }


def calibration_from(options: Mapping[str, Any]) -> Calibration:
    """Make a `Calibration` from the options about images; those that are missing have their
    defaults.
    """
    data, template = options.get("data"), options.get("template")
    plain = Calibration()
    made = Calibration(
        source=(
            None
            if isinstance(data, Calibration) or (isinstance(data, str) and not data)
            else source_of(data)
        ),
        classes=_class_names(options.get("classes")),
        templates=check_templates(
            [template] if isinstance(template, str) else list(template or ())
        ),
        images=options.get("images", plain.images),
        batch_size=options.get("batch_size"),
        images_at_once=options.get("images_at_once"),
        device=cast(
            Device, choice("`device`", options.get("device", plain.device), get_args(Device))
        ),
        columns=Columns(
            options.get("image_column"), options.get("label_column"), options.get("caption_column")
        ),
        unlabelled=source_of(options.get("unlabelled")),
        state=Path(options["state"]) if options.get("state") else None,
    )
    if not isinstance(data, Calibration):
        return made
    if made != plain:
        raise UsageError(
            "data is a Calibration, which holds these settings itself; put the other arguments"
            " into it"
        )
    return data


def check_request(request: MergeRequest) -> None:
    """Refuse contradictory options."""
    calibration = request.calibration
    share, has_images = calibration.held_back, calibration.source is not None
    if not 0 <= share < 1:
        raise UsageError(
            f"held_back={share:g}: the share of the images that the decision does not see is at"
            " least 0 and less than 1, such as 0.2"
        )
    if request.strict and has_images and share == 0:
        raise UsageError(
            "`strict=True` needs images that the decision does not see, to measure the loss of"
            " accuracy on; leave out `verdict=False`"
        )
    check_unlabelled(calibration, request.recipe)
    if calibration.device not in ("auto", "cpu"):  # otherwise torch need not be imported
        require_device(calibration.device)
    if request.recipe.measure and not has_images:
        raise UsageError(
            f"recipe '{request.recipe.name}' measures, and needs labelled images of the target"
            " data: `data` FOLDER with one subfolder per class (data-free recipes: wise-ft, lines,"
            " monosoup)"
        )


def check_unlabelled(calibration: Calibration, *recipes: Recipe) -> None:
    """Refuse unlabelled images that no recipe can use, before anything is opened."""
    source = calibration.unlabelled
    if source is None:
        return
    named = f"`unlabelled` {source}" if isinstance(source, str) else "`unlabelled`"
    problems = [_problem(recipe) for recipe in recipes] or ["no recipe is given"]
    if all(problems):
        raise UsageError(
            f"{named}: {problems[0]}; leave out `unlabelled`, or choose a recipe that learns from"
            " them, such as auto"
        )
    labelled = calibration.source
    texts = isinstance(source, str) and isinstance(labelled, str)
    if source is labelled or (texts and Path(source).resolve() == Path(labelled).resolve()):
        raise UsageError(
            f"{named}: these are the images of `data`; give images from where the model will be"
            " used, or leave it out"
        )


def _problem(recipe: Recipe) -> str:
    """Why a recipe cannot learn from unlabelled images; empty if it can."""
    if not recipe.learns_from_unlabelled:
        return f"recipe '{recipe.name}' does not learn from unlabelled images"
    options = recipe.measure or {}
    if options["robustness"] == 0:
        return (
            f"recipe '{recipe.name}' has measure.robustness 0, so it has no use for unlabelled"
            " images"
        )
    if min(options["copies"], options["batch"]) < 2:
        return (
            f"recipe '{recipe.name}' has one copy per step, too few to replace half by unlabelled"
            " images"
        )
    return ""


def named(flag: str, given: Mapping[str, Any] | Sequence[str] | None) -> dict[str, Any]:
    """Sources by name, given as a mapping or as texts ``NAME=SOURCE``."""
    sources = given if isinstance(given, Mapping) else named_sources(flag, given or ())
    for name in sources:
        check_source_name(name)
    return {name: source_of(source) for name, source in sources.items()}


def alphas_from(given: Sequence[float] | str) -> tuple[float, ...]:
    """Points of the curve, given as numbers or as a text, in which ``...`` continues the steps
    before it.

    Example:
        >>> alphas_from("0,0.25,...,1")
        (0.0, 0.25, 0.5, 0.75, 1.0)
    """
    if not isinstance(given, str):
        return tuple(map(float, given))
    words = [word.strip() for word in given.split(",")]
    values: list[Decimal] = []
    try:
        for place, word in enumerate(words):
            values += (
                _steps(values[-2], values[-1], Decimal(words[place + 1]))
                if word == "..."
                else [Decimal(word)]
            )
        alphas = sorted({float(value) for value in values})
    except (ArithmeticError, IndexError, ValueError):
        alphas = []
    if not alphas or not all(
        map(math.isfinite, alphas)
    ):  # 1e400 is valid as text but overflows a float
        raise UsageError(
            f"`alphas` {given}: expected finite numbers separated by commas, such as 0,0.25,0.5 or"
            f" 0,0.1,...,1 (where '...' stands for at most {_MOST_ALPHAS} numbers)"
        )
    return tuple(alphas)


def _steps(before: Decimal, last: Decimal, end: Decimal) -> list[Decimal]:
    """Numbers between ``last`` and ``end``, in steps of ``last - before``."""
    turns = (end - last) / (last - before)
    if not 0 < turns <= _MOST_ALPHAS:
        raise ValueError("the steps before '...' do not reach the number after it, or are too many")
    return [last + (last - before) * turn for turn in range(1, int(turns) + 1)]


def byte_count(value: str | int | None) -> int | None:
    """Read the size of a shard, such as ``200MB``, ``5GB`` or ``1GiB``, with units in upper or
    lower case.

    Example:
        >>> byte_count("1.5GB"), byte_count("2KiB")
        (1500000000, 2048)
    """
    if value is None:
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:([KMGT])(I?))?B?\s*", str(value).upper())
    size = (
        int(Decimal(match[1]) * (1024 if match[3] else 1000) ** " KMGT".index(match[2] or " "))
        if match
        else 0
    )
    if size < 1:
        raise UsageError(f"`max_shard_size` {value}: expected a size, such as 200MB or 5GB")
    return size


def _class_names(
    classes: str | os.PathLike[str] | Sequence[str] | None,
) -> Path | tuple[str, ...] | None:
    """A file of class names, or the names: given ones, or those of a shipped list; a file wins."""
    if classes is None or classes == "":
        return None
    if not isinstance(classes, (str, os.PathLike)):
        return tuple(classes)
    from clipmerge.images.registry import class_list, class_lists

    name = os.fspath(classes)
    return class_list(name) if not Path(name).exists() and name in class_lists() else Path(name)


def require_places(sources: Sequence[str]) -> None:
    """Refuse checkpoints that are neither on disk nor Hub ids, or given twice, before anything else
    is checked.
    """
    for source in sources:
        if not is_there(source):
            from clipmerge.checkpoint.opening import hub_id_of

            hub_id_of(source)
    refuse_twice(sources)


def refuse_twice(sources: Sequence[str]) -> None:
    """Refuse a checkpoint that is given twice."""
    seen: set[str] = set()
    for source in sources:
        place = str(Path(source).resolve()) if Path(source).exists() else source
        if place in seen:
            raise UsageError(
                f"{source}: is given twice; give each checkpoint once, the zero-shot one first"
            )
        seen.add(place)


def choice(flag: str, value: str, options: Sequence[str]) -> str:
    """A word in lower case, if it is one of the options."""
    if value.lower() not in {option.lower() for option in options}:
        raise UsageError(f"{flag} {value}: choose from {', '.join(options)}")
    return value.lower()


def several(finetuned: CheckpointLike | Sequence[CheckpointLike]) -> list[CheckpointLike]:
    """One checkpoint or several as a list, which must not be empty."""
    if isinstance(finetuned, (list, tuple)) and not finetuned:
        raise UsageError("finetuned: an empty list; give at least one fine-tuned checkpoint")
    return (
        list(finetuned)
        if isinstance(finetuned, (list, tuple))
        else [cast("CheckpointLike", finetuned)]
    )


def check_apart(
    output: Path | None,
    request: MergeRequest | SweepRequest,
    recipes: Sequence[RecipeLike],
    *,
    overwrite: bool,
    record: str = RECORD,
) -> None:
    """Refuse an output folder that cannot be written, or contains an input."""
    from clipmerge.output.checks import check_output

    if output is not None:
        given = request.calibration
        evaluated = request.sources.values() if isinstance(request, SweepRequest) else ()
        images = (*evaluated, *request.keep.values(), given.source, given.unlabelled, given.classes)
        read = [*files_read(*images), *recipe_files(*recipes)]
        inputs = local_inputs(*request.checkpoints)
        check_output(output, overwrite=overwrite, inputs=inputs, read=read, record=record)


def recipe_files(*recipes: RecipeLike) -> list[Path]:
    """The recipes that are files (a folder may have the name of a shipped recipe)."""
    paths = [Path(recipe) for recipe in recipes if isinstance(recipe, (str, os.PathLike))]
    return [path for path in paths if path.is_file()]


def files_read(*places: Any) -> list[Path]:
    """The local files and folders that are read in addition to the checkpoints, without objects in
    memory.
    """
    return local_inputs(
        *(os.fspath(each) for each in places if isinstance(each, (str, os.PathLike)))
    )
