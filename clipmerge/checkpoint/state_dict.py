"""PyTorch's own files, ``.bin`` and ``.pt``: only tensors are read, memory-mapped, and no code is run.

``torch.load(weights_only=True)`` builds tensors and plain containers and refuses everything else, so nothing in a file
can run. Other content of a file (an optimiser, an epoch) is ignored.
"""

from __future__ import annotations

import contextlib
import pickletools
import re
import shlex
import warnings
import zipfile
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import clipmerge.checkpoint.unpickle as unpickle
from clipmerge.checkpoint.pickles import check_pickle
from clipmerge.checkpoint.source import Checkpoint, stored
from clipmerge.errors import CheckpointError, shorten
from clipmerge.files.limits import MOST_SHARING
from clipmerge.files.reading import open_regular, told_size
from clipmerge.files.safetensors import DTYPES, FLOATS, Array, TensorEntry, check_names
from clipmerge.files.unchanged import guard_range

if TYPE_CHECKING:
    from torch import Tensor

_NAMES = {torch_name: name for name, (torch_name, _) in DTYPES.items()}
# Keys under which training scripts store the model's weights, in order of preference.
_INSIDE = ("state_dict", "model_state_dict", "model", "module", "net", "weights")
# Prefixes added to every key by data parallel training and by torch.compile.
_PARALLEL = ("module.", "_orig_mod.")
# Prefixes of a CLIP in WiSE-FT's ImageClassifier and ImageEncoder, and in model soups' ModelWrapper.
_ENCODERS = ("image_encoder.model.", "model.", "")
_HEAD = "classification_head."
# Other tensors that training saves, which are not weights.
_TRAINING = re.compile(r"optim|sched|scaler|callback|loop|rng|loss|metric", re.IGNORECASE)
_ZIP_START = b"PK\x03\x04"
# Functions called by pickles of tensors and plain containers.
_BUILDERS = ("torch.", "collections.", "_rebuild")
_PLAIN = frozenset(
    ("_codecs.encode", *(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in ("set", "bytearray")))
)


@dataclass(frozen=True, kw_only=True)
class StateDict(Checkpoint):
    """A checkpoint whose tensors are mapped by PyTorch.

    Attributes:
        tensors: Tensors by key.
    """

    tensors: dict[str, Tensor]
    _laid_out: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def array(self, key: str, start: int = 0, stop: int | None = None) -> Array:
        """View a run of one tensor's elements; see `Checkpoint.array`.

        For a tensor in another memory order, such as a transpose, a contiguous copy is kept until it is released or
        another such tensor is read: copying for each run would take time quadratic in its size.
        """
        tensor = self.tensors[key].detach()
        if not tensor.is_contiguous():
            laid_out = self._laid_out.get(key)
            if laid_out is None:
                self._laid_out.clear()  # before the next copy, so that there are never two
                self._laid_out[key] = laid_out = tensor.contiguous()
            tensor = laid_out
        return stored(tensor.flatten()[start:stop])

    def release(self, key: str) -> None:
        """Release a tensor's contiguous copy, if there is one; the mapping belongs to PyTorch."""
        self._laid_out.pop(key, None)


def read_state_dict(
    file: Path, state_key: str | None = None
) -> tuple[dict[str, Tensor], dict[str, TensorEntry], str | None]:
    """Map the tensors of a file written by ``torch.save``.

    Args:
        file: The file.
        state_key: Where in the file the weights are, such as ``ema`` or ``ema.shadow``; ``None`` to look for them.

    Returns:
        Tensors and entries by key, and a note for the user.

    Raises:
        CheckpointError: If it holds code or no weights, or is not such a file.
    """
    loaded, in_memory = _load(file)
    tensors, inside, others = _find(file, loaded, state_key)
    check_names(file, tensors)
    entries = {key: _entry(file, key, tensor) for key, tensor in tensors.items()}
    _check_sharing(file, tensors)
    if not in_memory:
        for tensor in tensors.values():
            storage = tensor.untyped_storage()
            guard_range(storage.data_ptr(), storage.nbytes(), file)
    notes = []
    if inside:
        beside = f"; {shorten(others)} holds weights too (--state-key {others[0]} takes them)" if others else ""
        notes.append(f"{file}: the weights are those under {inside}{beside}")
    if in_memory:
        notes.append(f"{file}: is read into memory; saved again as .pt by torch 1.6 or newer, it would be mapped")
    return tensors, entries, "; ".join(notes) or None


