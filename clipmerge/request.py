"""What a merge or a sweep is asked for: built from the arguments of a function and checked before
torch is imported or anything is opened, and as the command that repeats the call.
"""

from __future__ import annotations

import math
import os
import re
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, fields, replace
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipmerge.config import (
    OPTIONS,
    Device,
    OutputDtype,
    SweepOptions,
    declarations,
)
from clipmerge.distributed import require_device
from clipmerge.errors import UsageError, did_you_mean
from clipmerge.files.paths import in_memory_title, local_path, source_exists
from clipmerge.finding import CHECKS
from clipmerge.images.local_files import local_inputs
from clipmerge.images.prompts import check_templates
from clipmerge.images.source import Columns
from clipmerge.images.split import SHARE
from clipmerge.planning.recipe import Recipe, RecipeLike
from clipmerge.planning.verdict import MAX_LOSS
from clipmerge.types import Json, Names, StrPath

if TYPE_CHECKING:  # a merge without images imports no module that reads images
    from clipmerge.images.classes import ClassNames

_MAX_ALPHAS = 1000
# Options that `Calibration` holds as they are.
_SAME_NAMES = ("images", "batch_size", "device")


def parse_alphas(points: Sequence[float] | str) -> tuple[float, ...]:
    """Points of a curve, given as numbers or as a text, in which ``...`` continues the steps before
    it.

    Example:
        >>> parse_alphas("0,0.25,...,1")
        (0.0, 0.25, 0.5, 0.75, 1.0)
    """
    try:
        alphas = _alphas_of(points) if isinstance(points, str) else list(map(float, points))
    except (ArithmeticError, IndexError, TypeError, ValueError):
        alphas = []
    # 1e400 is valid as text but overflows a float
    if not alphas or not all(map(math.isfinite, alphas)):
        raise UsageError(
            f"`alphas` {points}: expected finite numbers separated by commas, such as 0,0.25,0.5 or"
            f" 0,0.1,...,1 (where '...' stands for at most {_MAX_ALPHAS} numbers)"
        )
    return tuple(alphas)


def _alphas_of(text: str) -> list[float]:
    """The numbers of a text, ascending."""
    words = [word.strip() for word in text.split(",")]
    values: list[Decimal] = []
    for position, word in enumerate(words):
        if word == "...":
            values += _continue_steps(values[-2], values[-1], Decimal(words[position + 1]))
        else:
            values.append(Decimal(word))
    return sorted({float(value) for value in values})


def _continue_steps(before: Decimal, last: Decimal, end: Decimal) -> list[Decimal]:
    """Numbers after ``last`` up to ``end``, in steps of ``last - before``."""
    count = (end - last) / (last - before)
    if not 0 < count <= _MAX_ALPHAS:
        raise ValueError("the steps before '...' do not reach the number after it, or are too many")
    return [last + (last - before) * step for step in range(1, int(count) + 1)]


#: Points of a sweep's curve, by default.
ALPHAS = parse_alphas(declarations(SweepOptions)["alphas"][1].default)


@dataclass(frozen=True)
class Calibration:
    """The images to measure on, and settings for measuring.

    Attributes:
        source: A folder, Parquet or tar files, ``hf://datasets/...``, ``digits`` or images in
            memory; see `clipmerge.images.dataset.open_images`.
        classes: File with class names, or the names in the order of the classes.
        templates: Prompt templates; empty for the default.
        images: Images sampled, class-balanced.
        batch_size: Images per batch; ``None`` for at most 128 and at least eight batches.
        device: Device to measure on.
        columns: Columns of images and labels named by the user.
        held_back: Share of the images held back from the decision to measure the effect of the
            merge, see `docs/explanation/the-answer.md`; 0 to decide on all images and measure no
            effect.
    """

    source: Any = None
    classes: ClassNames = None
    templates: Names = ()
    images: int = OPTIONS["images"].default
    batch_size: int | None = None
    device: Device = OPTIONS["device"].default
    columns: Columns = field(default_factory=Columns)
    held_back: float = SHARE

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Calibration:
        """Take the options about images; those that a command lacks have their defaults."""
        data = options.get("data")
        template = options.get("template")
        calibration = cls(
            source=None
            if isinstance(data, Calibration) or _is_empty(data)
            else _path_as_text(data),
            classes=_class_names(options.get("classes")),
            templates=check_templates(
                [template] if isinstance(template, str) else list(template or ())
            ),
            columns=Columns(
                options.get("image_column"),
                options.get("label_column"),
                options.get("caption_column"),
            ),
            **{name: options[name] for name in _SAME_NAMES if name in options},
        )
        if not isinstance(data, Calibration):
            return calibration
        if calibration != cls():
            raise UsageError(
                "data is a Calibration, which holds these settings itself; put the other arguments"
                " into it"
            )
        return data


