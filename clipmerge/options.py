"""The options of every command, each declared once: keyword, type, default, flag and help.

``merge(..., images=64)`` and ``clipmerge merge ... --images 64`` set the same field. The annotation
of a field has its type in Python, its bounds and its flag. If the type is ``Any``, the flag takes
text. If the default is ``()``, the flag may be repeated.
"""

import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from inspect import Parameter, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self, get_args

from annotated_types import Ge, Le
from typer import Option

from clipmerge.errors import UsageError, did_you_mean, did_you_mean_one_of, list_choices
from clipmerge.files import local_path
from clipmerge.types import CHECKS, RECOMMENDATIONS, Device, Json, Names, OutputDtype, as_tuple

if TYPE_CHECKING:
    from clipmerge.images.image_set import Columns

#: The groups of flags in their order in ``--help``.
HELP_GROUPS = ("What", "Images", "Decide", "Write", "Publish", "Run")
_what, _images, _decide, _write, _publish, _run = (
    partial(Option, rich_help_panel=group) for group in HELP_GROUPS
)

Allow = Annotated[
    Any,
    _what("--allow", metavar="CHECK", help="Continue although this check fails; may be repeated."),
]
Overwrite = Annotated[bool, _write("--overwrite", help="Replace an earlier output.")]
ShardSize = Annotated[
    Any,
    _write(
        metavar="SIZE",
        help="Largest file, such as 5GB; by default, files as in the fine-tuned checkpoint.",
    ),
]
Model = Annotated[
    str | None,
    _what(metavar="NAME", help="OpenCLIP architecture of weights without a configuration."),
]
Private = Annotated[bool, _publish("--private", help="Create a private repository.")]
License = Annotated[
    str | None, _publish(metavar="LICENCE", help="Licence to publish under, such as mit.")
]


