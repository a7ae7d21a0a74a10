"""Answers that an evaluation has given so far, in files, so that an interrupted evaluation can resume.

There is one file per batch of a source, and in it one tensor per point: the class that each image was given.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Answered:
    """Answers in a folder, whose name is a hash of everything that all of them depend on.

    Attributes:
        folder: The folder.
        sources: For each source a text that identifies its images and how they are given to the model; a source without
            one is evaluated again.
    """

    folder: Path
    sources: Mapping[str, str]

    def known(self, source: str, start: int, size: int, points: Sequence[str]) -> dict[str, NDArray[np.int64]]:
        """Read the answers to one batch.

        Args:
            source: Name of the source.
            start: The batch's first image.
            size: Number of its images.
            points: Keys of the points.

        Returns:
            Class indices, shape (size,), by point; points that have not answered are left out.
        """
        held = self._read(source, start)
        return {key: held[key].astype(np.int64) for key in points if key in held and held[key].shape == (size,)}

    def keep(self, source: str, start: int, answers: Mapping[str, Sequence[int]]) -> None:
        """Keep answers to one batch; a folder that cannot be written costs only the resumption.

        Args:
            source: Name of the source.
            start: The batch's first image.
            answers: Class indices by point.
        """
        from safetensors.numpy import save

        file = self._file(source, start)
        if file is None or not answers:
            return
        held = self._read(source, start) | {key: np.asarray(best, dtype=np.int32) for key, best in answers.items()}
        with contextlib.suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            part = file.with_suffix(f".{os.getpid()}.part")
            part.write_bytes(save(held))
            part.replace(file)

    def _read(self, source: str, start: int) -> dict[str, NDArray[np.int32]]:
        from safetensors import SafetensorError
        from safetensors.numpy import load

        file = self._file(source, start)
        if file is None:
            return {}
        try:
            return dict(load(file.read_bytes()))
        except (OSError, SafetensorError):  # missing, or truncated by a crash of the machine
            return {}

    def _file(self, source: str, start: int) -> Path | None:
        described = self.sources.get(source)
        if described is None:
            return None
        digest = hashlib.sha256(described.encode()).hexdigest()[:32]
        return self.folder / digest / f"{start:08d}.safetensors"
