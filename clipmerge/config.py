"""Every option, once: its type and default, its flag and help.

The flags of the commands and the keyword arguments of the functions derive from the classes below.
Imports nothing that takes time, because ``--help`` needs it.
"""

import inspect
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypedDict, TypeVar, cast, get_args

from clipmerge.errors import UsageError, did_you_mean
from clipmerge.progress import Logged, Progress
from clipmerge.types import Names, StrPath

#: Device to measure on.
Device = Literal["auto", "cpu", "cuda", "mps", "xpu"]
#: Dtype of the merged weights; ``keep`` uses that of the checkpoints.
OutputDtype = Literal["keep", "float32", "bfloat16", "float16"]
#: Treatment of keys that only one checkpoint has: an error, or one of the two key sets.
Missing = Literal["error", "keep-zeroshot", "keep-finetuned"]
#: Headings of the flags in ``--help``, in order.
Panel = Literal["Inputs", "Images", "Decision", "Output", "Publishing", "Machine"]
PANELS = get_args(Panel)
_REPEATED = list[str] | None
_REPEATED_FILES = list[Path] | None


class Option(NamedTuple):
    """One option."""

    default: Any  # its value if it is not given
    # a sentence for ``--help`` and for the docstrings; empty if only the function takes it
    help: str
    panel: Panel  # its heading in ``--help``
    # the name of the value in ``--help``; not for a switch, or a choice of words
    metavar: str | None = None
    python: str = ""  # a sentence about what only the Python function takes
    cli: Any = None  # type of the flag, if it is not the type of the argument
    # names of the flag, the long one first, if they are not the option's with dashes
    flags: Names = ()
    minimum: int | None = None
    maximum: int | None = None

    @property
    def is_repeated(self) -> bool:
        """Whether the flag may be given several times."""
        return self.cli in (_REPEATED, _REPEATED_FILES)

    def names(self, name: str) -> Names:
        """The names of the flag of the option called ``name``; a switch that is on has one to turn
        it off.
        """
        long = f"--{name.replace('_', '-')}"
        return self.flags or ((f"{long}/--no-{long[2:]}",) if self.default is True else (long,))

    def flag(self, name: str) -> str:
        """The flag that gives the option called ``name`` a value, or that turns it on, or off if it
        is on.
        """
        return self.names(name)[0].rpartition("/")[2]


RECIPE = Option(
    None,
    "Name of a recipe (all are listed below), or a YAML file; by default auto with --data and"
    " without --alpha, else wise-ft.",
    "Inputs",
    "RECIPE",
    flags=("--recipe", "-r"),
)
VERBOSE = Option(
    False,
    "Print each stage, the whole summary, and warnings of libraries.",
    "Output",
    flags=("--verbose", "-v"),
)

_NamedSources = Mapping[str, Any] | Sequence[str] | None


def _image_count(default: int | None, help: str, panel: Panel) -> Option:
    """A number of images, of which there is at least one."""
    return Option(default, help, panel, "COUNT", minimum=1)


Ood = Annotated[
    _NamedSources,
    Option(
        None,
        "Images of a shift or of another task, judged beside the target; may be repeated.",
        "Images",
        "NAME=SOURCE",
        python="A mapping of names to sources, or texts NAME=SOURCE.",
        cli=_REPEATED,
    ),
]
StateKey = Annotated[
    str | None,
    Option(None, "Where in the checkpoint's file the weights are, such as 'ema'.", "Inputs", "KEY"),
]
Model = Annotated[
    str | None,
    Option(
        None,
        "Architecture in OpenCLIP, such as ViT-B-32, of weights without open_clip_config.json.",
        "Inputs",
        "NAME",
    ),
]
Images = Annotated[int, _image_count(1024, "Images to measure on, class-balanced.", "Images")]
Seed = Annotated[
    int,
    Option(
        0,
        "Seed of the sample, the bootstrap and random masks.",
        "Decision",
        "NUMBER",
        minimum=0,
        maximum=2**32 - 1,  # random generators take 64 bits, of which steps and layers add some
    ),
]
MaxShardSize = Annotated[
    int | str | None,
    Option(
        None,
        "Largest shard, such as 200MB or 5GB; by default sharded like the fine-tuned checkpoint.",
        "Output",
        "SIZE",
        cli=str | None,
    ),
]
Overwrite = Annotated[
    bool, Option(False, "Replace an earlier output of the same command.", "Output")
]
Allow = Annotated[
    str | Sequence[str] | None,
    Option(
        None,
        "Go on in spite of a failed check of the inputs, such as swapped; may be repeated.",
        "Decision",
        "CHECK",
        cli=_REPEATED,
    ),
]
License = Annotated[
    str | None,
    Option(None, "The licence to publish under, if the sources' differ.", "Publishing", "LICENCE"),
]
Private = Annotated[bool, Option(False, "Publish in a repository that is private.", "Publishing")]


