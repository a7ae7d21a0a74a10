"""The options of every command, once: keyword, type, default, flag and help.

``merge(..., images=64)`` and ``clipmerge merge ... --images 64`` are the same field. A field has
the type that Python takes, its flag, and the flag's own type where that is narrower.
"""

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from decimal import Decimal
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Self,
    get_args,
    get_type_hints,
)

import typer

from clipmerge.config import CHECKS, RECOMMENDATIONS, Device, OutputDtype
from clipmerge.errors import UsageError, did_you_mean
from clipmerge.files.paths import local_path
from clipmerge.types import Json, Names, StrPath

if TYPE_CHECKING:
    from clipmerge.images.source import Columns

_MAX_ALPHAS = 1000


def _flag(*names: str, help: str, **settings: Any) -> Any:
    return typer.Option(*names, help=help, **settings)


Allow = Annotated[
    Any,
    _flag("--allow", metavar="CHECK", help="Go on in spite of a failed check; may be repeated."),
    list[str],
]
Overwrite = Annotated[bool, _flag("--overwrite", help="Replace an earlier output.")]
ShardSize = Annotated[
    int | str | None,
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
    # random generators take 64 bits, of which steps and layers add some
    _flag(metavar="NUMBER", min=0, max=2**32 - 1, help="Seed of samples and random masks."),
]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of a command, checked when they are made."""

    def __post_init__(self) -> None:
        """Refuse values of another type or out of their range."""
        for name, hint in _hints(type(self)).items():
            kind, flag, *_ = get_args(hint)
            self._set(**{name: _checked(name, getattr(self, name), kind, flag)})

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Make options of keywords, of which each must exist."""
        names = [field.name for field in fields(cls)]
        for name in values:
            if name not in names:
                raise TypeError(f"unexpected option '{name}'.{did_you_mean(name, names)}")
        return cls(**values)

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)


@dataclass(frozen=True, kw_only=True)
class ImageOptions(Options):
    """How images are read, and where models look at them."""

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
    device: Annotated[Any, _flag(help="Where models run."), Device] = "auto"
    batch_size: Annotated[
        int | None, _flag(metavar="COUNT", min=1, help="Images per batch; by default at most 128.")
    ] = None

    def __post_init__(self) -> None:
        """Bring classes, templates and device into one form."""
        super().__post_init__()
        # str of a `torch.device`
        self._set(device=_checked("device", str(self.device), Device, None))
        self._set(classes=class_names(self.classes), template=as_texts(self.template))
        if self.template:
            from clipmerge.images.prompts import check_templates

            self._set(template=check_templates(self.template))

    @property
    def templates(self) -> Names:
        """The prompt templates that the user named."""
        templates: Names = self.template
        return templates

    @property
    def columns(self) -> "Columns":
        """The columns that the user named."""
        from clipmerge.images.source import Columns

        return Columns(self.image_column, self.label_column, self.caption_column)


@dataclass(frozen=True, kw_only=True)
class DecisionOptions(ImageOptions):
    """What a merge is decided by."""

    data: Annotated[
        Any,
        _flag("--data", "-d", metavar="SOURCE", help="Labelled or captioned images to decide by."),
        str,
    ] = None
    images: Annotated[
        int, _flag(metavar="COUNT", min=1, help="Images taken from --data, class-balanced.")
    ] = 1024
    set: Annotated[
        Any,
        _flag(metavar="KEY=VALUE", help="Change the recipe, as method.alpha=0.4; may be repeated."),
        list[str],
    ] = ()
    max_loss: Annotated[
        float | None,
        _flag(
            metavar="POINTS",
            min=0,
            max=100,
            help="Points of accuracy that may be lost; by default the recipe's limit, or 3.",
        ),
    ] = None
    allow: Allow = ()
    seed: Seed = 0
    dtype: Annotated[OutputDtype, _flag(help="Dtype of the merged weights.")] = "keep"
    model: Model = None
    state_key: StateKey = None

    def __post_init__(self) -> None:
        """Bring sources and checks into one form."""
        super().__post_init__()
        data = os.fspath(self.data) if isinstance(self.data, os.PathLike) else self.data
        self._set(data=None if isinstance(data, str) and not data else data)
        self._set(allow=allowed_checks(self.allow))


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
            help="Images of a shift or another task, judged beside --data; may be repeated.",
        ),
        list[str],
    ] = ()
    verdict: Annotated[
        bool, _flag(" /--no-verdict", help="Decide by all images, and judge by none.")
    ] = True
    overwrite: Overwrite = False

    def __post_init__(self) -> None:
        """Name the sources."""
        super().__post_init__()
        self._set(ood=named_sources("ood", self.ood))


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

    def __post_init__(self) -> None:
        """Read recommendations and size."""
        super().__post_init__()
        self._set(max_shard_size=parse_size(self.max_shard_size))
        listed = tuple(word for text in as_texts(self.fail_on) for word in text.split(","))
        for word in listed:
            if word not in RECOMMENDATIONS:
                raise UsageError(
                    f"`fail_on` {word}: no verdict recommends it (recommendations:"
                    f" {', '.join(RECOMMENDATIONS)}).{did_you_mean(word, RECOMMENDATIONS)}"
                )
        self._set(fail_on=listed)


