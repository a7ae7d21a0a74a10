"""The options of all commands, each declared once: keyword, type, default, flag and help.

``merge(..., images=64)`` and ``clipmerge merge ... --images 64`` are the same field. A field has
the type that Python takes, its bounds, its flag, and the flag's own type where that is narrower.
"""

import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from decimal import Decimal
from functools import partial
from inspect import Parameter
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self, get_args, get_type_hints

from annotated_types import Ge, Le
from typer import Option as _flag

from clipmerge.errors import UsageError, did_you_mean, list_choices
from clipmerge.files import local_path
from clipmerge.files.side_files import names_by_number
from clipmerge.types import CHECKS, RECOMMENDATIONS, Device, Json, Names, OutputDtype, as_tuple

if TYPE_CHECKING:
    from clipmerge.images.image_set import Columns

_MAX_ALPHAS = 1000
# Decimals of the alphas that "..." stands for, and a share of a step that is lost in rounding.
_DIGITS, _ROUNDING = 9, 1e-6


Allow = Annotated[
    Any,
    _flag("--allow", metavar="CHECK", help="Go on in spite of a failed check; may be repeated."),
    list[str],
]
Overwrite = Annotated[bool, _flag("--overwrite", help="Replace an earlier output.")]
ShardSize = Annotated[
    Any,
    _flag(
        metavar="SIZE",
        hidden=True,
        help="Largest shard, such as 5GB; by default sharded like the fine-tuned checkpoint.",
    ),
    str,
]
Model = Annotated[
    str | None,
    _flag(metavar="NAME", help="Architecture in OpenCLIP of weights without a configuration."),
]
StateKey = Annotated[
    str | None,
    _flag(metavar="KEY", hidden=True, help="Where in a file of training the weights are."),
]
Seed = Annotated[
    int,
    Ge(0),
    Le(2**32 - 1),  # random generators take 64 bits, of which steps and layers add some
    _flag(metavar="NUMBER", help="Seed of samples and random masks."),
]
Private = Annotated[bool, _flag("--private", help="Create a private repository.")]
License = Annotated[
    str | None, _flag(metavar="LICENCE", help="Licence to publish under, such as mit.")
]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of a command."""

    __pydantic_config__ = {"allow_inf_nan": False}  # noqa: RUF012 - pydantic's own name

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Make options from keywords; refuse unknown keywords and values of the wrong type."""
        from pydantic import TypeAdapter, ValidationError  # `--help` needs no pydantic

        defaults = {field.name: field.default for field in fields(cls)}
        for name in values:
            if name not in defaults:
                raise TypeError(f"unexpected option '{name}'.{did_you_mean(name, defaults)}")
        given = dict(values)
        for name in _READERS.keys() & defaults.keys():
            value = given.get(name)
            if value is None:
                value = defaults[name] or None
            given[name] = defaults[name] if value is None else _READERS[name](value)
        try:
            return TypeAdapter(cls).validate_python(given)
        except ValidationError as error:
            first = error.errors()[0]
            reason = first["msg"].removeprefix("Input ")
            raise UsageError(f"`{first['loc'][0]}` {first['input']}: {reason}") from None


@dataclass(frozen=True, kw_only=True)
class ImageOptions(Options):
    """Options of reading images and of running models on them."""

    classes: Annotated[
        Any,
        _flag(metavar="FILE", help="Class names: a file, one per line or JSON, or a list's name."),
        str,
    ] = None
    template: Annotated[
        Any,
        _flag(metavar="TEXT", help="Prompt with {} for the class, or a set; may be repeated."),
        list[str],
    ] = ()
    image_column: Annotated[
        str | None, _flag(metavar="NAME", help="Column of the images, if it is not found.")
    ] = None
    label_column: Annotated[
        str | None, _flag(metavar="NAME", help="Column of the labels, if it is not found.")
    ] = None
    caption_column: Annotated[
        str | None, _flag(metavar="NAME", help="Column of captions, taken in place of classes.")
    ] = None
    device: Annotated[Device, _flag(help="Where models run.")] = "auto"
    batch_size: Annotated[
        int | None, Ge(1), _flag(metavar="COUNT", help="Images per batch; by default at most 128.")
    ] = None

    @property
    def columns(self) -> "Columns":
        """The columns that the user named."""
        from clipmerge.images.image_set import Columns

        return Columns(self.image_column, self.label_column, self.caption_column)


@dataclass(frozen=True, kw_only=True)
class InspectOptions(ImageOptions):
    """Options of `inspect`: what is measured, and on which images."""

    data: Annotated[
        Any,
        _flag("--data", "-d", metavar="SOURCE", help="Labelled or captioned images to measure on."),
        str,
    ] = None
    images: Annotated[
        int, Ge(1), _flag(metavar="COUNT", help="Images taken from --data, class-balanced.")
    ] = 1024
    allow: Allow = ()
    seed: Seed = 0
    model: Model = None
    state_key: StateKey = None


