"""A card that needs none: its tensors say that they are on ``cuda``, or ``mps``, and compute on the
CPU. `tests.support.pretend` makes torch believe in it.

Unlike tensors on the CPU they refuse what a card refuses: operations with a tensor on another
device, a generator of the CPU, a number of the CPU where a kernel would read it, and float64,
repeated borders and shifted whole numbers on ``mps``. Kernels are counted, and the times that the
CPU waits for the device: for a number, for a mask whose entries are counted, and for a copy that is
not told to go on by itself. One that is happens as late as it may: when the device needs its
target, or the CPU waits. Memory is counted, and may be limited. Autocast is torch's own.

Hollow tensors have shapes and no entries, so that models of real sizes take no time: every number
that the CPU asks for is 1, and what would need a number for its shape is an error.
"""

import importlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

NAME = "cuda"

aten = torch.ops.aten
# These move tensors between devices.
_COPIES = {aten.copy_.default, aten._to_copy.default}
# These ask for a number, or for the number of entries.
_WAITS = {
    aten._local_scalar_dense.default,
    aten.equal.default,
    aten.nonzero.default,
    aten.is_nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.bincount.default,
}
_ASK = (aten._local_scalar_dense.default, aten.equal.default, aten.is_nonzero.default)
_INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
# These take a number of the CPU among tensors of the device, as binary kernels do.
_TAKE_NUMBERS = {
    *("add", "sub", "mul", "div", "pow", "maximum", "minimum", "where", "remainder", "fmod"),
    *("eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or", "bitwise_and"),
    *("bitwise_or", "masked_fill", "fill", "rsub", "atan2"),
}
# These write nothing.
_NO_KERNELS = {
    aten.detach.default,
    aten.alias.default,
    aten.empty_like.default,
    aten._unsafe_view.default,
}
_attend = torch.nn.functional.scaled_dot_product_attention


@dataclass
class Counts:
    """What happened on the device, and what it can."""

    kernels: dict[str, int] = field(default_factory=dict)  # operations that write a tensor, by name
    waits: int = 0  # times that the CPU waited for a value or a copy
    has_float64: bool = True
    has_bfloat16: bool = True
    most: int | None = None  # bytes of its memory
    peak: int = 0  # the most bytes that its tensors took
    hollow: bool = False
    # called for every kernel with the operation, its inputs and options, and its result
    watch: Callable[[Any, list[Any], dict[str, Any], Any], None] | None = None


counts = Counts()
# Copies that are not done yet, in order: target and source, each on the CPU.
_late: list[tuple[Tensor, Tensor]] = []


def _wait(count: int = 1) -> None:
    """Let the CPU wait for the device, so that nothing is left to do."""
    counts.waits += count
    if count:
        _catch_up()


def _catch_up() -> None:
    for target, source in _late:
        target.copy_(source)
    _late.clear()


def _copy_late(target: Tensor, source: Tensor) -> None:
    """Copy when the target is needed; until then it holds nothing that one could use."""
    if target.is_floating_point():
        target.fill_(float("nan"))
    elif target.dtype != torch.bool:
        target.fill_(torch.iinfo(target.dtype).max)
    _late.append((target, source))


