"""The command line with a pretended accelerator: ``python -m tests.support.pretended_card ARGUMENTS``.

The card's tensors say that they are on ``card``, and compute on the CPU. An operation refuses
tensors of two devices, a generator of the CPU, and float64, as Apple's does.
"""

import sys
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._pytree import tree_iter, tree_map

NAME = "card"
aten = torch.ops.aten
# These take tensors of two devices: they move them, or index.
MIXED = {
    aten.copy_.default,
    aten._to_copy.default,
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
}
# These take a number of the CPU, as binary kernels do.
TAKE_NUMBERS = {
    *("add", "sub", "mul", "div", "pow", "maximum", "minimum", "where", "remainder", "rsub"),
    *("eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or", "masked_fill", "fill"),
}
# These return a number to the CPU.
ASK = {aten._local_scalar_dense.default, aten.equal.default}


class OnCard(Tensor):
    """A tensor on the card; ``raw`` on the CPU has its entries."""

    raw: Tensor

    @staticmethod
    def __new__(cls, raw: Tensor) -> Self:
        if raw.dtype == torch.float64:
            raise TypeError("the card has no float64")
        made: Self = Tensor._make_wrapper_subclass(
            cls,
            raw.size(),
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            device=torch.device(NAME, 0),
        )
        made.raw = raw
        return made

    def tolist(self) -> Any:
        return self.raw.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = dict(kwargs or {})
        inputs = [*tree_iter((args, options))]
        given = [one for one in inputs if isinstance(one, Tensor)]
        name = func.overloadpacket.__name__
        takes_numbers = name.rstrip("_") in TAKE_NUMBERS
        strangers = [one for one in given if not isinstance(one, OnCard)]
        if func not in MIXED and any(one.ndim or not takes_numbers for one in strangers):
            raise RuntimeError(f"expected all tensors to be on the same device: {func}")
        if any(isinstance(one, torch.Generator) for one in inputs):
            raise RuntimeError(f"expected a generator of the card: {func}")
        to_cpu = torch.device(options.get("device") or NAME).type == "cpu"
        to_cpu |= func is aten.copy_.default and not isinstance(args[0], OnCard)
        if options.get("device") is not None:
            options["device"] = torch.device("cpu")
        out = func(*tree_map(raw_of, args), **tree_map(raw_of, options))
        if to_cpu or func in ASK:
            return out
        same = {id(raw_of(tensor)): tensor for tensor in given}  # of an operation in place
        return tree_map(lambda leaf: wrapped(leaf, same), out)


def raw_of(value: Any) -> Any:
    return value.raw if isinstance(value, OnCard) else value


def wrapped(value: Any, same: dict[int, Tensor]) -> Any:
    if not isinstance(value, Tensor):
        return value
    return same[id(value)] if id(value) in same else OnCard(value)


def register() -> torch.library.Library:
    """Make the card known to torch, as long as the result lives."""
    backend_registration._setup_privateuseone_for_python_backend(NAME)
    kernels = torch.library.Library("aten", "IMPL")
    for name, make in (
        ("empty.memory_format", torch.empty),
        ("empty_strided", torch.empty_strided),
    ):

        def on_card(*sizes: Any, dtype: Any = None, _make: Any = make, **_: Any) -> Any:
            return OnCard(_make(*sizes, dtype=dtype))

        kernels.impl(name, on_card, "PrivateUse1")
    # a parameter becomes one of another class there, and its object must stay
    torch.__future__.set_swap_module_params_on_conversion(True)
    return kernels


def draw(generator: torch.Generator, images: Tensor) -> Tensor:
    """Draw on the CPU: the card has no random numbers of its own."""
    return torch.randn(images.shape, generator=generator).to(images.device)


if __name__ == "__main__":
    from clipmerge.cli.app import main
    from clipmerge.learning import augment

    kernels = register()
    augment._draw_normal = draw
    sys.exit(main())
