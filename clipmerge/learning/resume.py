"""Checkpoints of learning in the user's cache, so that an interrupted run can resume.

There is one file per run of learning, named by a hash of everything that determines the result:
only the same command finds it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from clipmerge import __version__
from clipmerge.checkpoint import Inputs
from clipmerge.distributed import DistributedContext, broadcast_
from clipmerge.files.paths import user_cache
from clipmerge.files.safetensors import DTYPES, header_bytes
from clipmerge.images.fingerprints import content_digest
from clipmerge.images.image_set import LabelledImages
from clipmerge.types import Tensors

#: Minimum time between two saves: in seconds, and as a multiple of the duration of the last one.
SECONDS, TIMES = 30.0, 20
# States and partly written states of this age are removed: nobody will resume them.
_OLD_SECONDS, _GONE_SECONDS = 30 * 86400, 600
# The code that determines the learned coefficients, which may change without a new version number.
_CODE = (
    "learning/**/*.py",
    "measures/**/*.py",
    "models/**/*.py",
    "images/batches.py",
    "planning/stragglers.py",
)
_SUFFIX, _HALF = ".safetensors", ".part"
_NAMES = {getattr(torch, name): stored for stored, (name, _) in DTYPES.items()}


class LearningState:
    """The state of one run of learning, in one file that only the main process reads and writes."""

    def __init__(
        self, find: Callable[[], Path], context: DistributedContext, say: Callable[[str], None]
    ) -> None:
        """Store the arguments; nothing is read or written."""
        self._find = find
        self._context = context
        self.say = say
        self._exists = self._failed = False
        self._whole: Mapping[str, Tensor] | None = None
        self._due = time.monotonic() + SECONDS

    @cached_property
    def _path(self) -> Path:
        return self._find()

    def restore(self, state: Mapping[str, Tensor]) -> bool:
        """Restore the state that an earlier run saved, the same in every process, and say whether
        there was one.
        """
        older = self._read(state) if self._context.is_main_process else None
        exists = torch.tensor(float(older is not None))
        broadcast_(self._context, exists)
        if not exists:
            return False
        for name, tensor in state.items():
            if older is not None:
                tensor.copy_(older[name])
            broadcast_(self._context, tensor)
        self._exists = True
        return True

    def _read(self, state: Mapping[str, Tensor]) -> Tensors | None:
        """The file's content if it is complete and fits; otherwise it is removed, with a note for
        the user.
        """
        try:
            older = load_file(self._path)
            fits = older.keys() == state.keys() and all(
                older[name].shape == tensor.shape
                and older[name].dtype == tensor.dtype
                and older[name].isfinite().all()
                for name, tensor in state.items()
            )
            if fits:
                return older
            problem = f"{self._path} does not fit"
        except FileNotFoundError:
            return None
        except (OSError, RuntimeError, SafetensorError) as error:
            # RuntimeError: the user has no home folder
            problem = _reason(error)
        self.say(
            f"the state saved by an earlier run cannot be used ({problem}); learning starts over"
        )
        self._remove()
        return None

    def _remove(self) -> None:
        with contextlib.suppress(OSError, RuntimeError):
            self._path.unlink(missing_ok=True)

    def save(self, state: Mapping[str, Tensor], *, last: bool = False) -> None:
        """Save the state if it is time for it; a file that cannot be written is reported once."""
        begin = time.monotonic()
        self._whole = state
        is_time = self._exists if last else begin >= self._due
        if self._failed or not is_time or not self._context.is_main_process:
            return
        self._write(state)
        now = time.monotonic()
        self._due = now + max(SECONDS, TIMES * (now - begin))

    def _write(self, state: Mapping[str, Tensor]) -> None:
        try:
            _write_whole(self._path, state)
            self._exists = True
        except (OSError, RuntimeError) as error:
            self._failed = True
            self.say(
                f"the state of learning cannot be saved ({_reason(error)}); learning continues"
                " without saving"
            )

    @contextlib.contextmanager
    def underway(self) -> Iterator[None]:
        """If the block is interrupted, save the state if it is whole, and tell the user where
        learning resumes.
        """
        try:
            yield
        except KeyboardInterrupt as interrupted:
            state = self._whole
            steps = ""
            if state is not None and not self._failed and self._context.is_main_process:
                self._write(state)
                steps = f" after step {int(state['taken'])} of {len(state['trace'])}"
            self.tell_stopped(interrupted, steps)
            raise
        del self._find  # frees the model and the images that the function refers to

    def tell_stopped(self, stopped: BaseException, steps: str = "") -> None:
        """Tell the user where the same command resumes, if the state is saved."""
        if self._exists:
            self.say(f"the learning is saved{steps}; the same command resumes there")
            # else the last line says that nothing was left behind
            stopped.add_note("no output was written")

    def remove(self) -> None:
        """Remove the file once its result is stored elsewhere."""
        if self._exists and self._context.is_main_process:
            self._remove()
        self._exists = False


def _reason(error: Exception) -> str:
    named = (
        f"{error.filename}: {error.strerror}"
        if isinstance(error, OSError) and error.filename
        else str(error)
    )
    return " ".join(named.split())[:200]


def _write_whole(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write to a temporary file in the same folder, sync it, and rename it; remove old files of
    other runs.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _clear(path.parent)
    handle, name = tempfile.mkstemp(prefix=f"{path.stem[:16]}-", suffix=_HALF, dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            _write(file, state)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _write(file: BinaryIO, state: Mapping[str, Tensor]) -> None:
    """Write as safetensors, tensor by tensor: the library copies all of them first, or maps a disk
    that may fill.
    """
    file.write(
        header_bytes(
            {name: (_NAMES[tensor.dtype], tensor.shape) for name, tensor in state.items()}, {}
        )
    )
    for tensor in state.values():
        file.write(_bytes(tensor))


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _clear(folder: Path) -> None:
    now = time.time()
    for file in folder.iterdir():
        limit = {_SUFFIX: _OLD_SECONDS, _HALF: _GONE_SECONDS}.get(file.suffix)
        with contextlib.suppress(OSError):  # another run may have removed it
            if limit is not None and now - file.stat().st_mtime > limit:
                file.unlink()


def state_file(
    inputs: Inputs,
    images: LabelledImages,
    seen: list[Tensor],
    settings: Any,
    folder: Path | None = None,
) -> Path:
    """The file of the state of one run of learning, named by everything that determines its
    result.
    """
    what = {
        "versions": [__version__, torch.__version__],
        "code": [_digest(file.read_bytes()) for file in code_files()],
        "checkpoints": [
            [checkpoint.provenance(), checkpoint.config] for checkpoint in inputs.checkpoints
        ],
        "images": content_digest(images),
        "labels": images.labels,
        "seen": [_digest(_bytes(tensor)) for tensor in seen],
        "settings": settings,
    }
    return (
        folder or user_cache("learning")
    ) / f"{_digest(json.dumps(what, sort_keys=True).encode())}{_SUFFIX}"


def code_files() -> list[Path]:
    """The source files that determine the learned coefficients for given inputs, sorted."""
    package = Path(__file__).parents[1]
    return sorted(file for pattern in _CODE for file in package.glob(pattern))


def _digest(content: bytes | memoryview) -> str:
    return hashlib.sha256(content).hexdigest()
