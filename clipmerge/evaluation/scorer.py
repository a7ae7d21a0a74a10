"""Classify images at many points of the path, decoding every image once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import gather_object
from numpy.typing import NDArray
from safetensors.numpy import save
from torch import Tensor

from clipmerge.checkpoint import Inputs
from clipmerge.distributed import device_work, peer_errors
from clipmerge.evaluation.bf16_classifier import Bf16Classifier
from clipmerge.evaluation.moving_model import MovingModel
from clipmerge.evaluation.settings import EvalSettings
from clipmerge.evaluation.tradeoff import Correct
from clipmerge.images.batches import Batch, batch_size_for, read_batches
from clipmerge.images.dataset import LabelledImages
from clipmerge.images.prompts import templates_for
from clipmerge.models import ImageTextModel
from clipmerge.models.headed_tower import HeadedTower, grouped
from clipmerge.models.memory import MicroBatcher, freed_memory_kept, memory
from clipmerge.models.zero_shot import class_embeddings
from clipmerge.progress import Pace, Progress
from clipmerge.request import check_source_name

#: The class predicted for each image: shape (points, images).
Answers = NDArray[np.int64]
#: Sets the model's weights to those of one point.
Move = Callable[[MovingModel], None]
# Bytes of preprocessed images in memory at once; every point classifies them before more are
# decoded.
_LOAD_BYTES = 2 << 30
# Share of what is free on a card that they may take there.
_SHARE_OF_FREE = 0.25
# Source, position of the batch's first image in it, and the batch.
_SourceBatch = tuple[str, int, Batch]
# Source, number of the point, first image of a batch, and the classes that its images were given.
_Outcome = tuple[str, int, int, list[int]]
# Class names and templates.
_ClassPrompts = tuple[tuple[str, ...], tuple[str, ...]]


class Scorer:
    """One model on the device, moved from point to point."""

    def __init__(
        self,
        model: ImageTextModel | HeadedTower,
        inputs: Inputs,
        settings: EvalSettings,
        *,
        load_bytes: int = _LOAD_BYTES,
    ) -> None:
        self._model = model
        self._moving = MovingModel(model, inputs, settings.context.device, dtype=settings.dtype)
        self._settings = settings
        self._load_bytes = load_bytes
        # class embeddings by point; points with the same text tower share one tensor
        self._classes: dict[tuple[int, _ClassPrompts], Tensor] = {}
        self._classifiers: dict[tuple[int, str, _ClassPrompts], Bf16Classifier] = {}
        # the text tower's version that prompts were embedded with last, and their embeddings
        self._last: dict[_ClassPrompts, tuple[int, Tensor]] = {}

    def score(
        self, moves: Sequence[Move], sources: dict[str, LabelledImages], progress: Progress
    ) -> dict[str, Correct]:
        """Whether each image was recognised, by source, shape (points, images); arguments as for
        `answer`.
        """
        images = sum(map(len, sources.values()))
        sentence = f"classifying {images:,} images by {len(moves)} models on the CPU takes about"
        pace = Pace(progress, self._settings.context.device, sentence)
        given = self.answer(moves, sources, pace)
        return {name: given[name] == np.asarray(images.labels) for name, images in sources.items()}

    @torch.inference_mode()
    @device_work()
    @freed_memory_kept()
    def answer(
        self, moves: Sequence[Move], sources: dict[str, LabelledImages], progress: Progress
    ) -> dict[str, Answers]:
        """Class indices by source (points, images), in every process."""
        _, processes = self._settings.share
        outcomes: list[_Outcome] = []
        total = len(moves) * sum(map(len, sources.values())) / processes
        done = 0
        most = self._load_bytes
        if self._settings.context.device.type != "cpu":  # they stay there for all points
            most = min(most, int(_SHARE_OF_FREE * memory(self._settings.context.device)))
        pieces = MicroBatcher(self._settings.images_at_once, progress.say)
        for load in loads(self._batches(sources), most):
            for number, move in enumerate(moves):
                move(self._moving)
                for name, start, batch in load:
                    best = self._answers(number, batch, sources[name], pieces, progress)
                    outcomes.append((name, number, start, best))
                    done += len(best)
                    progress.advance(done, total)
        if processes > 1:
            with peer_errors():
                outcomes = gather_object(outcomes)
        given = {
            name: np.zeros((len(moves), len(images)), dtype=np.int64)
            for name, images in sources.items()
        }
        for name, number, start, best in outcomes:
            given[name][number, start : start + len(best)] = best
        return given

    def _batches(self, sources: dict[str, LabelledImages]) -> Iterator[_SourceBatch]:
        for name, images in sources.items():
            size = batch_size_for(len(images), self._settings.batch_size)
            for batch in read_batches(images, size, self._model.pixels, share=self._settings.share):
                yield name, batch.number * size, batch.to(self._settings.context.device)

    def _answers(
        self,
        number: int,
        batch: Batch,
        images: LabelledImages,
        pieces: MicroBatcher,
        progress: Progress,
    ) -> list[int]:
        model = self._model
        if isinstance(model, HeadedTower):
            rows = model.rows_for(images.source, len(images.class_names), images.imagenet_rows)
            found = pieces.forward(
                lambda piece: grouped(model.logits(piece), rows).argmax(dim=1), batch.pixels
            )
        else:
            prompts = (
                images.class_names,
                templates_for(self._settings.templates, images.templates),
            )
            key = (number, images.source, prompts)
            if key not in self._classifiers:
                classes = self._class_embeddings(model, number, prompts, progress)
                self._classifiers[key] = Bf16Classifier(model, classes, pieces, len(images))
            found = self._classifiers[key].classify(batch.pixels)
        best: list[int] = found.tolist()
        return best

    def _class_embeddings(
        self, model: ImageTextModel, number: int, prompts: _ClassPrompts, progress: Progress
    ) -> Tensor:
        if (number, prompts) not in self._classes:
            version = self._moving.text_version
            if prompts not in self._last or self._last[prompts][0] != version:
                say = None if prompts in self._last else progress.say  # the cost is reported once
                embedded = class_embeddings(model, *prompts, self._settings.context.device, say)
                self._last[prompts] = (version, embedded)
            self._classes[number, prompts] = self._last[prompts][1]
        return self._classes[number, prompts]


def loads(batches: Iterable[_SourceBatch], most: int) -> Iterator[list[_SourceBatch]]:
    """Group batches into loads of at most so many bytes, and at least one batch."""
    load, size = list[_SourceBatch](), 0
    for part in batches:
        nbytes = part[-1].pixels.nbytes
        if load and size + nbytes > most:
            yield load
            load, size = [], 0
        load.append(part)
        size += nbytes
    if load:
        yield load


def write_correct(path: Path, correct: dict[str, Correct]) -> None:
    """Write whether each image was recognised as safetensors: one tensor per source, shape (points,
    images), bool.
    """
    for name in correct:
        check_source_name(name)
    path.write_bytes(save({name: np.ascontiguousarray(right) for name, right in correct.items()}))