Receiver = Annotated[
    Progress,
    Option(
        None,
        "",
        "Output",
        python="Receiver of progress reports; by default Python's logger ``clipmerge``.",
    ),
]
Processor = Annotated[
    Any,
    Option(
        None,
        "",
        "Inputs",
        python=(
            "For models in memory: their processor, needed for measuring unless it lies in the"
            " folder that the model was loaded from; for open_clip models their name, such as"
            " ``ViT-B-32``, or their configuration."
        ),
    ),
]


class MachineOptions(TypedDict, total=False):
    """Options of everything that computes on images."""

    batch_size: Annotated[
        int | None, _image_count(None, "Images per batch; by default at most 128.", "Machine")
    ]
    device: Annotated[Device, Option("auto", "Where to measure.", "Machine")]


class DataOptions(TypedDict, total=False):
    """The images of functions that decide on a merge."""

    data: Annotated[
        Any,
        Option(
            None,
            "Labelled images: a folder, .parquet, .tar,"
            " hf://datasets/ORG/NAME:SPLIT, or the name of a public set.",
            "Images",
            "SOURCE",
            python=(
                "Or a datasets.Dataset; a list, torch Dataset or DataLoader of (image, label)"
                " pairs; or a Calibration, which replaces all options about images and the machine."
            ),
            cli=str | None,
            flags=("--data", "-d"),
        ),
    ]


class PromptOptions(TypedDict, total=False):
    """The labels of images, and the prompts made of them."""

    classes: Annotated[
        StrPath | Sequence[str] | Mapping[Any, str] | None,
        Option(
            None,
            "Class names: one per line in their order, JSON, or a list's name.",
            "Images",
            "FILE",
            python="Or the names themselves, in order or by number.",
            cli=Path | None,
        ),
    ]
    template: Annotated[
        str | Sequence[str] | None,
        Option(
            None,
            "Prompt with {} for the class, or a set's name; may be repeated.",
            "Images",
            "PROMPT",
            cli=_REPEATED,
        ),
    ]
    image_column: Annotated[
        str | None,
        Option(None, "Column (or tar ending) of the images, if not found.", "Images", "NAME"),
    ]
    label_column: Annotated[
        str | None,
        Option(None, "Column (or tar ending) of the labels, if not found.", "Images", "NAME"),
    ]
    caption_column: Annotated[
        str | None,
        Option(None, "Column (or tar ending) of captions, in place of classes.", "Images", "NAME"),
    ]


class SampleOptions(TypedDict, total=False):
    """The sample that a recipe measures on."""

    images: Images


class DecisionOptions(DataOptions, PromptOptions, SampleOptions, MachineOptions, total=False):
    """Options of all functions that decide on a merge."""

    set: Annotated[
        _NamedSources,
        Option(
            None,
            "Change the recipe, such as method.alpha=0.4; may be repeated.",
            "Decision",
            "KEY=VALUE",
            python='A mapping {"method.alpha": 0.4}, or texts KEY=VALUE.',
            cli=_REPEATED,
        ),
    ]
    verdict: Annotated[
        bool,
        Option(
            True,
            "Hold out a fifth of the images, and judge the merge on them.",
            "Decision",
        ),
    ]
    max_loss: Annotated[
        float | None,
        Option(
            None,
            "Points of accuracy that the merge may lose against the fine-tuned model; a larger loss"
            " is a warning. By default the recipe's limit, or 3.",
            "Decision",
            "NUMBER",
            minimum=0,
            maximum=100,
        ),
    ]
    allow: Allow
    seed: Seed
    dtype: Annotated[OutputDtype, Option("keep", "Dtype of the merged weights.", "Output")]


class RecipeOptions(DecisionOptions, total=False):
    """Options of all functions that decide by one recipe."""

    ood: Ood
    processor: Processor
    progress: Receiver
    alpha: Annotated[
        float | None,
        Option(
            None,
            "Short for --set method.alpha=ALPHA: 0 = zero-shot, 1 = fine-tuned.",
            "Decision",
            "NUMBER",
        ),
    ]


class PlanOptions(RecipeOptions, total=False):
    """Options of `plan`."""

    state_key: StateKey
    model: Model
    overwrite: Overwrite


class CallbackOptions(RecipeOptions, total=False):
    """Options of `RobustMergeCallback`."""

    overwrite: Overwrite
    private: Private
    license: License


class MergeOptions(PlanOptions, total=False):
    """Options of `merge`."""

    max_shard_size: MaxShardSize
    push: Annotated[
        str | None, Option(None, "Publish the output on the Hub.", "Publishing", "ORG/NAME")
    ]
    private: Private
    license: License


class ApplyOptions(TypedDict, total=False):
    """Options of `apply`."""

    processor: Processor
    progress: Receiver
    model: Model
    max_shard_size: MaxShardSize
    overwrite: Overwrite


class EvaluateOptions(PromptOptions, MachineOptions, total=False):
    """Options of `evaluate`."""

    processor: Processor
    progress: Receiver
    allow: Allow
    state_key: StateKey
    model: Model


