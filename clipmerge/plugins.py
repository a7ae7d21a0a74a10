"""Find measures, methods and masks by their files, and check their options.

The name of a file is the name in recipes (``path_barrier.py`` is ``path-barrier``). The function of
that name is the plugin, and its keyword-only parameters are its options. There is no registry.
"""

from __future__ import annotations

import inspect
import pkgutil
import sys
from collections.abc import Callable, MutableSequence
from importlib import import_module
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError

from clipmerge.errors import UsageError, list_choices
from clipmerge.files import plugin_folders
from clipmerge.types import Json, Names

# a larger factor can overflow float32, and the user would suspect the weights
_LARGEST = 1e9

#: Mixing coefficient: 0 = zero-shot, 1 = fine-tuned; outside [0, 1] it extrapolates.
Alpha = Annotated[float, Field(allow_inf_nan=False)]
#: Share of the task vector kept.
Density = Annotated[float, Field(gt=0, le=1)]
#: A share or a probability.
Share = Annotated[float, Field(ge=0, le=1)]
#: A share below 1.
PartialShare = Annotated[float, Field(ge=0, lt=1)]
#: Points of accuracy, in percent.
Points = Annotated[float, Field(ge=0, le=100)]
#: A radius, a threshold or another number that must be positive.
Positive = Annotated[float, Field(gt=0, le=_LARGEST)]
#: A factor that may be zero.
NonNegative = Annotated[float, Field(ge=0, le=_LARGEST)]
#: A count of at least one.
Count = Annotated[int, Field(ge=1, le=1_000_000)]

#: A kind of generic change of images.
Augmentation = Literal["geometry", "colour", "grey", "blur", "noise"]
#: Properties that the file of a measure sets to ``True``. ``SEVERAL``: it uses all fine-tuned
#: checkpoints. ``LEARNS``: it learns. ``HOLDS_BACK``: held-out images choose how far the merge goes
#: back, so it has the options ``held_back`` and ``max_loss``.
MeasureKind = Literal["SEVERAL", "LEARNS", "HOLDS_BACK"]


def plugin_names(package: str) -> Names:
    """List the plugins of a package, sorted."""
    names = set()
    for module in pkgutil.iter_modules(_search_path(package)):
        if not module.name.startswith("_"):
            names.add(module.name.replace("_", "-"))
    return tuple(sorted(names))


def _search_path(package: str) -> MutableSequence[str]:
    """Add the user's folders to those from which Python imports a package's plugins, and return all
    of them, clipmerge's own folder first.
    """
    path = import_module(f"clipmerge.{package}").__path__
    path[1:] = [str(folder / package) for folder in plugin_folders()]
    return path


def load_plugin(package: str, name: str) -> Callable[..., Any]:
    """Load the measure, method or mask that has this name in recipes."""
    file = name.replace("-", "_")
    _search_path(package)
    try:
        module = import_module(f"clipmerge.{package}.{file}")
        function: Callable[..., Any] = getattr(module, file)
    except (ImportError, AttributeError):
        known = plugin_names(package)
        if name in known:  # the fault is in the file
            raise
        raise UsageError(
            f"no {package.removesuffix('s')} '{name}'{list_choices(package, name, known)}"
        ) from None
    return function


def plugin_options(package: str, name: str) -> Json:
    """List a plugin's options with their defaults."""
    options = {}
    for option, declared in inspect.signature(_declared_options(package, name)).parameters.items():
        if declared.kind is declared.KEYWORD_ONLY:
            options[option] = declared.default
    return options


def _declared_options(package: str, name: str) -> Callable[..., Any]:
    """Return the object whose keyword-only parameters are a plugin's options: the plugin, or the
    ``OPTIONS`` of its file.
    """
    function = load_plugin(package, name)
    options: Callable[..., Any] = getattr(sys.modules[function.__module__], "OPTIONS", function)
    return options


def needs_score(mask: str) -> bool:
    """Whether a mask needs scores of the entries, which a measure computes."""
    declared = inspect.signature(load_plugin("masks", mask)).parameters.get("score")
    return declared is not None and declared.default is declared.empty


def check_options(package: str, name: str, options: Json) -> Json:
    """Validate options against a plugin's signature, and add the defaults of the others."""
    hints = get_type_hints(_declared_options(package, name), include_extras=True)
    checked = plugin_options(package, name)
    where = f"{package.removesuffix('s')} {name}"
    for option, value in options.items():
        if option not in checked:
            raise UsageError(
                f"{where}: no option '{option}'{list_choices('options', option, checked)}"
            )
        try:
            checked[option] = TypeAdapter(hints[option]).validate_python(value)
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise UsageError(f"{where}: option '{option}' cannot be {value!r}: {reason}") from None
    return checked


def check_mask_options(mask: str, options: Json) -> None:
    """Validate the options of a mask other than its density."""
    if "density" in options:
        raise UsageError(
            f"mask {mask}: has its density beside `mask_options`, not in them; give it there"
        )
    check_options("masks", mask, options)


def measure_is(measure: str, kind: MeasureKind) -> bool:
    """Whether the file of a measure sets a property, such as ``LEARNS = True``."""
    module = sys.modules[load_plugin("measures", measure).__module__]
    return bool(getattr(module, kind, False))