@dataclass(frozen=True, kw_only=True)
class DecisionOptions(InspectOptions):
    """Options of deciding a merge."""

    set: Annotated[
        Any,
        _flag(metavar="KEY=VALUE", help="Change the recipe, as method.alpha=0.4; may be repeated."),
        list[str],
    ] = ()
    max_loss: Annotated[
        float | None,
        Ge(0),
        Le(100),
        _flag(
            metavar="POINTS",
            help="Points of accuracy that may be lost; by default the recipe's limit, or 3.",
        ),
    ] = None
    dtype: Annotated[OutputDtype, _flag(help="Dtype of the merged weights.")] = "keep"


@dataclass(frozen=True, kw_only=True)
class PlanOptions(DecisionOptions):
    """Options of `plan`."""

    alpha: Annotated[
        float | None,
        _flag(
            metavar="NUMBER",
            help="Short for --set method.alpha=NUMBER: 0 = zero-shot, 1 = fine-tuned.",
        ),
    ] = None
    ood: Annotated[
        Any,
        _flag(
            metavar="NAME=SOURCE",
            help="Images of a shift or another task: half choose, half judge; may be repeated.",
        ),
        list[str],
    ] = ()
    verdict: Annotated[
        bool, _flag(" /--no-verdict", help="Decide by all images, and judge by none.")
    ] = True
    overwrite: Overwrite = False


@dataclass(frozen=True, kw_only=True)
class MergeOptions(PlanOptions):
    """Options of `merge`."""

    fail_on: Annotated[
        Any,
        _flag(
            metavar="RECOMMENDATION",
            help="Write nothing, and exit with 1, on a verdict such as keep-finetuned; may be"
            " repeated, or a list with commas.",
        ),
        list[str],
    ] = ()
    max_shard_size: ShardSize = None
    push: Annotated[
        str | None, _flag(metavar="ORG/NAME", help="Publish the output on the Hub.")
    ] = None
    private: Annotated[bool, _flag("--private", hidden=True, help="With --push: privately.")] = (
        False
    )
    license: Annotated[
        str | None, _flag(metavar="LICENCE", hidden=True, help="With --push: under this licence.")
    ] = None


@dataclass(frozen=True, kw_only=True)
class ApplyOptions(Options):
    """Options of `apply`."""

    model: Model = None
    allow: Allow = ()
    max_shard_size: ShardSize = None
    overwrite: Overwrite = False


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(ImageOptions):
    """Options of `evaluate`."""

    allow: Allow = ()
    model: Model = None
    state_key: StateKey = None


@dataclass(frozen=True, kw_only=True)
class SweepOptions(DecisionOptions):
    """Options of `sweep`."""

    recipes: Annotated[
        Any,
        _flag(
            "--recipe",
            "-r",
            metavar="RECIPE",
            help="Recipe to compare with the curve; may be repeated.",
        ),
        list[str],
    ] = ()
    points: Annotated[
        Any,
        _flag(
            "--point",
            metavar="NAME=CHECKPOINT",
            help="Checkpoint to show beside the curve; may be repeated.",
        ),
        list[str],
    ] = ()
    alphas: Annotated[
        Any, _flag(metavar="LIST", help="Points of the curve; 0 = zero-shot, 1 = fine-tuned."), str
    ] = "0,0.1,...,1"
    overwrite: Overwrite = False


def flags_of(options: type[Options]) -> list[Parameter]:
    """Make a parameter of each field, from which typer makes a flag."""
    parameters = []
    for name, hint in get_type_hints(options, include_extras=True).items():
        kind, *about = get_args(hint)
        if kind is Any:
            flag, narrower = about
            hint = Annotated[narrower, flag]
        default = getattr(options, name)
        default = None if default == () else default
        parameters.append(Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=hint))
    return parameters


def _check_prompts(texts: Any) -> Names:
    from clipmerge.images.registry import check_templates

    return check_templates(tuple(map(str, as_tuple(texts))))


def _check_words(option: str, words: Iterable[str], texts: Any) -> Names:
    """Read one or several words, also separated by commas, and refuse unknown ones."""
    listed = tuple(word.strip() for text in as_tuple(texts) for word in str(text).split(","))
    for word in listed:
        if word not in words:
            raise UsageError(
                f"`{option}` {word}: there is no such word{list_choices('words', word, words)}"
            )
    return listed


def class_names(classes: Any) -> Path | Names:
    """Return a file of class names, or the names themselves; a file wins over a shipped list."""
    if isinstance(classes, Mapping):  # such as `id2label` of a configuration of transformers
        names = names_by_number(classes)
        if names is None:
            raise UsageError(
                f"`classes`: its keys are not the numbers 0 to {len(classes) - 1}; give the names"
                " in the order of the classes"
            )
        return names
    if isinstance(classes, (set, frozenset)):
        raise UsageError("`classes`: a set has no order; give a list in the order of the classes")
    if not isinstance(classes, (str, os.PathLike)):
        return tuple(map(str, as_tuple(classes)))
    from clipmerge.images.registry import class_list, class_lists

    name = os.fspath(classes)
    path = local_path(name)
    return class_list(name) if not path.exists() and name in class_lists() else path


