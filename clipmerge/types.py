"""Types and names that many modules use."""

import os
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

if TYPE_CHECKING:
    from torch import Tensor

#: A JSON object, or a recipe's and a plugin's options.
Json = dict[str, Any]
#: A path of a file or a folder.
StrPath = str | os.PathLike[str]
Names = tuple[str, ...]
#: Names of parameters by layer, in network order.
Layers = dict[str, Names]
#: Lengths of a tensor's dimensions.
Shape = tuple[int, ...]
#: Tensors by name, usually of a parameter.
Tensors: TypeAlias = "dict[str, Tensor]"
#: Device that models run on.
Device = Literal["auto", "cpu", "cuda", "mps", "xpu"]
#: Dtype of the merged weights; ``keep`` uses that of the checkpoints.
OutputDtype = Literal["keep", "float32", "bfloat16", "float16"]
#: Treatment of keys that only one checkpoint has: an error, or one of the two key sets.
Missing = Literal["error", "keep-zeroshot", "keep-finetuned"]
#: Parts of a checkpoint: both towers, one of them, or an image tower with a head.
Kind = Literal["full", "vision", "text", "classifier"]
#: Advice about a merged model, in the order of the verdict's rules.
Recommendation = Literal[
    "check-images", "use-alpha", "keep-finetuned", "either", "use", "probably-use", "too-few-images"
]
RECOMMENDATIONS = get_args(Recommendation)
#: Checks of the inputs. A check that fails is an error, unless `allow` names it.
CHECKS: Names = (
    "swapped",
    "unrelated",
    "equal-models",
    "class-order",
    "blank-images",
    "same-images",
    "at-chance",
    "odd-names",
)


def as_tuple(value: Any) -> tuple[Any, ...]:
    """Return one value or several as a tuple.

    Example:
        >>> as_tuple("auto"), as_tuple(["auto", "lines"]), as_tuple(None)
        (('auto',), ('auto', 'lines'), ())
    """
    if value is None:
        return ()
    is_one = isinstance(value, (str, bytes, Mapping))
    return (value,) if is_one or not isinstance(value, (Collection, Iterator)) else tuple(value)
