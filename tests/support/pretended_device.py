"""An accelerator that needs no card: its tensors report a device of their own and compute on the
CPU.

Unlike tensors on the CPU they refuse what a card refuses: operations with a tensor on another
device, a generator of the CPU, and float64 where the device has none. They count kernels, and the
times that the CPU waits for the device: for a number, and for a copy that is not told to go on by
itself. Memory is counted, and may be limited. torch lets Python stand in for a backend since 2.9,
without a compiler.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils import backend_registration

NAME = "pretended"
# torch's own switch for backends in Python is not public yet
_register = getattr(backend_registration, "_setup_privateuseone_for_python_backend", None)
SUPPORTED = _register is not None

aten = torch.ops.aten
# These move tensors between devices, or ask for a number.
_COPIES = {aten.copy_.default, aten._to_copy.default}
_WAITS = {
    aten._local_scalar_dense.default,
    aten.equal.default,
    aten.nonzero.default,
    aten.is_nonzero.default,
}
# These write nothing.
_NO_KERNELS = {
    aten.detach.default,
    aten.alias.default,
    aten.empty_like.default,
    aten._unsafe_view.default,
}
# attention is then computed from products, as no backend is registered for its kernels
_CHOICE = aten._fused_sdp_choice.default


@dataclass
class Counts:
    """What happened on the device, and what it can."""

    kernels: dict[str, int] = field(default_factory=dict)  # operations that write a tensor, by name
    waits: int = 0  # times that the CPU waited for a value or a copy
    has_float64: bool = True
    most: int | None = None  # bytes of its memory
    peak: int = 0  # the most bytes that its tensors took


counts = Counts()


class _Memory:
    """The device's memory: bytes and number of tensors of every storage by address, and the bytes
    of all."""

    def __init__(self) -> None:
        self.storages: dict[int, list[int]] = {}
        self.taken = 0


_memory = _Memory()


def taken() -> int:
    """Bytes of the device's memory that tensors take."""
    return _memory.taken


class _Taken:
    """A part in a storage; torch swaps no tensor that a weak reference points at, so tensors hold
    this instead."""

    def __init__(self, raw: Tensor) -> None:
        storage = raw.untyped_storage()
        self._address, size = storage.data_ptr(), storage.nbytes()
        self._memory = _memory  # modules may be gone when the last tensors are
        if self._address not in _memory.storages:
            _memory.storages[self._address] = [size, 0]
            _memory.taken += size
        _memory.storages[self._address][1] += 1
        counts.peak = max(counts.peak, _memory.taken)
        if counts.most is not None and _memory.taken > counts.most:
            raise torch.OutOfMemoryError(
                f"the pretended device is out of memory. Tried to allocate {size} bytes"
            )

    def __del__(self) -> None:
        entry = self._memory.storages[self._address]
        entry[1] -= 1
        if not entry[1]:
            del self._memory.storages[self._address]
            self._memory.taken -= entry[0]


class Memory:
    """What torch asks the device's module for."""

    def __init__(self, before: Any) -> None:
        self._before = before

    def __getattr__(self, name: str) -> Any:
        return getattr(self._before, name)

    def mem_get_info(self, _device: torch.device) -> tuple[int, int]:
        """Bytes that are free, and all."""
        most = (1 << 40) if counts.most is None else counts.most
        return most - taken(), most

    def memory_allocated(self, _device: torch.device) -> int:
        """Bytes that tensors take."""
        return taken()

    memory_reserved = memory_allocated

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        """Precisions of autocast, which activation checkpointing asks for."""
        return [torch.bfloat16]