def _load(file: Path) -> tuple[Any, bool]:
    """Content of the file, and whether it had to be read into memory."""
    import torch

    try:
        check_pickle(file)
        with open_regular(file) as content, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about TorchScript and pickle protocols, both handled below
            # torch takes a file with this ending for safetensors
            if content.read(4) == _ZIP_START and file.suffix != ".safetensors":
                return torch.load(file, map_location="cpu", weights_only=True, mmap=True), False
            content.seek(0)
            return torch.load(content, map_location="cpu", weights_only=True), True
    except CheckpointError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise _refusal(file, error) from None


def _refusal(file: Path, error: Exception) -> CheckpointError:
    """Explain why a file is refused; for code, give the command that extracts the weights."""
    if isinstance(error, OSError):
        return CheckpointError(f"{file}: cannot be read ({error.strerror or error})")
    text = " ".join(str(error).split())
    code = re.findall(r"GLOBAL (\S+) (?:was not an allowed|whose module)", text)
    if not code or code[0].startswith(
        _BUILDERS
    ):  # in a plain pickle, torch may complain about a function that builds tensors
        code = _names_in(file) or code
    if "TorchScript" in text:
        what = "is a TorchScript archive, which is a program"
    elif code:
        what = f"is a pickle that holds code ({shorten(code, 3)}), which loading would run"
    else:
        return CheckpointError(
            f"{file}: is damaged or not a PyTorch file; download or copy it again ({text[:80] or type(error).__name__})"
        )
    target = file.with_name(f"{file.stem}-weights.pt")
    command = shlex.join(["python", unpickle.__file__, str(file), str(target)])
    return CheckpointError(
        f"{file}: {what}, so clipmerge does not open it. If you trust it, run `{command}` where that code can be "
        f"imported (it needs torch only), and give {target}"
    )


def _names_in(file: Path) -> list[str]:
    """The classes and functions that a file's pickles call, without running them.

    PyTorch's own are listed only for a plain pickle that calls no others: torch opens no plain pickles, whereas in its
    own formats these functions build the tensors.
    """
    names: list[str] = []
    is_plain = False
    with contextlib.suppress(Exception), file.open("rb") as content:
        if content.read(4) == _ZIP_START:
            archive = zipfile.ZipFile(content)
            for member in archive.namelist():
                if member.endswith("/data.pkl"):
                    _add_calls(archive.open(member), names)
        else:
            content.seek(0)
            _add_calls(content, names)
            is_plain = bool(names)
            for _ in range(3):  # before torch 1.6, three pickles without calls preceded the content
                _add_calls(content, names)
    names = list(dict.fromkeys(names))
    foreign = [name for name in names if not name.startswith(_BUILDERS) and name not in _PLAIN]
    return foreign or (names if is_plain else [])


def _add_calls(content: IO[bytes], names: list[str]) -> None:
    """Add the functions called by one pickle; for a damaged pickle, those before the damage."""
    texts: deque[str] = deque(maxlen=2)
    for operation, argument, _ in pickletools.genops(content):
        if isinstance(argument, str) and "UNICODE" in operation.name:
            texts.append(argument)
        elif operation.name in ("GLOBAL", "INST"):
            names.append(str(argument).replace(" ", "."))
        elif operation.name == "STACK_GLOBAL":
            names.append(".".join(texts))


def _find(file: Path, loaded: Any, state_key: str | None) -> tuple[dict[str, Tensor], str, list[str]]:
    """The model's own weights, the names under which they were found, and other places that hold weights."""
    path: list[str] = []
    others: list[str] = []
    seen: set[int] = set()
    if state_key is not None:
        loaded = _at(file, loaded, state_key)
        path.append(state_key)
    while isinstance(loaded, Mapping) and not _holds_tensors(loaded):
        inside = next((name for name in _INSIDE if isinstance(loaded.get(name), Mapping)), None)
        if inside is None:
            raise CheckpointError(
                f"{file}: holds no weights under a known name ({', '.join(_INSIDE)}), but "
                f"{shorten(map(str, loaded)) or 'nothing'}; save the state_dict alone: torch.save(model.state_dict(), "
                "FILE), or name what holds them with --state-key"
            )
        seen.add(id(loaded))
        if state_key is None:
            others += [".".join((*path, each)) for each in _other_weights(loaded, inside)]
        path.append(inside)
        loaded = loaded[inside]
        if id(loaded) in seen:
            raise CheckpointError(
                f"{file}: holds itself under {'.'.join(path)}, but no weights; save the state_dict alone: "
                "torch.save(model.state_dict(), FILE)"
            )
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f"{file}: holds a {type(loaded).__name__}, not a state_dict")
    weights = {str(key): value for key, value in loaded.items() if _is_tensor(value)}
    return weights, ".".join(path), others