def _address(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


@dataclass(frozen=True)
class _Storage:
    """What is asked of a storage: the same place for all its views, and its size."""

    place: int
    size: int

    def data_ptr(self) -> int:
        return self.place

    def nbytes(self) -> int:
        return self.size


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
        self._address, size = _address(raw), raw.untyped_storage().nbytes()
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
        _wait()
        return _numbers(self.raw).tolist()

    def pin_memory(self, device: Any = None) -> Any:
        """Refuse: only the CPU's memory can be pinned."""
        raise RuntimeError("only dense CPU tensors can be pinned")

    def untyped_storage(self) -> Any:
        """The storage of its entries."""
        return _Storage(_address(self.raw), self.raw.untyped_storage().nbytes())

    @classmethod
    def __torch_dispatch__(  # noqa: C901 - one branch for each way to leave the device
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
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
        if _late and not {_address(_raw(x)) for x in leaves if isinstance(x, Tensor)}.isdisjoint(
            _address(target) for target, _ in _late
        ):
            _catch_up()
        target = torch.device(options.get("device") or NAME)
        home = func is aten._to_copy.default and target.type == "cpu"
        later = func in _COPIES and bool(options.get("non_blocking") or given[2:] == [True])
        if func is aten.copy_.default and isinstance(given[0], Pretended) != isinstance(
            given[1], Pretended
        ):
            if counts.hollow:
                _wait(not later)
                return given[0] if isinstance(given[0], Pretended) else given[0].fill_(1)
            if later:
                _copy_late(_raw(given[0]), _raw(given[1]))
                return given[0]
            _wait()
        elif home and later:
            copy = torch.empty_like(given[0].raw, dtype=options.get("dtype"))
            _copy_late(copy, given[0].raw)
            return copy
        elif func in _WAITS or home:
            _wait()
        elif func in _INDEXED:  # a mask's entries are counted, and an index is copied first
            _wait(any(isinstance(x, Tensor) and _waits_for(x) for x in given[1]))
        if options.get("device") is not None:
            options["device"] = torch.device("meta" if counts.hollow else "cpu")
        options.pop("non_blocking", None)
        given = _mapped(_raw, given)
        options = {name: _mapped(_raw, value) for name, value in options.items()}
        if counts.hollow and home:
            return _numbers(given[0], options.get("dtype"))
        if counts.hollow and func in _ASK:
            return torch.ones((), dtype=given[0].dtype).item() if func in _ASK[:1] else True
        out = func(*given, **options)
        if home or func in _ASK:
            return out
        aliases = any(result.alias_info is not None for result in func._schema.returns)
        name = func.overloadpacket.__name__
        # what writes into a list of tensors is called a view by torch
        if (not func.is_view or name.startswith("_foreach_")) and func not in _NO_KERNELS:
            counts.kernels[name] = counts.kernels.get(name, 0) + 1
            if counts.watch:
                counts.watch(func, given, options, out)
        if aliases and not func.is_view:  # in place, or into ``out``
            same = {id(_raw(leaf)): leaf for leaf in leaves if isinstance(leaf, Tensor)}
            return _mapped(lambda leaf: same.get(id(leaf), _wrapped(leaf)), out)
        return _mapped(_wrapped, out)


def _numbers(raw: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The entries on the CPU, as far as there are any."""
    return torch.ones(raw.shape, dtype=dtype or raw.dtype) if raw.is_meta else raw


def _mapped(change: Callable[[Any], Any], value: Any) -> Any:
    """Change every leaf of nested lists and tuples; torch's own functions take as long as the
    operations themselves."""
    return (
        type(value)([_mapped(change, part) for part in value])
        if type(value) in (list, tuple)
        else change(value)
    )


def _raw(value: Any) -> Any:
    if isinstance(value, Pretended):
        return value.raw
    return value.to("meta") if counts.hollow and isinstance(value, Tensor) else value


def _wrapped(value: Any) -> Any:
    return (
        Pretended(value)
        if type(value) is Tensor or isinstance(value, torch.nn.Parameter)
        else value
    )


def _waits_for(index: Tensor) -> bool:
    return index.dtype in (torch.bool, torch.uint8) or not isinstance(index, Pretended)


def _checked_leaves(func: Any, inputs: list[Any]) -> list[Any]:
    """The inputs of an operation without their nesting; those that a card would refuse are an
    error."""
    leaves: list[Any] = []
    _mapped(leaves.append, inputs)
    name = func.overloadpacket.__name__.rstrip("_")
    strangers = [
        x
        for x in leaves
        if isinstance(x, Tensor)
        and not isinstance(x, Pretended)
        and (x.ndim or name not in _TAKE_NUMBERS)
    ]
    if strangers and func not in _COPIES and func not in _INDEXED:
        raise RuntimeError(f"expected all tensors to be on the same device: {func}")
    if NAME == "mps" and func is aten.grid_sampler_2d.default and inputs[3] == 1:
        raise RuntimeError("MPS: Unsupported Border padding mode")
    if NAME == "mps" and name == "__rshift":
        raise RuntimeError("MPS: torch 2.5 and 2.6 shift whole numbers wrongly")
    if any(isinstance(leaf, torch.Generator) for leaf in leaves):
        raise RuntimeError(f"expected a generator of the device: {func}")
    return leaves


def _empty(size: Any, dtype: Any = None, **_: Any) -> Any:
    return Pretended(torch.empty(size, dtype=dtype, device="meta" if counts.hollow else "cpu"))


def _empty_strided(size: Any, stride: Any, dtype: Any = None, **_: Any) -> Any:
    device = "meta" if counts.hollow else "cpu"
    return Pretended(torch.empty_strided(size, stride, dtype=dtype, device=device))


def _attended(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Attention by the kernel that a card takes; else from products, as torch does where it finds
    no kernels.
    """
    if not counts.hollow and (NAME == "cuda" or not isinstance(query, Pretended)):
        return _attend(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    if not counts.hollow:  # it would ask a Metal library that is not there
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            zeros = torch.zeros_like(attn_mask, dtype=query.dtype)
            attn_mask = zeros.masked_fill(~attn_mask, -math.inf)
        return aten._scaled_dot_product_attention_math(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )[0]
    if attn_mask is None and query.dtype in (torch.bfloat16, torch.float16):
        return aten._scaled_dot_product_flash_attention(
            query, key, value, dropout_p, is_causal, scale=scale
        )[0]
    return aten._scaled_dot_product_efficient_attention(
        query, key, value, attn_mask, torch.is_grad_enabled(), dropout_p, is_causal, scale=scale
    )[0]


_library: list[torch.library.Library] = []


def register(kind: str) -> None:
    """Make the device known to torch, once in a process; see `tests.support.pretend`."""
    global NAME
    NAME = kind
    library = torch.library.Library("aten", "IMPL")
    library.impl("empty.memory_format", _empty, kind.upper())
    library.impl("empty_strided", _empty_strided, kind.upper())
    # without a kernel of its own torch takes it apart before the device sees it; a card has one
    library.impl("silu_backward", aten.silu_backward, kind.upper())
    _library.append(library)

    def free(_device: Any = None) -> tuple[int, int]:
        most = (1 << 40) if counts.most is None else counts.most
        return most - taken(), most

    def nothing(*_: Any, **__: Any) -> None: ...

    # reads the functions of torch once, and takes no others for them
    importlib.import_module("torch._dynamo")

    # a module's parameters are of another class on the device, and their objects must stay
    torch.__future__.set_swap_module_params_on_conversion(True)
    counts.has_float64 = kind != "mps"
    module: Any = getattr(torch, kind)
    found: dict[str, Callable[..., Any]] = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "is_bf16_supported": lambda including_emulation=True: counts.has_bfloat16,
        "mem_get_info": free,
        "memory_allocated": lambda _device=None: taken(),
        "memory_reserved": lambda _device=None: taken(),
        "recommended_max_memory": lambda: free()[1],
        "driver_allocated_memory": taken,
        **dict.fromkeys(("_lazy_init", "empty_cache", "set_device"), nothing),
        "synchronize": lambda _device=None: _wait(),
    }
    for name, function in found.items():
        if kind == "cuda" or name != "is_bf16_supported":
            setattr(module, name, function)
    if kind == "mps":
        for name in ("mem_get_info", "memory_allocated", "memory_reserved"):
            delattr(module, name)
        torch.backends.mps.is_available = lambda: True
    torch.nn.functional.scaled_dot_product_attention = _attended
    Tensor.pin_memory = lambda self, device=None: self.clone()  # type: ignore[method-assign, assignment]


@contextmanager
def counted(
    *,
    has_float64: bool = True,
    has_bfloat16: bool = True,
    most: int | None = None,
    hollow: bool = False,
) -> Iterator[Counts]:
    """Count what happens on the device in this block."""
    counts.kernels, counts.waits, counts.peak = {}, 0, 0
    counts.has_float64 = has_float64 and NAME != "mps"
    counts.has_bfloat16, counts.most, counts.hollow = has_bfloat16, most, hollow
    try:
        yield counts
    finally:
        counts.has_float64, counts.has_bfloat16, counts.most = NAME != "mps", True, None
        counts.hollow, counts.watch = False, None
