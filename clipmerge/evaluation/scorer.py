"""Classify images at many points of the path, decoding every image once."""

from __future__ import annotations

from collections import Counter
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
from clipmerge.evaluation.answered import Answered
from clipmerge.evaluation.answerer import Answerer
from clipmerge.evaluation.moving_model import MovingModel
from clipmerge.evaluation.sources import check_source_name
from clipmerge.images.batches import Batch, batch_size_for, read_batches
from clipmerge.images.dataset import LabelledImages
from clipmerge.images.prompts import templates_for
from clipmerge.models import ImageTextModel
from clipmerge.models.freed_memory import freed_memory_kept
from clipmerge.models.headed_tower import HeadedTower, grouped
from clipmerge.models.zero_shot import class_embeddings
from clipmerge.progress import Pace

if TYPE_CHECKING:
    from clipmerge.choices import OutputDtype
    from clipmerge.progress import Progress

#: Whether each image was recognised: shape (points, images).
Correct = NDArray[np.bool_]
#: The class predicted for each image: shape (points, images).
Answers = NDArray[np.int64]
#: Bytes of preprocessed images held at once; every point classifies them before more are decoded.
HELD = 2 << 30


# Source, number of the point, first image of a batch, and the classes that its images were given.
_Outcome = tuple[str, int, int, list[int]]
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
        model: ImageTextModel | HeadedTower,
        inputs: Inputs,
        accelerator: Accelerator,
        *,
        templates: tuple[str, ...],
        batch_size: int | None = None,
        images_at_once: int | None = None,
        dtype: OutputDtype = "keep",
        held: int = HELD,
        answered: Answered | None = None,
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
            answered: Answers of an earlier, interrupted run; those of this run are added.
        """
        self._model = model
        self._moving = MovingModel(model, inputs, accelerator.device, dtype=dtype)
        self._accelerator = accelerator
        self._templates = templates
        self._batch_size = batch_size
        self._images_at_once = images_at_once
        self._held = held
        self._answered = answered
        # class embeddings by point; points with the same text tower share one tensor
        self._classes: dict[tuple[int, _ClassPrompts], Tensor] = {}
        self._answerers: dict[tuple[int, str, _ClassPrompts], Answerer] = {}
        self._last: dict[_ClassPrompts, tuple[int, Tensor]] = {}
        # number of prompts whose cost has been reported
        self._told: set[_ClassPrompts] = set()

    def score(
        self,
        moves: Sequence[Move],
        sources: dict[str, LabelledImages],
        progress: Progress,
        *,
        keys: Sequence[str] = (),
    ) -> dict[str, Correct]:
        """Evaluate every point on every source; takes and raises the same as `answer`.

        Returns:
            correct[source]: whether each image was recognised, shape (points, images), in every process.
        """
        on_cpu = self._accelerator.device.type == "cpu"
        pace = Pace(progress, _cost(len(moves), sources) if on_cpu else None)
        given = self.answer(moves, sources, pace, keys=keys)
        return {name: given[name] == np.asarray(images.labels) for name, images in sources.items()}

    @torch.inference_mode()
    @freed_memory_kept()
    def answer(
        self,
        moves: Sequence[Move],
        sources: dict[str, LabelledImages],
        progress: Progress,
        *,
        keys: Sequence[str] = (),
    ) -> dict[str, Answers]:
        """Classify every image of every source at every point.

        Args:
            moves: Functions that move the model to each point.
            sources: Images by name; all are used.
            progress: Receiver of progress reports.
            keys: A text for each point, under which its answers are kept.

        Returns:
            answers[source]: class indices, shape (points, images), in every process.

        Raises:
            DataError: If an image cannot be decoded.
            CheckpointError: If a point's weights are not finite.
        """
        outcomes = self._known(sources, keys)
        known = {(name, number, start) for name, number, start, _ in outcomes}
        total = len(moves) * sum(map(len, sources.values())) / self._accelerator.num_processes
        done = sum(len(best) for *_, best in outcomes)
        for load in loads(self._batches(sources, known, len(moves)), self._held):
            for number, move in enumerate(moves):
                begin = len(outcomes)
                parts = [part for part in load if (part.source, number, part.start) not in known]
                if parts:
                    move(self._moving)
                for part in parts:
                    best = self._answers(number, part.batch, sources[part.source], progress)
                    outcomes.append((part.source, number, part.start, best))
                    done += len(best)
                    progress.advance(done, total)
                self._keep(outcomes[begin:], keys)
        if self._accelerator.num_processes > 1:
            with together():
                outcomes = gather_object(outcomes)
        given = {name: np.zeros((len(moves), len(images)), dtype=np.int64) for name, images in sources.items()}
        for name, number, start, best in outcomes:
            given[name][number, start : start + len(best)] = best
        return given

    def _known(self, sources: dict[str, LabelledImages], keys: Sequence[str]) -> list[_Outcome]:
        """Answers of an earlier run for this process's share of the batches."""
        if self._answered is None:
            return []
        outcomes: list[_Outcome] = []
        rank, world = self._accelerator.process_index, self._accelerator.num_processes
        for name, images in sources.items():
            size = batch_size_for(len(images), self._batch_size)
            for start in range(rank * size, len(images), world * size):
                held = self._answered.known(name, start, min(size, len(images) - start), keys)
                outcomes += [(name, keys.index(key), start, best.tolist()) for key, best in held.items()]
        return outcomes

    def _keep(self, outcomes: Sequence[_Outcome], keys: Sequence[str]) -> None:
        if self._answered is None:
            return
        batches: dict[tuple[str, int], dict[str, list[int]]] = {}
        for name, number, start, best in outcomes:
            batches.setdefault((name, start), {})[keys[number]] = best
        for (name, start), best_by_point in batches.items():
            self._answered.keep(name, start, best_by_point)

    def _batches(
        self, sources: dict[str, LabelledImages], known: set[tuple[str, int, int]], points: int
    ) -> Iterator[_SourceBatch]:
        share = (self._accelerator.process_index, self._accelerator.num_processes)
        for name, images in sources.items():
            size = batch_size_for(len(images), self._batch_size)
            starts = Counter(start for source, _, start in known if source == name)
            skipped = {start // size for start, count in starts.items() if count == points}
            for batch in read_batches(images, size, self._model.pixels, share=share, skipped=skipped):
                yield _SourceBatch(name, batch.number * size, batch)

    def _answers(self, number: int, batch: Batch, images: LabelledImages, progress: Progress) -> list[int]:
        device, model = self._accelerator.device, self._model
        pixels = batch.pixels.to(device)
        if isinstance(model, HeadedTower):
            rows = model.rows_for(images.source, len(images.class_names), images.imagenet_rows)
            pieces = torch.split(pixels, self._images_at_once or len(pixels))
            found = torch.cat([grouped(model.logits(piece), rows).argmax(dim=1) for piece in pieces])
        else:
            found = self._answerer(model, number, images, progress).answer(pixels)
        best: list[int] = found.tolist()
        return best

    def _answerer(self, model: ImageTextModel, number: int, images: LabelledImages, progress: Progress) -> Answerer:
        prompts = (images.class_names, templates_for(self._templates, images.templates))
        key = (number, images.source, prompts)
        if key not in self._answerers:
            classes = self._class_embeddings(model, number, prompts, progress)
            self._answerers[key] = Answerer(model, classes, self._images_at_once)
        return self._answerers[key]

    def _class_embeddings(
        self, model: ImageTextModel, number: int, prompts: _ClassPrompts, progress: Progress
    ) -> Tensor:
        if (number, prompts) not in self._classes:
            version = self._moving.text_version
            if self._last.get(prompts, (None,))[0] != version:
                say = None if prompts in self._told else progress.say
                self._told.add(prompts)
                embedded = class_embeddings(model, *prompts, self._accelerator.device, say)
                self._last[prompts] = (version, embedded)
            self._classes[number, prompts] = self._last[prompts][1]
        return self._classes[number, prompts]


def _cost(points: int, sources: dict[str, LabelledImages]) -> Callable[[float, str], str]:
    images = sum(map(len, sources.values()))
    return lambda passes, time: (
        f"classifying {images:,} images by {points} models on the CPU, {passes:,.0f} forward passes: about {time}"
    )


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
    """Write whether each image was recognised: one tensor per source, shape (points, images), bool.

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