def _at(file: Path, loaded: Any, state_key: str) -> Any:
    """What lies under a name, which may itself hold dots; a state dict whose keys begin with it counts as well."""
    if isinstance(loaded, Mapping):
        if state_key in loaded:
            return loaded[state_key]
        first, _, rest = state_key.partition(".")
        if rest and isinstance(loaded.get(first), Mapping):
            return _at(file, loaded[first], rest)
        for place in (loaded, *(loaded[name] for name in _INSIDE if isinstance(loaded.get(name), Mapping))):
            found = {str(key): value for key, value in place.items() if str(key).startswith(f"{state_key}.")}
            if found:
                return {key.removeprefix(f"{state_key}."): value for key, value in found.items()}
    held = shorten(map(str, loaded)) if isinstance(loaded, Mapping) else f"a {type(loaded).__name__}"
    raise CheckpointError(f"{file}: holds nothing under '{state_key}' (--state-key), but {held or 'nothing'}")


def _other_weights(loaded: Mapping[Any, Any], taken: str) -> list[str]:
    """Other names, beside the one that was taken, that hold a model's weights, such as a moving average's."""
    found = []
    for name, value in loaded.items():
        if str(name) == taken or not isinstance(value, Mapping) or _TRAINING.search(str(name)):
            continue
        nested = [inner for inner, held in value.items() if isinstance(held, Mapping) and _holds_tensors(held)]
        if _holds_tensors(value):
            found.append(str(name))
        elif "ema" in str(name).lower() and nested:
            found.append(f"{name}.{nested[0]}")
    return found


def _holds_tensors(loaded: Mapping[Any, Any]) -> bool:
    return any(map(_is_tensor, loaded.values()))


def _is_tensor(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


def model_keys(keys: Iterable[str]) -> dict[str, str]:
    """Rename a state dict's keys to the names used by the model inside.

    Removes the prefixes of data parallel training and torch.compile and, for a WiSE-FT or model-soups classifier, the
    encoder's prefix and the remains of the text tower, which are not used.

    Args:
        keys: Keys in the file.

    Returns:
        Keys by name.
    """
    names = {key: key for key in keys}
    for prefix in _PARALLEL * 2:
        if all(name.startswith(prefix) for name in names):
            names = {name.removeprefix(prefix): key for name, key in names.items()}
    for prefix in _ENCODERS:
        inside = {name.removeprefix(prefix): key for name, key in names.items() if name.startswith(prefix)}
        heads = {name: key for name, key in names.items() if name.startswith(_HEAD)}
        is_encoder = (prefix or heads) and any(name.startswith("visual.") for name in inside)
        if is_encoder and len(inside.keys() | heads.keys()) == len(names):
            has_text = any(name.startswith("transformer.") for name in inside)
            visual = {name: key for name, key in inside.items() if has_text or name.startswith("visual.")}
            return {**visual, **heads}
    return names


def _check_sharing(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors that are views of far smaller storage: of one number, or all of the same few."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    held = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in tensors.values()
        if tensor.layout.__str__() == "torch.strided" and not tensor.is_meta
    }
    if held and size > MOST_SHARING * max(sum(held.values()), 1):
        raise CheckpointError(
            f"{file}: its tensors span {told_size(size)}, but it holds only {told_size(sum(held.values()))}; save "
            "contiguous tensors: {key: tensor.contiguous() ...}"
        )


def _entry(file: Path, key: str, tensor: Tensor) -> TensorEntry:
    import torch

    dtype = _NAMES.get(str(tensor.dtype).removeprefix("torch."))
    if dtype is None or tensor.layout != torch.strided or tensor.is_meta:
        kind = "without content" if tensor.is_meta else f"{str(tensor.layout).removeprefix('torch.')} of {tensor.dtype}"
        raise CheckpointError(
            f"{file}: {key} is {kind}; clipmerge merges plain tensors of {', '.join(sorted(FLOATS))}. "
            "Dequantise the checkpoint first"
        )
    return TensorEntry(file, dtype, tuple(tensor.shape), 0, tensor.numel() * tensor.element_size())