@dataclass(frozen=True, kw_only=True)
class Options:
    """The checked options of a command."""

    __pydantic_config__ = {"allow_inf_nan": False}  # noqa: RUF012 - pydantic's own name

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Make options from keyword arguments.

        Raises:
            TypeError: If a keyword is not the name of a field.
            UsageError: If a value does not fit its field.
        """
        from pydantic import TypeAdapter, ValidationError  # `--help` needs no pydantic

        defaults = {field.name: field.default for field in fields(cls)}
        for name in values:
            if name not in defaults:
                raise TypeError(f"unexpected option '{name}'.{did_you_mean(name, defaults)}")
        given = dict(values)
        for name in _READERS.keys() & defaults.keys():
            value = given.get(name)
            given[name] = _READERS[name](defaults[name] if value is None else value)
        try:
            return TypeAdapter(cls).validate_python(given)
        except ValidationError as error:
            first = error.errors()[0]
            reason = first["msg"].removeprefix("Input ")
            if first["type"] == "literal_error":
                reason += f".{did_you_mean_one_of(str(first['input']), reason)}"
            raise UsageError(f"`{first['loc'][0]}` {first['input']}: {reason}") from None


@dataclass(frozen=True, kw_only=True)
class DataOptions(Options):
    """The images to measure on."""

    data: Annotated[
        Any,
        _images(
            "--data", "-d", metavar="SOURCE", help="Labelled or captioned images to measure on."
        ),
    ] = None
    images: Annotated[
        int,
        Ge(1),
        _images(metavar="COUNT", help="Number of images drawn from --data, class-balanced."),
    ] = 1024


@dataclass(frozen=True, kw_only=True)
class ImageOptions(Options):
    """How to read images, and the device and batches of the models."""

    classes: Annotated[
        Any,
        _images(metavar="FILE", help="Class names: one per line, JSON, or the name of a list."),
    ] = None
    template: Annotated[
        Any,
        _images(metavar="TEXT", help="Prompt with {} for the class, or a set; may be repeated."),
    ] = ()
    image_column: Annotated[
        str | None, _images(metavar="NAME", help="Column of the images, if not found.")
    ] = None
    label_column: Annotated[
        str | None, _images(metavar="NAME", help="Column of the labels, if not found.")
    ] = None
    caption_column: Annotated[
        str | None, _images(metavar="NAME", help="Column of captions, to use instead of classes.")
    ] = None
    device: Annotated[Device, _run(help="Device for the models.")] = "auto"
    batch_size: Annotated[
        int | None, Ge(1), _run(metavar="COUNT", help="Images per batch; by default at most 128.")
    ] = None

    @property
    def columns(self) -> "Columns":
        """The columns to read, if the user named them."""
        from clipmerge.images.image_set import Columns

        return Columns(self.image_column, self.label_column, self.caption_column)


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(ImageOptions):
    """Options of `evaluate`."""

    model: Model = None
    state_key: Annotated[
        str | None,
        _what(metavar="KEY", help="Key of the weights in a training checkpoint."),
    ] = None
    allow: Allow = ()


@dataclass(frozen=True, kw_only=True)
class InspectOptions(EvaluateOptions, DataOptions):
    """Options of `inspect`."""

    seed: Annotated[
        int,
        Ge(0),
        Le(2**32 - 1),  # steps and layers add to it, and random generators take 64 bits
        _decide(metavar="NUMBER", help="Seed of image samples and of random masks."),
    ] = 0


@dataclass(frozen=True, kw_only=True)
class DecisionOptions(InspectOptions):
    """Options that decide a merge."""

    set: Annotated[
        Any,
        _decide(
            metavar="KEY=VALUE",
            help="Change the recipe, such as method.alpha=0.4; may be repeated.",
        ),
    ] = ()
    max_loss: Annotated[
        float | None,
        Ge(0),
        Le(100),
        _decide(
            metavar="POINTS",
            help="Accuracy that may be lost, in points; by default as in the recipe, or 3.",
        ),
    ] = None
    dtype: Annotated[OutputDtype, _write(help="Dtype of the merged weights.")] = "keep"


@dataclass(frozen=True, kw_only=True)
class PlanOptions(DecisionOptions):
    """Options of `plan`."""

    alpha: Annotated[
        float | None,
        _decide(
            metavar="NUMBER",
            help="Short for --set method.alpha=NUMBER: 0 = zero-shot, 1 = fine-tuned.",
        ),
    ] = None
    ood: Annotated[
        Any,
        _images(
            metavar="NAME=SOURCE",
            help="Labelled images of a shift or task: half teach, half judge; may be repeated.",
        ),
    ] = ()
    verdict: Annotated[
        bool,
        _decide(
            " /--no-verdict",
            show_default=False,
            help="Use all images to decide, and none to judge the merge.",
        ),
    ] = True
    overwrite: Overwrite = False


@dataclass(frozen=True, kw_only=True)
class MergeOptions(PlanOptions):
    """Options of `merge`."""

    fail_on: Annotated[
        Any,
        _decide(
            metavar="RECOMMENDATION",
            help="Exit with 1 and write nothing on a verdict such as keep-finetuned; may be"
            " repeated.",
        ),
    ] = ()
    max_shard_size: ShardSize = None
    push: Annotated[
        str | None, _publish(metavar="ORG/NAME", help="Publish the output on the Hub.")
    ] = None
    private: Private = False
    license: License = None


@dataclass(frozen=True, kw_only=True)
class ApplyOptions(Options):
    """Options of `apply`."""

    model: Model = None
    allow: Allow = ()
    max_shard_size: ShardSize = None
    overwrite: Overwrite = False


@dataclass(frozen=True, kw_only=True)
class SweepOptions(DecisionOptions):
    """Options of `sweep`."""

    recipes: Annotated[
        Any,
        _decide(
            "--recipe",
            "-r",
            metavar="RECIPE",
            help="Recipe to compare with the alpha curve; may be repeated.",
        ),
    ] = ()
    points: Annotated[
        Any,
        _what(
            "--point",
            metavar="NAME=CHECKPOINT",
            help="Checkpoint to compare with the curve; may be repeated.",
        ),
    ] = ()
    alphas: Annotated[
        Any,
        _decide(metavar="LIST", help="Alphas of the curve: 0 = zero-shot, 1 = fine-tuned."),
    ] = "0,0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9,1"
    overwrite: Overwrite = False


def typer_parameters(options: type[Options]) -> list[Parameter]:
    """Turn the fields of a class of options into parameters of a typer command."""
    parameters = []
    for each in signature(options).parameters.values():
        kind, *about = get_args(each.annotation)
        is_repeatable = each.default == ()
        if kind is Any:
            text = list[str] if is_repeatable else str
            each = each.replace(annotation=Annotated[text, *about])
        parameters.append(each.replace(default=None if is_repeatable else each.default))
    return parameters


def _parse_templates(texts: Any) -> Names:
    templates = tuple(map(str, as_tuple(texts)))
    if not templates:
        return ()
    from clipmerge.images.registry import check_templates

    return check_templates(templates)


def _parse_words(option: str, words: Iterable[str], texts: Any) -> Names:
    """Split texts at commas into words, each of which must be one of ``words``."""
    listed = tuple(word.strip() for text in as_tuple(texts) for word in str(text).split(","))
    for word in listed:
        if word not in words:
            raise UsageError(f"`{option}` {word}: no such word{list_choices('words', word, words)}")
    return listed


def _parse_classes(classes: Any) -> Path | Names | None:
    """Return the class names of a sequence, or of a list that comes with clipmerge. For a file,
    return its path.
    """
    if classes is None:
        return None
    if isinstance(classes, (Mapping, set, frozenset)):
        raise UsageError(
            f"`classes`: a {type(classes).__name__} has no order; give a list in the order of the"
            " classes"
        )
    if not isinstance(classes, (str, os.PathLike)):
        return tuple(map(str, as_tuple(classes)))
    from clipmerge.images.registry import class_list, class_lists

    name = os.fspath(classes)
    path = local_path(name)
    return class_list(name) if not path.exists() and name in class_lists() else path


def named_sources(sources: Any) -> Json:
    """Return sources by name, from a mapping by name, or from paths and texts ``NAME=SOURCE``.

    Example:
        >>> named_sources(["val=data/val", "data/test"])
        {'val': 'data/val', 'test': 'data/test'}
    """
    if isinstance(sources, Mapping):
        return {str(name): source for name, source in sources.items()}
    named: Json = {}
    for source in as_tuple(sources):
        if not isinstance(source, (str, os.PathLike)):
            raise UsageError('sources are named: texts NAME=SOURCE, or a mapping {"val": SOURCE}')
        name, place = _named_source(os.fspath(source))
        if name in named:
            raise UsageError(
                "two sources have the same name; write NAME=SOURCE with different names"
            )
        named[name] = place
    return named


def _named_source(text: str) -> tuple[str, str]:
    """Split ``NAME=SOURCE``. Without a name, use the last part of the source."""
    name, equals, source = text.partition("=")
    is_named = bool(equals and name)
    if not (source if is_named else text).strip():
        raise UsageError(f"'{text}': names no images; write NAME=SOURCE, such as val=data/val")
    path = local_path(text)
    if is_named and not path.exists():
        return name, source
    return path.name or path.resolve().name, text  # "." has no name


def _parse_size(size: str | float | None) -> int | None:
    """Parse a size in bytes: a number, or text such as ``200MB``, ``5GB`` or ``1GiB``."""
    from pydantic import ByteSize, TypeAdapter, ValidationError

    if size is None:
        return None
    # less than a kilobyte means that the unit is missing
    size_type = TypeAdapter(Annotated[ByteSize, Ge(1000)])
    try:
        return size_type.validate_python(size)
    except ValidationError:
        raise UsageError(
            f"`max_shard_size` {size}: expected a size with its unit, such as 200MB or 5GB"
        ) from None


def _parse_alphas(points: Sequence[float] | str) -> tuple[float, ...]:
    """Parse the alphas of a curve: numbers, or text with commas."""
    listed = points.split(",") if isinstance(points, str) else points
    try:
        alphas = tuple(map(float, listed))
    except (TypeError, ValueError):
        alphas = ()
    is_ascending = list(alphas) == sorted(set(alphas))
    if len(alphas) < 2 or not is_ascending or not all(map(math.isfinite, alphas)):
        raise UsageError(
            f"`alphas` {points}: expected two or more finite numbers in ascending order, such as"
            " 0,0.25,0.5"
        )
    return alphas


_READERS: dict[str, Callable[[Any], Any]] = {
    "classes": _parse_classes,
    "template": _parse_templates,
    "allow": partial(_parse_words, "allow", CHECKS),
    "fail_on": partial(_parse_words, "fail_on", RECOMMENDATIONS),
    "ood": named_sources,
    "points": named_sources,
    "alphas": _parse_alphas,
    "max_shard_size": _parse_size,
    "recipes": as_tuple,
}
# Keywords that messages name in backticks.
_KEYWORDS = {"output", "recipe", "id"}
for _field in (*fields(MergeOptions), *fields(SweepOptions)):
    _KEYWORDS.add(_field.name)
# Keywords for several values whose flag, for one value, has another name.
_SINGULAR = {"recipes": "recipe", "points": "point"}
_KEYWORD = re.compile(r"`([a-z_]+)(?:=([^`]*))?`")


def with_flags(message: str) -> str:
    """Replace the option names in backticks in a message by flags of the command line.

    Example:
        >>> with_flags("`images` 0: too few; with `verdict=False` or `device=cpu`, see `me`")
        '--images 0: too few; with --no-verdict or --device cpu, see `me`'
    """

    def flag_of_match(match: re.Match[str]) -> str:
        """Write a matched ``keyword=value`` as a flag, if it is an option."""
        keyword, value = match.groups()
        if keyword not in _KEYWORDS:
            return match[0]
        name = flag_of(keyword, value)
        return name if value in (None, "True", "False") else f"{name} {value}"

    return _KEYWORD.sub(flag_of_match, message)


def flag_of(keyword: str, value: Any = None) -> str:
    """Return the flag of an option. The flag of a switch depends on its value.

    Example:
        >>> flag_of("max_loss"), flag_of("recipes"), flag_of("verdict", False)
        ('--max-loss', '--recipe', '--no-verdict')
    """
    no = "no-" if str(value) == "False" else ""
    return f"--{no}{_SINGULAR.get(keyword, keyword).replace('_', '-')}"
