"""Extract the weights from a pickle that holds code. A script to be run where that code can be
imported.

    python unpickle.py IN OUT.pt

Loading IN runs the code in it, so use it only on files you trust. OUT.pt holds only tensors, and
clipmerge reads it. It needs only torch, and runs on Python 3.6 with torch 1.7, which WiSE-FT and
model soups were made with.
"""

import os
import sys
from typing import Any, Optional


def load(path: str) -> Any:
    """Unpickle a file written by ``pickle.dump`` or ``torch.save``."""
    import pickle
    import warnings

    import torch

    warnings.simplefilter("ignore")  # torch warns that the following variable is set
    os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = (
        "1"  # older versions of torch have no argument for this
    )
    try:
        return torch.load(path, map_location="cpu")  # noqa: TID251
    except (RuntimeError, pickle.UnpicklingError):  # not torch's own format
        with open(path, "rb") as file:  # noqa: PTH123
            return pickle.load(file)  # noqa: S301


def weights_of(value: Any, outer: "tuple[int, ...]" = ()) -> Optional[Any]:  # noqa: UP045
    """Keep only tensors, numpy's arrays as tensors, and dictionaries of them."""
    import torch

    if hasattr(value, "state_dict"):
        value = value.state_dict()
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if type(value).__module__ == "numpy" and hasattr(value, "shape"):
        return torch.as_tensor(value) if value.dtype.kind in "fiub" else None
    if not isinstance(value, dict) or id(value) in outer:
        return None
    inner = (*outer, id(value))
    weights = {
        name: weights_of(weight, inner) for name, weight in value.items() if isinstance(name, str)
    }
    return {name: weight for name, weight in weights.items() if weight is not None} or None


def main() -> None:
    """Read the command line, and write OUT.pt."""
    if len(sys.argv) != 3:
        sys.exit("usage: python unpickle.py IN OUT.pt")
    sys.path[0] = os.getcwd()  # noqa: PTH109 - the code to import is there, not beside this script
    import torch

    source, target = sys.argv[1:]
    weights = weights_of(load(source))
    if weights is None:
        sys.exit(source + ": holds no tensors")
    torch.save(weights, target)


if __name__ == "__main__":
    main()
