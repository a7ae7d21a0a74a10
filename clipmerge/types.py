"""Names for types that are written everywhere."""

import os
from typing import TYPE_CHECKING, Any, TypeAlias

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