class SweepOptions(DecisionOptions, total=False):
    """Options of `sweep`."""

    processor: Processor
    progress: Receiver
    recipes: Annotated[
        Sequence[Any],
        Option(
            (),
            "Recipe to compare with the curve; may be repeated.",
            "Inputs",
            "RECIPE",
            python="Each as in merge.",
            cli=_REPEATED,
            flags=RECIPE.flags,
        ),
    ]
    points: Annotated[
        _NamedSources,
        Option(
            None,
            "A checkpoint to show beside the curve; may be repeated.",
            "Inputs",
            "NAME=CHECKPOINT",
            python="A mapping of names to checkpoints, or texts NAME=CHECKPOINT.",
            cli=_REPEATED,
            flags=("--point",),
        ),
    ]
    alphas: Annotated[
        Sequence[float] | str,
        Option(
            "0,0.1,...,1",
            "Points of the curve; 0 = zero-shot, 1 = fine-tuned.",
            "Inputs",
            "LIST",
            cli=str,
        ),
    ]
    state_key: StateKey
    model: Model
    overwrite: Overwrite


class PushOptions(TypedDict, total=False):
    """Options of `push`."""

    progress: Receiver
    private: Private
    license: License


Options = TypeVar("Options")
Function = TypeVar("Function", bound=Callable[..., Any])


def declarations(options: type) -> dict[str, tuple[Any, Option]]:
    """The type and the declaration of each option of a class above, in order."""
    return {
        name: (annotation.__origin__, annotation.__metadata__[0])
        for name, annotation in options.__annotations__.items()
    }


#: Declarations of all options, by name.
OPTIONS = {
    name: option
    for options in (
        MergeOptions,
        ApplyOptions,
        EvaluateOptions,
        SweepOptions,
        PushOptions,
    )
    for name, (_, option) in declarations(options).items()
    if option.help
} | {"recipe": RECIPE, "verbose": VERBOSE}
# Parameters that are flags and no options: each command declares its own.
_OTHER_FLAGS = {"output", "id", "ood", "to"}
_PARAMETER = re.compile(r"`([a-z_]+)(?:=([^`]*))?`")


def with_flags(message: str) -> str:
    """Write the parameters that a message names in backticks as flags of the command line.

    Example:
        >>> with_flags("`images` 0: too few; with `verdict=False` or `device=cpu`")
        '--images 0: too few; with --no-verdict or --device cpu'
    """

    def flag(match: re.Match[str]) -> str:
        name, value = match.groups()
        if name not in OPTIONS and name not in _OTHER_FLAGS:
            return match[0]
        names = OPTIONS[name].names(name)[0] if name in OPTIONS else f"--{name.replace('_', '-')}"
        on, _, off = names.partition("/")
        return {None: on, "True": on, "False": off or on}.get(value, f"{on} {value}")

    return _PARAMETER.sub(flag, message)


def complete_options(options: type[Options], keywords: Mapping[str, Any]) -> Options:
    """Check the options that are given, and add the defaults of the others.

    Those that a flag takes in another form, such as sources of images, are checked where they are
    read.
    """
    known = declarations(options)
    values = {name: option.default for name, (_, option) in known.items()}
    for name, value in keywords.items():
        if name not in known:  # as Python itself says
            raise TypeError(
                f"got an unexpected keyword argument '{name}'.{did_you_mean(name, known)}"
            )
        kind, option = known[name]
        if option.is_repeated and isinstance(value, (str, os.PathLike)):
            value = [value]
        elif name == "device":
            value = str(value)  # of a `torch.device` too
        is_free = option.cli or not option.help
        values[name] = value if is_free else _checked(name, value, kind, option)
    values["progress"] = Logged() if values["progress"] is None else values["progress"]
    return cast(Options, values)


def _checked(name: str, value: Any, kind: Any, option: Option) -> Any:
    """A value of the declared type, if it is one or stands for one."""
    # imported only where a function runs: `--help` needs no pydantic
    from pydantic import TypeAdapter, ValidationError

    try:
        checked = TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Input should be ")
        raise UsageError(f"`{name}` {value}: expected {reason}") from None
    if checked is None:
        return None
    # `not >=` is true for NaN too
    if option.minimum is not None and not checked >= option.minimum:
        raise UsageError(f"`{name}` {value}: expected at least {option.minimum}")
    if option.maximum is not None and checked > option.maximum:
        raise UsageError(f"`{name}` {value}: expected at most {option.maximum}")
    return checked


def with_options(options: type) -> Callable[[Function], Function]:
    """Show the options behind ``**options`` in a function's signature and docstring."""

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function)
        known = declarations(options)
        own_parameters = [
            parameter
            for parameter in signature.parameters.values()
            if parameter.kind is not parameter.VAR_KEYWORD
        ]
        shown = [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=option.default, annotation=kind
            )
            for name, (kind, option) in known.items()
        ]
        function.__signature__ = signature.replace(parameters=[*own_parameters, *shown])  # type: ignore[attr-defined]
        lines = [
            f"    {name}: {' '.join(filter(None, (option.help, option.python)))}"
            for name, (_, option) in known.items()
        ]
        text = inspect.cleandoc(function.__doc__ or "")
        listed = "\n".join(lines).replace("; may be repeated", "")
        function.__doc__ = text.replace(f"    **options: See `{options.__name__}`.", listed)
        return function

    return decorate