def named_sources(sources: Any) -> Json:
    """Read sources by name from a mapping, or from texts ``NAME=SOURCE`` or paths.

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
    """Split ``NAME=SOURCE``; the default name is the last part of the source."""
    name, equals, source = text.partition("=")
    is_named = bool(equals and name)
    if not (source if is_named else text).strip():
        raise UsageError(f"'{text}': names no images; write NAME=SOURCE, such as val=data/val")
    path = local_path(text)
    if is_named and not path.exists():
        return name, source
    own_name = path.name
    if own_name in ("", ".."):  # these and "." are not names
        own_name = path.resolve().name
    return own_name or text, text


def parse_size(size: str | float) -> int:
    """Read the size of a shard: a number of bytes, or text such as ``200MB``, ``5GB`` or ``1GiB``.

    Example:
        >>> parse_size("1.5GB"), parse_size("2KiB"), parse_size(5e9)
        (1500000000, 2048, 5000000000)
    """
    # text without a unit would be bytes, where gigabytes are meant
    text = f"{size:.0f}B" if isinstance(size, Real) else str(size).upper()
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


def parse_alphas(points: Sequence[float] | str) -> tuple[float, ...]:
    """Read the points of a curve from numbers or from text, where ``...`` continues the steps
    before it.

    Example:
        >>> parse_alphas("0,0.25,...,1")
        (0.0, 0.25, 0.5, 0.75, 1.0)
    """
    try:
        alphas = _read_alphas(points)
    except (ArithmeticError, IndexError, TypeError, ValueError):
        alphas = []
    is_finite = all(map(math.isfinite, alphas))  # 1e400 is valid as text but overflows a float
    if len(alphas) < 2 or not is_finite or alphas != sorted(set(alphas)):
        raise UsageError(
            f"`alphas` {points}: expected two or more finite numbers in ascending order, such as"
            f" 0,0.25,0.5 or 0,0.1,...,1 (where '...' stands for at most {_MAX_ALPHAS} numbers)"
        )
    return tuple(alphas)


def _read_alphas(points: Sequence[float] | str) -> list[float]:
    if not isinstance(points, str):
        return list(map(float, points))
    alphas: list[float] = []
    words = points.split(",")
    for position, word in enumerate(words):
        if word.strip() != "...":
            alphas.append(float(word))
            continue
        last = alphas[-1]
        step = last - alphas[-2]
        count = math.floor((float(words[position + 1]) - last) / step + _ROUNDING)
        if not 0 < count <= _MAX_ALPHAS:
            raise ValueError("the steps do not reach the number after '...', or are too many")
        alphas += [round(last + step * number, _DIGITS) for number in range(1, count + 1)]
    return sorted(set(alphas))


_READERS: dict[str, Callable[[Any], Any]] = {
    "classes": class_names,
    "template": _check_prompts,
    "allow": partial(_check_words, "allow", CHECKS),
    "fail_on": partial(_check_words, "fail_on", RECOMMENDATIONS),
    "ood": named_sources,
    "points": named_sources,
    "alphas": parse_alphas,
    "max_shard_size": parse_size,
    "recipes": as_tuple,
}
#: The keywords that messages name in backticks.
_KEYWORDS = {"output", "recipe", "id"}
for _field in (*fields(MergeOptions), *fields(SweepOptions)):
    _KEYWORDS.add(_field.name)
#: Flags that may be repeated, where the keyword takes all of them.
_SINGULAR = {"recipes": "recipe", "points": "point"}
_KEYWORD = re.compile(r"`([a-z_]+)(?:=([^`]*))?`")


def with_flags(message: str) -> str:
    """Replace keywords in backticks by the flags of the command line.

    Example:
        >>> with_flags("`images` 0: too few; with `verdict=False` or `device=cpu`, see `me`")
        '--images 0: too few; with --no-verdict or --device cpu, see `me`'
    """

    def flag(match: re.Match[str]) -> str:
        keyword, value = match.groups()
        if keyword not in _KEYWORDS:
            return match[0]
        name = flag_of(keyword, value)
        return name if value in (None, "True", "False") else f"{name} {value}"

    return _KEYWORD.sub(flag, message)


def flag_of(keyword: str, value: Any = None) -> str:
    """Return the flag of a keyword; that of a switch depends on its value.

    Example:
        >>> flag_of("max_loss"), flag_of("recipes"), flag_of("verdict", False)
        ('--max-loss', '--recipe', '--no-verdict')
    """
    no = "no-" if str(value) == "False" else ""
    return f"--{no}{_SINGULAR.get(keyword, keyword).replace('_', '-')}"