@dataclass(frozen=True)
class Request:
    """What a merge and a sweep are asked for alike."""

    zeroshot: str  # source of theta_0
    finetuned: Names  # sources of theta_1 ... theta_K
    _: KW_ONLY
    calibration: Calibration = Calibration()  # the images, and settings for all images
    seed: int = OPTIONS["seed"].default  # of the samples, the bootstrap and the random masks
    dtype: OutputDtype = OPTIONS["dtype"].default
    command: str = ""  # repeats the call, for the record
    # points that may be lost against the fine-tuned model's accuracy without a warning
    max_loss: float = MAX_LOSS
    allow: Names = ()  # kinds of checks that may fail
    # open_clip's name of the architecture of weights without a configuration
    model: str | None = None
    # sources of images that are judged beside the target
    ood: Json = field(default_factory=dict)

    @property
    def checkpoints(self) -> Names:
        """Sources of theta_0, theta_1 ... theta_K."""
        return (self.zeroshot, *self.finetuned)

    @property
    def files(self) -> list[Path]:
        """Local files and folders that are read in addition to the checkpoints."""
        images = self.calibration
        return local_files(*self.ood.values(), images.source, images.classes)


@dataclass(frozen=True)
class MergeRequest(Request):
    """Everything that determines a plan."""

    recipe: Recipe


@dataclass(frozen=True)
class SweepRequest(Request):
    """Everything that determines a sweep; with several fine-tuned checkpoints the curve goes to
    their average.
    """

    id_sources: Json  # images like those it was fine-tuned on, by name
    ood_sources: Json  # images unlike them, by name
    recipes: tuple[Recipe, ...] = ()
    alphas: tuple[float, ...] = ALPHAS  # points of the curve, ascending
    # checkpoints to show beside the curve as they are, by name
    points: dict[str, str] = field(default_factory=dict)
    limit: int | None = None  # images sampled from each source, class-balanced
    checks_overlap: bool = True  # whether sources are searched for images that they share

    @property
    def sources(self) -> Json:
        """All images that are evaluated, by name."""
        return {**self.id_sources, **self.ood_sources}

    @property
    def files(self) -> list[Path]:
        """Local files and folders that are read in addition to the checkpoints."""
        return [*super().files, *local_files(*self.sources.values())]

    def merge_request(self, recipe: Recipe) -> MergeRequest:
        """The request of a merge with one of the recipes, which is not judged."""
        settings = {attribute.name: getattr(self, attribute.name) for attribute in fields(Request)}
        return MergeRequest(recipe=recipe, **settings | {"ood": {}})


def allowed_checks(names: str | Sequence[str] | None) -> Names:
    """Kinds of checks to go on with, each of which must exist."""
    known = sorted(CHECKS)
    allowed = (names,) if isinstance(names, str) else tuple(names or ())
    for name in allowed:
        if name not in known:
            raise UsageError(
                f"`allow` {name}: no check has this name (checks: {', '.join(known)})."
                f"{did_you_mean(name, known)}"
            )
    return allowed


def request_fields(
    zeroshot: str, finetuned: Sequence[str], command: str, options: Mapping[str, Any]
) -> Json:
    """The fields of `Request`, from complete options."""
    require_checkpoints((zeroshot, *finetuned))
    calibration = Calibration.from_options(options)
    return {
        "zeroshot": zeroshot,
        "finetuned": with_state_key(finetuned, options.get("state_key")),
        "command": command,
        "calibration": calibration if options["verdict"] else replace(calibration, held_back=0.0),
        "ood": parse_named("ood", options.get("ood")),
        "max_loss": MAX_LOSS if options["max_loss"] is None else options["max_loss"],
        "allow": allowed_checks(options["allow"]),
        "seed": options["seed"],
        "dtype": options["dtype"],
        "model": options.get("model"),
    }


def default_recipe(options: Mapping[str, Any]) -> str:
    """The recipe of a call that names none."""
    has_images = Calibration.from_options(options).source is not None
    name, reason = (
        ("auto", "there are images") if has_images else ("wise-ft", "there are no images")
    )
    if options["alpha"] is not None:  # in `auto` it would scale what was learned
        name, reason = "wise-ft", "an alpha is given"
    options["progress"].say(
        f"no recipe was named, so it is {name}, because {reason} (`recipe` names another)"
    )
    return name


