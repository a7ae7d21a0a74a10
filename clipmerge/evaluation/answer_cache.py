"""Answers that an evaluation has given so far, in files, so that an interrupted evaluation can
resume.

There is one file per batch of a source, and in it one tensor per point: the class that each image
was given.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from clipmerge.files.paths import replace_bytes


@dataclass(frozen=True)
class AnswerCache:
    """Answers in a folder, whose name is a hash of everything that all of them depend on."""

    folder: Path
    # for each source a text that identifies its images and how they are given to the model; a
    # source without one is evaluated again
    sources: Mapping[str, str]

    def read(
        self, source: str, start: int, size: int, points: Sequence[str]
    ) -> dict[str, NDArray[np.int64]]:
        """Class indices (size,) of the batch that starts with an image, by point, for the points
        that are known.
        """
        stored = self._stored(source, start)
        return {
            key: stored[key].astype(np.int64)
            for key in points
            if key in stored and stored[key].shape == (size,)
        }

    def add(self, source: str, start: int, answers: Mapping[str, Sequence[int]]) -> None:
        """Add answers to one batch by point; a folder that cannot be written costs only the
        resumption.
        """
        file = self._file(source, start)
        if file is None or not answers:
            return
        stored = self._stored(source, start) | {
            key: np.asarray(best, np.int32) for key, best in answers.items()
        }
        with contextlib.suppress(OSError):
            replace_bytes(file, save(stored))

    def _stored(self, source: str, start: int) -> dict[str, NDArray[np.int32]]:
        file = self._file(source, start)
        try:
            return {} if file is None else dict(load(file.read_bytes()))
        except (OSError, SafetensorError):  # missing, or truncated by a crash of the machine
            return {}

    def _file(self, source: str, start: int) -> Path | None:
        described = self.sources.get(source)
        if described is None:
            return None
        digest = hashlib.sha256(described.encode()).hexdigest()[:32]
        return self.folder / digest / f"{start:08d}.safetensors"
