"""Classify images at many points of the path, decoding every image once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch import Tensor

from clipmerge.checkpoint import Inputs
from clipmerge.distributed import together
from clipmerge.evaluation.accuracy import answers
from clipmerge.evaluation.moving_model import MovingModel
from clipmerge.evaluation.sources import check_source_name
from clipmerge.images.batches import Batch, batch_size_for, read_batches
from clipmerge.images.dataset import LabelledImages
from clipmerge.images.prompts import templates_for
from clipmerge.models import ImageTextModel
from clipmerge.models.zero_shot import class_embeddings

if TYPE_CHECKING:
    from clipmerge.planning.choices import OutputDtype
    from clipmerge.progress import Progress

#: Whether each image was recognised: shape (points, images).
Correct = NDArray[np.bool_]
#: The class predicted for each image: shape (points, images).
Answers = NDArray[np.int64]
#: Bytes of preprocessed images held at once; every point classifies them before more are decoded.
HELD = 2 << 30


# Class names and templates.
_ClassPrompts = tuple[tuple[str, ...], tuple[str, ...]]
#: Sets the model's weights to those of one point.
Move = Callable[[MovingModel], None]


@dataclass(frozen=True)
class _SourceBatch:
    """One batch of a source, and the position of its first image in the source."""

    source: str
    start: int
    batch: Batch


class Scorer:
    """One model on the device, moved from point to point."""

    def __init__(
        self,
        model: ImageTextModel,
        inputs: Inputs,
        accelerator: Accelerator,
        *,
        templates: tuple[str, ...],
        batch_size: int | None = None,
        images_at_once: int | None = None,
        dtype: OutputDtype = "keep",
        held: int = HELD,
    ) -> None:
        """Load both ends.

        Args:
            model: The model without weights.
            inputs: The checkpoints.
            accelerator: Places the model, and gathers the results of several processes.
            templates: Prompt templates for every source; if empty, each source's own, or the default.
            batch_size: Images per batch; by default that of `evaluate`.
            images_at_once: Images that go through the model at once; ``None`` for a batch.
            dtype: Dtype that the points are rounded to.
            held: Bytes of preprocessed images held at once.
        """
        self._moving = MovingModel(model, inputs, accelerator.device, dtype=dtype)
        self._accelerator = accelerator
        self._templates = templates
        self._batch_size = batch_size
        self._images_at_once = images_at_once
        self._held = held
        # class embeddings by point; points with the same text tower share one tensor
        self._classes: dict[tuple[int, _ClassPrompts], Tensor] = {}
        self._last: dict[_ClassPrompts, tuple[int, Tensor]] = {}

    def score(
        self, moves: Sequence[Move], sources: dict[str, LabelledImages], progress: Progress
    ) -> dict[str, Correct]:
        """Evaluate every point on every source; takes and raises the same as `answer`.

        Returns:
            correct[source]: whether each image was recognised, shape (points, images), in every process.
        """
        given = self.answer(moves, sources, progress)
        return {name: given[name] == np.asarray(images.labels) for name, images in sources.items()}

    @torch.inference_mode()
    def answer(
        self, moves: Sequence[Move], sources: dict[str, LabelledImages], progress: Progress
    ) -> dict[str, Answers]:
        """Classify every image of every source at every point.

        Args:
            moves: Functions that move the model to each point.
            sources: Images by name; all are used.
            progress: Receiver of progress reports.

        Returns:
            answers[source]: class indices, shape (points, images), in every process.

        Raises:
            DataError: If an image cannot be decoded.
            CheckpointError: If a point's weights are not finite.
        """
        outcomes: list[tuple[str, int, int, list[int]]] = []
        total = len(moves) * sum(map(len, sources.values())) / self._accelerator.num_processes
        done = 0
        for load in loads(self._batches(sources), self._held):
            for number, move in enumerate(moves):
                move(self._moving)
                for part in load:
                    best = self._answers(number, part.batch, sources[part.source])
                    outcomes.append((part.source, number, part.start, best))
                    done += len(best)
                    progress.advance(done, total)
        if self._accelerator.num_processes > 1:
            with together():
                outcomes = gather_object(outcomes)
        given = {name: np.zeros((len(moves), len(images)), dtype=np.int64) for name, images in sources.items()}
        for name, number, start, best in outcomes:
            given[name][number, start : start + len(best)] = best
        return given

    def _batches(self, sources: dict[str, LabelledImages]) -> Iterator[_SourceBatch]:
        share = (self._accelerator.process_index, self._accelerator.num_processes)
        for name, images in sources.items():
            size = batch_size_for(len(images), self._batch_size)
            for batch in read_batches(images, size, self._moving.model.pixels, share=share):
                yield _SourceBatch(name, batch.number * size, batch)

    def _answers(self, number: int, batch: Batch, images: LabelledImages) -> list[int]:
        device = self._accelerator.device
        templates = templates_for(self._templates, images.templates)
        classes = self._class_embeddings(number, (images.class_names, templates))
        pixels = batch.pixels.to(device)
        best: list[int] = answers(self._moving.model, pixels, classes, self._images_at_once).tolist()
        return best

    def _class_embeddings(self, number: int, prompts: _ClassPrompts) -> Tensor:
        if (number, prompts) not in self._classes:
            version = self._moving.text_version
            if self._last.get(prompts, (None,))[0] != version:
                embedded = class_embeddings(self._moving.model, *prompts, self._accelerator.device)
                self._last[prompts] = (version, embedded)
            self._classes[number, prompts] = self._last[prompts][1]
        return self._classes[number, prompts]


def loads(batches: Iterable[_SourceBatch], held: int) -> Iterator[list[_SourceBatch]]:
    """Group batches into loads of at most ``held`` bytes, and at least one batch."""
    load: list[_SourceBatch] = []
    size = 0
    for part in batches:
        size += part.batch.pixels.nbytes
        if load and size > held:
            yield load
            load, size = [], part.batch.pixels.nbytes
        load.append(part)
    if load:
        yield load


def write_correct(path: Path, correct: dict[str, Correct]) -> None:
    """Write which images were recognised: one tensor per source, shape (points, images), bool.

    Args:
        path: The safetensors file.
        correct: Result of `Scorer.score`.

    Raises:
        UsageError: If a source has a name that a tensor cannot have.
    """
    from safetensors.numpy import save

    for name in correct:
        check_source_name(name)
    path.write_bytes(save({name: np.ascontiguousarray(right) for name, right in correct.items()}))