@dataclass(frozen=True, kw_only=True)
class ApplyOptions(Options):
    """Options of `apply`."""

    model: Model = None
    allow: Allow = ()
    max_shard_size: ShardSize = None
    overwrite: Overwrite = False

    def __post_init__(self) -> None:
        """Read the size."""
        super().__post_init__()
        self._set(allow=allowed_checks(self.allow), max_shard_size=parse_size(self.max_shard_size))


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(ImageOptions):
    """Options of `evaluate`."""

    allow: Allow = ()
    model: Model = None
    state_key: StateKey = None

    def __post_init__(self) -> None:
        """Check the names."""
        super().__post_init__()
        self._set(allow=allowed_checks(self.allow))


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
        Any,
        _flag(metavar="LIST", help="Points of the curve; 0 = zero-shot, 1 = fine-tuned."),
        str,
    ] = "0,0.1,...,1"
    overwrite: Overwrite = False

    def __post_init__(self) -> None:
        """Read the points."""
        super().__post_init__()
        self._set(alphas=parse_alphas(self.alphas), points=named_sources("points", self.points))


@dataclass(frozen=True, kw_only=True)
class PushOptions(Options):
    """Options of `push`."""

    private: Annotated[bool, _flag("--private", help="Create a private repository.")] = False
    license: Annotated[
        str | None, _flag(metavar="LICENCE", help="Licence to publish under, such as mit.")
    ] = None


def flags_of(options: type[Options]) -> Json:
    """The flag and its type, by field, as typer takes them."""
    flags = {}
    for name, hint in _hints(options).items():
        kind, flag, *narrower = get_args(hint)
        flags[name] = Annotated[(narrower or [kind])[0], flag]
    return flags


def _hints(options: type) -> Json:
    return get_type_hints(options, include_extras=True)


def _checked(name: str, value: Any, kind: Any, flag: Any) -> Any:
    """A value of the declared type and range, if it is one or stands for one."""
    if kind is Any:
        return value
    from pydantic import TypeAdapter, ValidationError  # `--help` needs no pydantic

    try:
        value = TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Input should be ")
        raise UsageError(f"`{name}` {value}: expected {reason}") from None
    low, high = getattr(flag, "min", None), getattr(flag, "max", None)
    if value is None or low is None:
        return value
    if not value >= low:  # true of NaN too
        raise UsageError(f"`{name}` {value}: expected at least {low}")
    if high is not None and value > high:
        raise UsageError(f"`{name}` {value}: expected at most {high}")
    return value


def as_texts(texts: Any) -> Names:
    """One text or several.

    Example:
        >>> as_texts("a photo of a {}."), as_texts(None)
        (('a photo of a {}.',), ())
    """
    return (texts,) if isinstance(texts, str) else tuple(texts or ())


def allowed_checks(names: Any) -> Names:
    """The checks to go on in spite of, each of which must exist."""
    texts = as_texts(names)
    if texts:
        for name in texts:
            if name not in CHECKS:
                raise UsageError(
                    f"`allow` {name}: no check has this name (checks: {', '.join(CHECKS)})."
                    f"{did_you_mean(name, CHECKS)}"
                )
    return texts