def check_merge(request: MergeRequest) -> None:
    """Refuse contradictory options of a merge."""
    calibration = request.calibration
    held_back = calibration.held_back
    has_images = calibration.source is not None
    if not 0 <= held_back < 1:
        raise UsageError(
            f"held_back={held_back:g}: the share of the images that the decision does not see is at"
            " least 0 and less than 1, such as 0.2"
        )
    if calibration.device not in ("auto", "cpu"):  # otherwise torch need not be imported
        require_device(calibration.device)
    if request.recipe.measure and not has_images:
        raise UsageError(
            f"recipe '{request.recipe.name}' measures, and needs labelled images of the target"
            " data: `data` FOLDER with one subfolder per class (data-free recipes: wise-ft, lines,"
            " monosoup)"
        )


def check_sweep(request: SweepRequest) -> None:
    """Refuse contradictory options of a sweep."""
    shared = sorted(request.id_sources.keys() & request.ood_sources.keys())
    if shared:
        raise UsageError(
            f"`id` and `ood`: both have a source named '{shared[0]}'; write NAME=SOURCE, each name"
            " once"
        )
    if not request.id_sources or not request.ood_sources:
        raise UsageError("a sweep needs at least one `id` and one `ood` source")
    if len(request.alphas) < 2 or list(request.alphas) != sorted(set(request.alphas)):
        raise UsageError(
            "`alphas`: a curve needs at least two different values, in ascending order"
        )
    names = [recipe.name for recipe in request.recipes]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(
                f"two recipes are named '{name}'; give one of them another `name:` in its file"
            )
        if name in request.points:
            raise UsageError(
                f"`points` {name}: a recipe has this name; write NAME=CHECKPOINT with another name"
            )
    for recipe in request.recipes:
        check_merge(request.merge_request(recipe))


def require_checkpoints(sources: Sequence[str]) -> None:
    """Refuse checkpoints that are neither on disk nor Hub ids, or given twice, before anything else
    is checked.
    """
    for source in sources:
        if not source_exists(source):
            from clipmerge.checkpoint.opening import hub_id_of

            hub_id_of(source)
    refuse_duplicates(sources)


def refuse_duplicates(sources: Sequence[str]) -> None:
    """Refuse a checkpoint that is given twice."""
    seen: set[str] = set()
    for source in sources:
        path = str(local_path(source).resolve()) if local_path(source).exists() else source
        if path in seen:
            raise UsageError(
                f"{source}: is given twice; give each checkpoint once, the zero-shot one first"
            )
        seen.add(path)


def with_state_key(sources: Sequence[str], state_key: str | None) -> Names:
    """Name the part of each source that holds the weights.

    Example:
        >>> with_state_key(["last.pt"], "ema")
        ('last.pt#ema',)
    """
    if state_key is None:
        return tuple(sources)
    if any(map(in_memory_title, sources)):
        raise UsageError(
            "`state_key`: a model in memory has no parts; give the model with the weights you mean"
        )
    return tuple(f"{source}#{state_key}" for source in sources)


def as_list(finetuned: Any) -> list[Any]:
    """One checkpoint or several as a list, which must not be empty."""
    if not isinstance(finetuned, (list, tuple)):
        return [finetuned]
    if not finetuned:
        raise UsageError("finetuned: an empty list; give at least one fine-tuned checkpoint")
    return list(finetuned)


def parse_named(
    parameter: str, sources: Mapping[str, Any] | Sequence[StrPath] | StrPath | None
) -> Json:
    """Sources by name, given as a mapping, or as texts ``NAME=SOURCE`` or paths."""
    if not isinstance(sources, Mapping):
        listed = [sources] if isinstance(sources, (str, os.PathLike)) else sources or ()
        if not isinstance(listed, (list, tuple)) or not all(
            isinstance(source, (str, os.PathLike)) for source in listed
        ):
            raise UsageError(f'`{parameter}` takes sources by name: {parameter}={{"val": SOURCE}}')
        pairs = [parse_named_source(os.fspath(source)) for source in listed]
        sources = dict(pairs)
        if len(sources) != len(pairs):
            raise UsageError(
                f"two `{parameter}` have the same name; write NAME=SOURCE with different names"
            )
    for name in sources:
        check_source_name(name)
    return {name: _path_as_text(source) for name, source in sources.items()}