class Pretended(Tensor):
    """A tensor on the pretended device; its entries are those of a tensor on the CPU."""

    raw: Tensor
    part: _Taken

    @staticmethod
    def __new__(cls, raw: Tensor) -> Self:
        if raw.dtype == torch.float64 and not counts.has_float64:
            raise TypeError("the device has no float64")
        made: Pretended = Tensor._make_wrapper_subclass(
            cls,
            raw.size(),
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            device=torch.device(NAME, 0),
        )
        made.raw, made.part = raw, _Taken(raw)
        return made

    def tolist(self) -> Any:
        """Wait for all entries at once."""
        counts.waits += 1
        return self.raw.tolist()

    def untyped_storage(self) -> torch.UntypedStorage:
        """The storage of its entries."""
        return self.raw.untyped_storage()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is aten._has_compatible_shallow_copy_type.default:
            return False
        composed = (
            func.decompose(*args, **(kwargs or {}))
            if torch.is_inference_mode_enabled()
            else NotImplemented
        )
        if (
            composed is not NotImplemented
        ):  # there, autograd does not take composed operations apart
            return composed
        given, options = list(args), dict(kwargs or {})
        leaves = _checked_leaves(func, [*given, *options.values()])
        home = (
            func is aten._to_copy.default
            and torch.device(options.get("device") or NAME).type == "cpu"
        )
        if (
            func in _WAITS
            or home
            or (func is aten.copy_.default and not isinstance(given[0], Pretended))
        ):
            counts.waits += 1
        elif func is aten.copy_.default and not isinstance(given[1], Pretended):
            counts.waits += not (options.get("non_blocking") or given[2:] == [True])
        elif func is aten.index.Tensor and any(
            x is not None and not isinstance(x, Pretended) for x in given[1]
        ):
            counts.waits += 1  # the index is copied first
        if options.get("device") is not None:
            options["device"] = torch.device("cpu")
        if func is _CHOICE:
            return 0
        out = func(
            *_mapped(_raw, given), **{name: _mapped(_raw, value) for name, value in options.items()}
        )
        if home or func in _WAITS - {aten.nonzero.default}:
            return out
        aliases = any(result.alias_info is not None for result in func._schema.returns)
        name = func.overloadpacket.__name__
        # what writes into a list of tensors is called a view by torch
        if (not func.is_view or name.startswith("_foreach_")) and func not in _NO_KERNELS:
            counts.kernels[name] = counts.kernels.get(name, 0) + 1
        if aliases and not func.is_view:  # in place, or into ``out``
            same = {id(_raw(leaf)): leaf for leaf in leaves if isinstance(leaf, Tensor)}
            return _mapped(lambda leaf: same.get(id(leaf), _wrapped(leaf)), out)
        return _mapped(_wrapped, out)


def _mapped(change: Callable[[Any], Any], value: Any) -> Any:
    """Change every leaf of nested lists and tuples; torch's own functions take as long as the
    operations themselves."""
    return (
        type(value)([_mapped(change, part) for part in value])
        if type(value) in (list, tuple)
        else change(value)
    )


def _raw(value: Any) -> Any:
    return value.raw if isinstance(value, Pretended) else value


def _wrapped(value: Any) -> Any:
    return (
        Pretended(value)
        if type(value) is Tensor or isinstance(value, torch.nn.Parameter)
        else value
    )


def _checked_leaves(func: Any, inputs: list[Any]) -> list[Any]:
    """The inputs of an operation without their nesting; those that a card would refuse are an
    error."""
    leaves: list[Any] = []
    _mapped(leaves.append, inputs)
    strangers = [
        x for x in leaves if isinstance(x, Tensor) and not isinstance(x, Pretended) and x.ndim
    ]
    if strangers and func not in _COPIES and func is not aten.index.Tensor:
        raise RuntimeError(f"expected all tensors to be on the same device: {func}")
    if any(isinstance(leaf, torch.Generator) for leaf in leaves):
        raise RuntimeError(f"expected a generator of the device: {func}")
    return leaves


def _copied(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    counts.waits += not (non_blocking or isinstance(source, Pretended))
    _raw(target).copy_(_raw(source))
    return target


def _empty(
    size: Any,
    dtype: Any = None,
    layout: Any = None,
    device: Any = None,
    pin_memory: Any = None,
    **_: Any,
) -> Any:
    return Pretended(torch.empty(size, dtype=dtype))


def _empty_strided(size: Any, stride: Any, dtype: Any = None, **_: Any) -> Any:
    return Pretended(torch.empty_strided(size, stride, dtype=dtype))


_library: list[torch.library.Library] = []


def register() -> None:
    """Make the device known to torch, once in a process."""
    if _library or _register is None:
        return
    _register(NAME)
    library = torch.library.Library("aten", "IMPL")
    library.impl("empty.memory_format", _empty, "PrivateUse1")
    library.impl("empty_strided", _empty_strided, "PrivateUse1")
    library.impl("_copy_from", _copied, "PrivateUse1")
    _library.append(library)
    setattr(torch, NAME, Memory(getattr(torch, NAME)))


@contextmanager
def counted(*, has_float64: bool = True, most: int | None = None) -> Iterator[Counts]:
    """Count what happens on the device in this block."""
    counts.kernels, counts.waits, counts.has_float64, counts.most, counts.peak = (
        {},
        0,
        has_float64,
        most,
        0,
    )
    # a module's parameters are of another class on the device, and their objects must stay
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        yield counts
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)
        counts.has_float64, counts.most = True, None
