"""PyTorch's own files, ``.bin`` and ``.pt``: only tensors are read, memory-mapped, and no code is
run.

``torch.load(weights_only=True)`` builds tensors and plain containers and refuses everything else,
so nothing in a file can run. Other content of a file (an optimiser, an epoch) is ignored.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import pickletools
import re
import shlex
import textwrap
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

import clipmerge.checkpoint.unpickle as unpickle
from clipmerge.checkpoint.clip_lora import flatten_factors
from clipmerge.checkpoint.source import LazyTensor, stored_array
from clipmerge.errors import CheckpointError, shorten
from clipmerge.files.limits import MAX_NAME_LENGTH, MAX_PICKLE_BYTES, MAX_SHARING
from clipmerge.files.reading import format_size, open_regular
from clipmerge.files.safetensors import (
    FLOATS,
    SAFETENSORS_NAME,
    Array,
    TensorEntry,
    check_names,
)
from clipmerge.finding import Finding

# Keys under which training scripts store the model's weights, in order of preference.
_INSIDE = ("state_dict", "model_state_dict", "model", "module", "net", "weights")
# Other tensors that training saves, which are not weights.
_TRAINING = re.compile(r"optim|sched|scaler|callback|loop|rng|loss|metric", re.IGNORECASE)
# Dictionaries in dictionaries that are searched for the weights.
_DEEPEST = 6
_PATHS = {"PosixPath": PurePosixPath, "WindowsPath": PureWindowsPath}
_ZIP_START = b"PK\x03\x04"
# Functions called by pickles of tensors and plain containers.
_BUILDERS = ("torch.", "collections.", "_rebuild")
_PLAIN = ("_codecs.encode", "builtins.set", "__builtin__.set")
# Modules whose functions no checkpoint needs: they run commands, or evaluate code.
_DANGEROUS = re.compile(
    r"(?:posix|nt|os|sys|subprocess|pty|shutil|socket|runpy|importlib|ctypes|webbrowser)\."
    r"|(?:builtins|__builtin__)\.(?:eval|exec|compile|open|__import__)$"
)


def read_state_dict(
    file: Path, state_key: str | None = None
) -> tuple[dict[str, LazyTensor], dict[str, TensorEntry], list[Finding]]:
    """Map the tensors of a file written by ``torch.save``: lazy and entries by key, and notes for
    the user.
    """
    loaded, in_memory = load_torch_file(file)
    factors = flatten_factors(loaded)
    tensors = {key: value for key, value in factors.items() if isinstance(value, Tensor)}
    inside = ""
    others: list[str] = []
    if not tensors:
        tensors, inside, others = _find_weights(file, loaded, state_key)
    check_names(file, tensors)
    entries = {key: _entry(file, key, tensor) for key, tensor in tensors.items()}
    # refuse tensors that are views of far smaller storage, such as of one number
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    storages = [tensor.untyped_storage() for tensor in tensors.values()]
    stored_bytes = sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
    if tensors and size > MAX_SHARING * max(stored_bytes, 1):
        raise CheckpointError(
            f"{file}: its tensors span {format_size(size)}, but it holds only"
            f" {format_size(stored_bytes)}; save contiguous tensors: {{key: tensor.contiguous()"
            " ...}"
        )
    notes = []
    if inside:
        notes.append(Finding.of("weights-inside", file=str(file), inside=inside, others=others))
    if in_memory:
        notes.append(Finding.of("read-into-memory", file=str(file)))
    lazy = {
        key: LazyTensor((), partial(_contiguous_array, tensor)) for key, tensor in tensors.items()
    }
    return lazy, entries, notes


def _contiguous_array(tensor: Tensor) -> Array:
    """View a tensor, or copy one in another order: one copy per run would take quadratic time."""
    return stored_array(tensor.detach().contiguous().flatten())


def load_torch_file(file: Path) -> tuple[Any, bool]:
    """Content of the file, and whether it had to be read into memory."""
    # classes beside the weights of many trainings that hold values and run no code: options,
    # numbers, paths
    scalar = np.float64(0).__reduce__()[0]  # numpy's function has had two places
    paths = (
        (cls, f"{module}.{name}")
        for module in ("pathlib", "pathlib._local")
        for name, cls in _PATHS.items()
    )
    dtypes = [
        type(np.dtype(name)) for name in ("float64", "float32", "float16", "int64", "int32", "bool")
    ]
    numbers = [
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
        np.dtype,
        *dtypes,
    ]
    harmless: list[Any] = [argparse.Namespace, *numbers, *paths]
    try:
        with (
            open_regular(file) as content,
            warnings.catch_warnings(),
            torch.serialization.safe_globals(harmless),
        ):
            # about TorchScript and pickle protocols, both handled below
            warnings.simplefilter("ignore")
            is_archive = content.read(4) == _ZIP_START
            for member in zipfile.ZipFile(content).infolist() if is_archive else ():
                if "/code/" in member.filename:  # of TorchScript, which torch refuses
                    continue
                # a list of members can make torch take far more memory than the file has
                if (
                    member.compress_type != zipfile.ZIP_STORED
                    or member.file_size != member.compress_size
                ):
                    raise CheckpointError(
                        f"{file}: is compressed inside, which torch.save does not do; save it again"
                    )
                if member.filename.endswith(".pkl") and member.file_size > MAX_PICKLE_BYTES:
                    limit = format_size(MAX_PICKLE_BYTES)
                    raise CheckpointError(
                        f"{file}: its pickle is larger than {limit}; save it again"
                    )
            if (size := _requested_bytes(file)) > file.stat().st_size:
                raise CheckpointError(
                    f"{file}: asks for {format_size(size)} of memory, more than it holds; it is"
                    " damaged or made to fill the memory. Download or copy it again"
                )
            content.seek(0)
            # torch takes a file with this ending for safetensors
            if is_archive and file.suffix != ".safetensors":
                return torch.load(file, map_location="cpu", weights_only=True, mmap=True), False
            return torch.load(content, map_location="cpu", weights_only=True), True
    except CheckpointError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise _refusal_error(file, error) from None


def _refusal_error(file: Path, error: Exception) -> CheckpointError:
    """Explain why a file is refused; for code, give the command that extracts the weights."""
    text = " ".join(str(error).split())
    code: list[str] = []
    if "TorchScript" in text:
        what = "is a TorchScript archive, which is a program"
    elif code := _called_functions(file) or re.findall(
        r"GLOBAL (\S+) (?:was not an allowed|whose module)", text[:MAX_NAME_LENGTH]
    ):
        what = f"is a pickle that holds code ({shorten(code, 3)}), which loading would run"
    else:
        return CheckpointError(
            f"{file}: is damaged or not a PyTorch file; download or copy it again"
            f" ({textwrap.shorten(text, 80, placeholder=' ...') or type(error).__name__})"
        )
    if harmful := [name for name in code if _DANGEROUS.match(name)]:
        return CheckpointError(
            f"{file}: {what}, so clipmerge does not open it. {shorten(harmful, 3)} is nothing that"
            " weights need, and may do harm: do not load this file, and get the weights from"
            " somewhere else, as safetensors"
        )
    target = file.with_name(f"{file.stem}-weights.pt")
    command = shlex.join(["python", unpickle.__file__, str(file), str(target)])
    return CheckpointError(
        f"{file}: {what}, so clipmerge does not open it. If you trust it, run `{command}` where"
        f" that code can be imported (it needs torch only), and give {target}"
    )


def _called_functions(file: Path) -> list[str]:
    """Name what the pickles in a file call, up to any damage, except what builds tensors; nothing
    is run.
    """
    names: list[str] = []
    is_plain = False
    with contextlib.suppress(Exception), file.open("rb") as content:
        for number, member in enumerate(_pickles(content)):
            texts = ["", ""]
            for operation, argument, _ in pickletools.genops(member):
                if isinstance(argument, str) and "UNICODE" in operation.name:
                    texts = [texts[1], argument]
                elif operation.name in ("GLOBAL", "INST"):
                    names.append(str(argument).replace(" ", "."))
                elif operation.name == "STACK_GLOBAL":
                    names.append(".".join(texts))
            is_plain = is_plain or (number == 0 and member is content and bool(names))
    foreign = [name for name in names if not name.startswith(_BUILDERS) and name not in _PLAIN]
    return list(dict.fromkeys(foreign or (names if is_plain else [])))


def _requested_bytes(file: Path) -> int:
    """The largest number in a pickle that calls `bytearray`, which would allocate as many bytes;
    nothing is run.
    """
    largest = 0
    with contextlib.suppress(Exception), file.open("rb") as content:
        for pickle in _pickles(content):
            if isinstance(pickle, io.BytesIO) and b"bytearray" not in pickle.getvalue():
                continue
            number = 0
            calls = False
            for _, argument, _ in pickletools.genops(pickle):
                calls = calls or (isinstance(argument, str) and "bytearray" in argument)
                number = max(number, argument) if isinstance(argument, int) else number
                largest = max(largest, number) if calls else largest
    return largest


def _pickles(content: IO[bytes]) -> Iterator[IO[bytes]]:
    """The pickles of a file: those of an archive, or the content and three before it, which torch
    wrote before version 1.6.
    """
    if zipfile.is_zipfile(content):
        archive = zipfile.ZipFile(content)
        names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        yield from (io.BytesIO(archive.read(name)) for name in names)
    else:
        content.seek(0)
        yield from [content] * 4


def _find_weights(
    file: Path, loaded: Any, state_key: str | None
) -> tuple[dict[str, Tensor], str, list[str]]:
    """The model's own weights, the names under which they were found, and other places that hold
    weights.
    """
    path: list[str] = []
    others: list[str] = []
    if state_key is not None:
        loaded = _lookup(file, loaded, state_key)
        path.append(state_key)
    while isinstance(loaded, Mapping) and not _is_state_dict(loaded):
        inside = next((name for name in _INSIDE if isinstance(loaded.get(name), Mapping)), None)
        if inside is None or len(path) > _DEEPEST:  # a dictionary can hold itself
            largest = max(
                _other_weights(loaded, ""),
                key=lambda name: _count_tensors(loaded.get(name)),
                default="",
            )
            average = "shadow_params" in loaded  # of torch_ema: a list, without names
            copied = "ema.copy_to(model.parameters()), then " if average else ""
            other = f", or name what holds them with `state_key` {largest}" if largest else ""
            raise CheckpointError(
                f"{file}: holds no weights under a known name ({', '.join(_INSIDE)}), but"
                f" {shorten(map(str, loaded)) or 'nothing'}; save the state_dict"
                f" alone: {copied}torch.save(model.state_dict(), FILE){other}"
            )
        if state_key is None:
            others += [".".join((*path, name)) for name in _other_weights(loaded, inside)]
        path.append(inside)
        loaded = loaded[inside]
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f"{file}: holds a {type(loaded).__name__}, not a state_dict")
    weights = {str(key): value for key, value in loaded.items() if isinstance(value, Tensor)}
    return weights, ".".join(path), others


def _is_state_dict(loaded: Mapping[Any, Any]) -> bool:
    """Whether a dictionary holds the weights itself, rather than a loss or a step beside what
    does.
    """
    inner = [
        value
        for name, value in loaded.items()
        if not _TRAINING.search(str(name)) and isinstance(value, Mapping)
    ]
    here = _count_direct_tensors(loaded)
    return here > 0 and all(_count_tensors(value) <= here for value in inner)


def _count_direct_tensors(loaded: Mapping[Any, Any]) -> int:
    return sum(isinstance(value, Tensor) for value in loaded.values())


def _count_tensors(loaded: Any) -> int:
    """Number of tensors in a dictionary and in those inside it, which may hold one another."""
    count = 0
    stack = [loaded]
    seen = set[int]()
    while stack:
        value = stack.pop()
        if isinstance(value, Tensor):
            count += 1
        elif isinstance(value, Mapping) and id(value) not in seen:
            seen.add(id(value))
            stack.extend(value.values())
    return count


def _lookup(file: Path, loaded: Any, state_key: str) -> Any:
    """What lies under a name, which may itself hold dots; a state dict whose keys begin with it
    counts as well.
    """
    if isinstance(loaded, Mapping):
        if state_key in loaded:
            return loaded[state_key]
        first, _, rest = state_key.partition(".")
        if rest and isinstance(loaded.get(first), Mapping):
            return _lookup(file, loaded[first], rest)
        for outer in (
            loaded,
            *(loaded[name] for name in _INSIDE if isinstance(loaded.get(name), Mapping)),
        ):
            weights = {
                str(key): value
                for key, value in outer.items()
                if str(key).startswith(f"{state_key}.")
            }
            if weights:
                return {key.removeprefix(f"{state_key}."): value for key, value in weights.items()}
    content = (
        shorten(map(str, loaded)) if isinstance(loaded, Mapping) else f"a {type(loaded).__name__}"
    )
    raise CheckpointError(
        f"{file}: holds nothing under '{state_key}' (`state_key`), but {content or 'nothing'}"
    )


def _other_weights(loaded: Mapping[Any, Any], taken: str) -> Iterator[str]:
    """Other names, beside the one that was taken, that hold a model's weights, such as a moving
    average's.
    """
    for name, value in loaded.items():
        if str(name) == taken or not isinstance(value, Mapping) or _TRAINING.search(str(name)):
            continue
        nested = [
            key
            for key, inner in value.items()
            if isinstance(inner, Mapping) and _count_direct_tensors(inner)
        ]
        if _count_direct_tensors(value):
            yield str(name)
        elif "ema" in str(name).lower() and nested:
            yield f"{name}.{nested[0]}"


def _entry(file: Path, key: str, tensor: Tensor) -> TensorEntry:
    dtype = SAFETENSORS_NAME.get(str(tensor.dtype).removeprefix("torch."))
    if dtype is None or tensor.layout != torch.strided or tensor.is_meta:
        kind = (
            "without content"
            if tensor.is_meta
            else f"{str(tensor.layout).removeprefix('torch.')} of {tensor.dtype}"
        )
        raise CheckpointError(
            f"{file}: {key} is {kind}; clipmerge merges plain tensors of"
            f" {', '.join(sorted(FLOATS))}. Dequantise the checkpoint first"
        )
    return TensorEntry(file, dtype, tuple(tensor.shape), 0, tensor.numel() * tensor.element_size())
