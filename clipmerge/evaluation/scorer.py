"""Score a model at many points of the path on sources of images, decoding every image once.

Images with classes are classified by their class prompts, images with captions are compared with
all captions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from numpy.typing import NDArray
from safetensors.numpy import save
from torch import Tensor

from clipmerge.checkpoint import Inputs
from clipmerge.config import OutputDtype
from clipmerge.distributed import device_work, distributed_context, peer_errors, to_device
from clipmerge.evaluation.moving_model import MovingModel, PlacedModel
from clipmerge.evaluation.recall import caption_embeddings, retrieve
from clipmerge.evaluation.tradeoff import Correct
from clipmerge.images.batches import batch_size_for, read_pixels
from clipmerge.images.image_set import CaptionedImages, LabelledImages
from clipmerge.images.prompts import templates_for
from clipmerge.models import ImageTextModel
from clipmerge.models.captions import caption_notes
from clipmerge.models.headed_tower import HeadedTower, group_logits
from clipmerge.models.memory import MicroBatcher, usable_memory
from clipmerge.models.zero_shot import class_embeddings
from clipmerge.planning.verdict import Recall
from clipmerge.progress import Pace, Progress, say_all
from clipmerge.report.text import text_of, texts_of
from clipmerge.request import Calibration, check_source_name

#: Images with classes, or with captions.
Images = LabelledImages | CaptionedImages
#: Sets the model's weights to those of one point.
Move = Callable[[Any], None]
# Bytes of preprocessed images in the CPU's memory at once; every point sees them before more are
# decoded.
_LOAD_BYTES = 2 << 30
# On a card, the same as a share of what is free.
_SHARE_OF_FREE = 0.25
# Images that are classified at once though there may be only one batch: a small model takes as long
# for a few.
_SMALL_BATCH = 32
# Source, position of the batch's first image in it, and the batch's pixels on the device.
_SourceBatch = tuple[str, int, Tensor]


@dataclass(frozen=True, eq=False)
class Outcome:
    """The result of one point on one source.

    Attributes:
        best: For each image, (images,), the index of its best class, or caption among all captions.
        correct: For each image, (images,), whether its class is right, or the mean of two shares:
            whether its best caption is its own, and of its captions those whose best image it is.
        recall: Recall at K both ways, for images with captions.
        best_images: The best images for some captions; see `retrieve`.
    """

    best: NDArray[np.int64]
    correct: Correct
    recall: Recall | None = None
    best_images: NDArray[np.int64] | None = None


class Scorer:
    """One model on the device, moved from point to point; without ``inputs`` it stays as it is."""

    def __init__(
        self,
        model: ImageTextModel | HeadedTower,
        inputs: Inputs | None,
        settings: Calibration,
        *,
        dtype: OutputDtype = "keep",
        load_bytes: int = _LOAD_BYTES,
    ) -> None:
        self._context = distributed_context(settings.device)
        self.device = self._context.device
        self._placed = (
            MovingModel(model, inputs, self.device, dtype=dtype)
            if inputs
            else PlacedModel(model, self.device)
        )
        self._model: Any = model
        self._settings = settings
        self._load_bytes = load_bytes
        self._micro_batcher = MicroBatcher(None, lambda _: None)
        # embeddings of texts by point; points with the same text tower share one tensor
        self._texts: dict[tuple[int, Hashable], Tensor] = {}
        # the text tower's version that texts were embedded with last, and their embeddings
        self._last: dict[Hashable, tuple[int, Tensor]] = {}

    @torch.no_grad()
    @device_work()
    def score(
        self, moves: Sequence[Move], sources: Mapping[str, Images], progress: Progress
    ) -> dict[str, list[Outcome]]:
        """Score every point on every source: by source, one outcome per point, in every process."""
        self._micro_batcher = MicroBatcher(None, lambda note: progress.say(text_of(note)))
        self._texts.clear()  # the points of another call are others
        parts = [
            (name, number, start, self._classify_or_embed(number, pixels, sources[name], progress))
            for number, name, start, pixels in self._iter_batches(moves, sources, progress)
        ]
        if self._context.world_size > 1:
            with peer_errors():
                parts = gather_object(parts)
        values = defaultdict[tuple[str, int], list[NDArray[Any]]](list)
        for name, number, _, part in sorted(parts, key=lambda part: part[2]):
            values[name, number].append(part)
        return {
            name: [
                self._outcome(number, move, images, np.concatenate(values[name, number]))
                for number, move in enumerate(moves)
            ]
            for name, images in sources.items()
        }

    def score_one(self, images: Images, progress: Progress) -> Outcome:
        """Score the model as it is."""
        ((outcome,),) = self.score([lambda _: None], {"": images}, progress).values()
        return outcome

    def pace(
        self, moves: Sequence[Move], sources: Mapping[str, Images], progress: Progress
    ) -> Pace:
        """Progress that says how long `score` takes."""
        images = sum(map(len, sources.values()))
        sentence = f"classifying {images:,} images by {len(moves)} models on the CPU takes about"
        return Pace(progress, self.device, sentence)

    def _iter_batches(
        self, moves: Sequence[Move], sources: Mapping[str, Images], progress: Progress
    ) -> Iterator[tuple[int, str, int, Tensor]]:
        """This process's batches at every point: the point, source, first image, pixels."""
        max_bytes = self._load_bytes
        if self.device.type != "cpu":
            # they stay there for all points, which the CPU places once for each load
            max_bytes = int(_SHARE_OF_FREE * usable_memory(self.device))
        total = len(moves) * sum(map(len, sources.values())) / self._context.world_size
        done = 0
        for load in group_by_bytes(self._batches(sources), max_bytes):
            for number, move in enumerate(moves):
                move(self._placed)
                for name, start, pixels in load:
                    yield number, name, start, pixels
                    done += len(pixels)
                    progress.advance(done, total)

    def _batches(self, sources: Mapping[str, Images]) -> Iterator[_SourceBatch]:
        share = (self._context.rank, self._context.world_size)
        for name, images in sources.items():
            size = self._settings.batch_size or max(
                batch_size_for(len(images), None),
                min(_SMALL_BATCH, -(-len(images) // self._context.world_size)),
            )
            batches = read_pixels(images.store, size, self._model.pixels, share)
            for number, pixels in batches:
                yield name, number * size, to_device(pixels, self.device)

    def _classify_or_embed(
        self, number: int, pixels: Tensor, images: Images, progress: Progress
    ) -> NDArray[Any]:
        """The best class of each image, or its features for images with captions."""
        model = self._model
        if isinstance(images, CaptionedImages):
            if images.captions not in self._last:
                texts = [text for of_image in images.captions for text in of_image]
                say_all(progress, texts_of(caption_notes(images.source, model, texts)))
            self._caption_embeddings(number, images)
            outputs = self._micro_batcher.forward(model.image_features, pixels)
        elif isinstance(model, HeadedTower):
            rows = model.rows_for(images.source, len(images.class_names), images.imagenet_rows)
            outputs = self._micro_batcher.forward(
                lambda piece: group_logits(model.logits(piece), rows).argmax(dim=1), pixels
            )
        else:
            prompts = (
                images.class_names,
                templates_for(self._settings.templates, images.templates),
            )
            classes = self._text_embeddings(
                number,
                prompts,
                lambda: class_embeddings(
                    model,
                    *prompts,
                    self.device,
                    # the cost is reported once
                    None if prompts in self._last else progress.say,
                ),
            )
            features = self._micro_batcher.forward(model.image_features, pixels)
            outputs = (features @ classes.T).argmax(dim=1)
        return outputs.cpu().numpy()

    def _text_embeddings(self, number: int, texts: Hashable, embed: Callable[[], Tensor]) -> Tensor:
        """Embeddings of texts at a point, computed anew only if the text tower has moved."""
        if (number, texts) not in self._texts:
            version = self._placed.text_version
            if texts not in self._last or self._last[texts][0] != version:
                self._last[texts] = version, embed()
            self._texts[number, texts] = self._last[texts][1]
        return self._texts[number, texts]

    def _caption_embeddings(self, number: int, images: CaptionedImages) -> Tensor:
        captions = images.captions
        return self._text_embeddings(
            number, captions, lambda: caption_embeddings(self._model, captions, self.device)
        )

    def _outcome(self, number: int, move: Move, images: Images, values: NDArray[Any]) -> Outcome:
        if isinstance(images, LabelledImages):
            return Outcome(values, values == np.asarray(images.labels))
        if (number, images.captions) not in self._texts:  # a process without a batch
            move(self._placed)
        texts = self._caption_embeddings(number, images)
        return Outcome(*retrieve(torch.from_numpy(values), texts, images.captions))


def stack_correct(outcomes: Sequence[Outcome]) -> Correct:
    """Whether each image was recognised at each point: (points, images)."""
    rows: list[NDArray[Any]] = [outcome.correct for outcome in outcomes]
    return np.stack(rows)


def group_by_bytes(batches: Iterable[_SourceBatch], max_bytes: int) -> Iterator[list[_SourceBatch]]:
    """Group batches into loads of at most so many bytes, and at least one batch."""
    load = list[_SourceBatch]()
    size = 0
    for part in batches:
        nbytes = part[-1].nbytes
        if load and size + nbytes > max_bytes:
            yield load
            load = []
            size = 0
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