def class_names(classes: Any) -> Path | Names | None:
    """A file of class names, or the names themselves; a file wins over a shipped list."""
    if classes is None or classes == "":
        return None
    if isinstance(classes, Mapping):  # such as `id2label` of a configuration of transformers
        by_number = {str(number): name for number, name in classes.items()}
        numbers = [str(number) for number in range(len(by_number))]
        if set(by_number) != set(numbers):
            raise UsageError(
                f"`classes`: its keys are not the numbers 0 to {len(numbers) - 1}; give the names"
                " in the order of the classes"
            )
        return tuple(by_number[number] for number in numbers)
    if not isinstance(classes, (str, os.PathLike)):
        return tuple(classes)
    from clipmerge.images.registry import class_list, class_lists

    name = os.fspath(classes)
    path = local_path(name)
    return class_list(name) if not path.exists() and name in class_lists() else path


def named_sources(
    option: str, sources: Mapping[str, Any] | Sequence[StrPath] | StrPath | None
) -> Json:
    """Sources by name, from a mapping, or from texts ``NAME=SOURCE`` or paths.

    Example:
        >>> named_sources("ood", ["val=data/val", "data/test"])
        {'val': 'data/val', 'test': 'data/test'}
    """
    if not isinstance(sources, Mapping):
        listed = [sources] if isinstance(sources, (str, os.PathLike)) else list(sources or ())
        if not all(isinstance(source, (str, os.PathLike)) for source in listed):
            raise UsageError(f'`{option}` takes sources by name: {option}={{"val": SOURCE}}')
        pairs = [_named_source(os.fspath(source)) for source in listed]
        sources = dict(pairs)
        if len(sources) != len(pairs):
            raise UsageError(
                f"two `{option}` have the same name; write NAME=SOURCE with different names"
            )
    return {
        str(name): os.fspath(source) if isinstance(source, os.PathLike) else source
        for name, source in sources.items()
    }


def _named_source(text: str) -> tuple[str, str]:
    """Split ``NAME=SOURCE``; the default name is the last part of the source."""
    name, equals, source = text.partition("=")
    if not (source if equals and name else text).strip():
        raise UsageError(f"'{text}': names no images; write NAME=SOURCE, such as val=data/val")
    if equals and name and not local_path(text).exists():
        return name, source
    path = Path(text)
    # "." and ".." are not names; use the folder's own
    return (local_path(text).resolve().name if path.name in ("", "..") else path.name) or text, text


def parse_size(size: str | int | None) -> int | None:
    """Bytes of a shard's size: a number of bytes, or text such as ``200MB``, ``5GB`` or ``1GiB``.

    Example:
        >>> parse_size("1.5GB"), parse_size("2KiB"), parse_size(200_000_000)
        (1500000000, 2048, 200000000)
    """
    if size is None:
        return None
    # text without a unit would be bytes, where gigabytes are meant
    text = f"{size}B" if isinstance(size, int) else size.upper()
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
    if len(alphas) < 2 or not all(map(math.isfinite, alphas)) or alphas != sorted(set(alphas)):
        raise UsageError(
            f"`alphas` {points}: expected two or more finite numbers in ascending order, such as"
            f" 0,0.25,0.5 or 0,0.1,...,1 (where '...' stands for at most {_MAX_ALPHAS} numbers)"
        )
    return tuple(alphas)


def _alphas_of(text: str) -> list[float]:
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


#: The flags of all keywords, which messages name in backticks.
KEYWORDS: dict[str, Names] = {
    name: tuple(each for each in (flag.default, *(flag.param_decls or ())) if isinstance(each, str))
    for options in (MergeOptions, SweepOptions, PushOptions)
    for name, (_, flag, *_) in ((name, get_args(hint)) for name, hint in _hints(options).items())
} | dict.fromkeys(("output", "recipe", "id"), ())
_PARAMETER = re.compile(r"`([a-z_]+)(?:=([^`]*))?`")


def with_flags(message: str) -> str:
    """Write the keywords that a message names in backticks as flags of the command line.

    Example:
        >>> with_flags("`images` 0: too few; with `verdict=False` or `device=cpu`, see `me`")
        '--images 0: too few; with --no-verdict or --device cpu, see `me`'
    """

    def flag(match: re.Match[str]) -> str:
        name, value = match.groups()
        if name not in KEYWORDS:
            return match[0]
        names = [name for name in KEYWORDS[name] if name.startswith("--")]
        word = names[0] if names else f"--{name.replace('_', '-')}"
        if value == "False":
            return f"--no-{name.replace('_', '-')}"
        return word if value in (None, "True") else f"{word} {value}"

    return _PARAMETER.sub(flag, message)