def parse_named_source(text: str) -> tuple[str, str]:
    """Split ``NAME=SOURCE``; the default name is the last part of the source.

    Example:
        >>> parse_named_source("val=data/val"), parse_named_source("data/val")
        (('val', 'data/val'), ('val', 'data/val'))
    """
    name, equals, source = text.partition("=")
    if not (source if equals and name else text).strip():
        raise UsageError(f"'{text}': names no images; write NAME=SOURCE, such as val=data/val")
    if equals and name and not local_path(text).exists():
        return name, source
    path = Path(text)
    # "." and ".." are not names; use the folder's own
    return (local_path(text).resolve().name if path.name in ("", "..") else path.name) or text, text


def check_source_name(name: str) -> None:
    """Refuse a name that no tensor of a safetensors file can have, before anything is evaluated."""
    if not isinstance(name, str):
        raise UsageError(f"a source cannot be named {name!r}; give a text")
    # a reserved header entry: the file would be written, but no reader would open it
    if name == "__metadata__":
        raise UsageError(
            "a source cannot be named '__metadata__', which safetensors reserves; choose another"
            " name"
        )
    try:
        name.encode()
    except UnicodeEncodeError:
        raise UsageError(
            f"a source cannot be named {name!a}, which is not UTF-8; write NAME=SOURCE"
        ) from None


def parse_size(size: str | int | None) -> int | None:
    """Bytes of a shard's size: a number of bytes, or text such as ``200MB``, ``5GB`` or ``1GiB``,
    with units in upper or lower case.

    Example:
        >>> parse_size("1.5GB"), parse_size("2KiB"), parse_size(200_000_000)
        (1500000000, 2048, 200000000)
    """
    if size is None:
        return None
    # text without a unit would be bytes, where gigabytes are meant
    text = f"{size}B" if isinstance(size, int) else str(size).upper()
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:([KMGT])(I?)B?|B)\s*", text)
    count = 0
    if match:
        base = 1024 if match[3] else 1000
        count = int(Decimal(match[1]) * base ** " KMGT".index(match[2] or " "))
    if count < 1:
        raise UsageError(
            f"`max_shard_size` {size}: expected a size with its unit, such as 200MB or 5GB"
        )
    return count


def _class_names(
    classes: StrPath | Sequence[str] | Mapping[Any, str] | None,
) -> Path | Names | None:
    """A file of class names, or the names themselves; a file wins over a shipped list of its
    name.
    """
    if classes is None or _is_empty(classes):
        return None
    if isinstance(classes, Mapping):  # such as `id2label` of a configuration of transformers
        by_number = {str(number): name for number, name in classes.items()}
        numbers = [str(number) for number in range(len(by_number))]
        if set(by_number) != set(numbers):
            raise UsageError(
                f"`classes`: its keys are not the numbers 0 to {len(numbers) - 1}; give the names"
                " in the order of the classes, or a JSON file from label to name"
            )
        return tuple(by_number[number] for number in numbers)
    if not isinstance(classes, (str, os.PathLike)):
        if not isinstance(classes, Iterable):
            raise UsageError(f"`classes` {classes!r}: give a file, or the names in a list")
        return tuple(classes)
    from clipmerge.images.registry import class_list, class_lists

    name = os.fspath(classes)
    path = local_path(name)
    return class_list(name) if not path.exists() and name in class_lists() else path


def _is_empty(text: Any) -> bool:
    return isinstance(text, str) and not text


def _path_as_text(data: Any) -> Any:
    """Turn a path into text; return images in memory unchanged."""
    return os.fspath(data) if isinstance(data, os.PathLike) else data


def local_files(*sources: Any) -> list[Path]:
    """The sources that are local files and folders; objects in memory are none."""
    return local_inputs(
        *(os.fspath(source) for source in sources if isinstance(source, (str, os.PathLike)))
    )


def recipe_files(*recipes: RecipeLike | None) -> list[Path]:
    """The recipes that are files (a folder may have the name of a shipped recipe)."""
    paths = [Path(recipe) for recipe in recipes if isinstance(recipe, (str, os.PathLike))]
    return [path for path in paths if path.is_file()]


def command_line() -> str:
    """The running command, without the folders of its paths, which are nobody else's business."""
    words = ["clipmerge" if "clipmerge" in sys.argv[0] else sys.argv[0], *sys.argv[1:]]
    return shlex.join(re.sub(r"(^|=)(/|~|\.\.?/).*/", r"\1", word) for word in words)
