"""Save the state of learning in the user's cache. After an interruption, the same command resumes
and ends with the same bits.

Each run of learning has one file, named by a hash of everything that determines the result.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor

from clipmerge import __version__
from clipmerge.distributed import DistributedContext, broadcast_
from clipmerge.files import user_cache

#: Seconds between two saves.
SECONDS = 30.0
# Older states are removed: nobody will resume them.
_OLD_SECONDS = 30 * 86400


class LearningState:
    """The state of one run of learning, in a file that the main process writes."""

    def __init__(self, file: Path, context: DistributedContext, say: Callable[[str], None]) -> None:
        """Store the arguments; nothing is read or written."""
        self._file, self._context, self._say = file, context, say
        self._adam: Any = None
        self._scaler: Any = None
        self._tensors: list[Tensor] = []
        self._steps = 0
        self._due = time.monotonic() + SECONDS

    def restore(self, adam: Any, scaler: Any, trace: Tensor) -> int:
        """Restore the state that an earlier run saved, in every process, and return its number of
        steps; 0 if there is none.
        """
        self._adam, self._scaler, self._tensors = adam, scaler, [*adam.tensors(), trace]
        is_saved = self._context.is_main_process and self._file.is_file()
        found = self._load() if is_saved else None
        shared = [(found["steps"], found["scaler"]) if found else (0, {})]
        broadcast_object_list(shared)
        self._steps, scale = shared[0]
        if self._steps:
            for number, tensor in enumerate(self._tensors):
                if found:
                    tensor.copy_(found["tensors"][number])
                broadcast_(self._context, tensor)
            adam.steps_taken = self._steps
            scaler.load_state_dict(scale)
            self._say(f"learning resumes after step {self._steps}, saved by an earlier run")
        return self._steps

    def _load(self) -> Any:
        """Load the state that an earlier run saved; ``None`` if the file is damaged."""
        try:
            return torch.load(self._file, map_location="cpu", weights_only=True)  # noqa: TID251 - our own, tensors
        except Exception as error:  # a damaged file makes torch raise anything
            self._say(f"the saved state of learning cannot be used ({error}); starting over")
            return None

    def save(self, steps: int) -> None:
        """Set the number of finished steps, and write the state if the last write is old."""
        self._steps = steps
        if time.monotonic() >= self._due:
            self._write()
            self._due = time.monotonic() + SECONDS

    def release(self) -> None:
        """Free the optimizer and save no more states. A later interruption repeats a few steps."""
        self._steps = 0
        self._adam, self._scaler, self._tensors = None, None, []

    def _write(self) -> None:
        """Write the state to the file, if the last step is complete."""
        if not self._context.is_main_process or not self._steps:
            return
        if self._adam.steps_taken != self._steps:  # interrupted in the middle of a step
            return
        scale = self._scaler.state_dict()
        state = {"steps": self._steps, "scaler": scale, "tensors": self._tensors}
        part = self._file.with_suffix(".part")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            for file in self._file.parent.iterdir():
                if time.time() - file.stat().st_mtime > _OLD_SECONDS:
                    file.unlink()
            torch.save(state, part)
            part.replace(self._file)
        except (OSError, RuntimeError) as error:  # torch's own where the disk is full
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            self._say(f"the state of learning cannot be saved ({error}); learning goes on")

    @contextlib.contextmanager
    def saving_if_interrupted(self) -> Iterator[None]:
        """Save the state if the block is interrupted, and say that the same command resumes."""
        try:
            yield
        except KeyboardInterrupt:
            self._write()
            if self._file.is_file():
                self._say("the learning is saved; the same command resumes there")
            raise

    def remove(self) -> None:
        """Delete the file, once the result of learning is stored elsewhere."""
        if self._context.is_main_process:
            with contextlib.suppress(OSError):
                self._file.unlink(missing_ok=True)


def state_file(request: Any, folder: Path | None = None) -> Path:
    """Return the file of a run of learning, named by a hash of everything that determines its
    result.
    """
    what = json.dumps([__version__, torch.__version__, request], sort_keys=True, default=str)
    name = hashlib.sha256(what.encode()).hexdigest()
    return (folder or user_cache("learning")) / f"{name}.pt"
