"""Score a model with several sets of weights on several sources of images.

Every image is decoded once. Images with classes are classified; images with captions are compared
with all captions.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch import Tensor

from clipmerge.distributed import DistributedContext, exact_float32, to_device
from clipmerge.images.batches import read_pixels
from clipmerge.images.classes import templates_for
from clipmerge.images.image_set import CaptionedImages, Images, LabelledImages, number_texts
from clipmerge.learning.interpolate import WeightPath
from clipmerge.models import ImageTextModel
from clipmerge.models.classifier import Classifier, Prompts, classifier_for
from clipmerge.models.passes import MicroBatcher, finite_scores
from clipmerge.options import ImageOptions
from clipmerge.planning.record import Recall
from clipmerge.progress import Progress
from clipmerge.types import OutputDtype

if TYPE_CHECKING:
    from clipmerge.evaluation.tradeoff import Correct

#: Sets the weights of a path's model to a *point*, for example to alpha 0.5.
Move = Callable[[WeightPath], None]
_LOAD_BYTES = 2 << 30
# Images in a batch, if there are as many: a smaller batch would take nearly as long.
_BATCH = 128
# Name of a source, position of the first image of a batch, and the pixels of the batch.
_SourceBatch = tuple[str, int, Tensor]


@dataclass(frozen=True, eq=False)
class Outcome:
    """The answers of the model, at one point, to the images of one source.

    Attributes:
        best: Index of each image's best class, or of its best caption among all different
            captions, (images,).
        correct: Whether each image's best class is right, (images,). With captions, the mean of two
            numbers: 1 if the best caption is one of the image's own, else 0; and the share of the
            image's own captions for which it is the best image.
        recall: Recall at K in both directions; ``None`` without captions.
    """

    best: NDArray[np.int64]
    correct: Correct
    recall: Recall | None = None


@dataclass
class Scorer:
    """Scores a model on sources of images, at points to which ``path`` sets its weights.

    Attributes:
        model: The model.
        settings: Options about images.
        progress: Receives the progress.
        sources: The sources, by name.
        path: Sets the weights of the model; ``None`` scores it as it is.
        dtype: See `WeightPath`.
        load_bytes: Most bytes of preprocessed images in memory. All points are scored on them
            before more images are decoded.
    """

    model: ImageTextModel
    settings: ImageOptions
    progress: Progress
    sources: Mapping[str, Images]
    path: WeightPath | None = None
    dtype: OutputDtype = "keep"
    load_bytes: int = _LOAD_BYTES

    def __post_init__(self) -> None:
        self._context = DistributedContext(self.settings.device)
        self._device = self._context.device
        self.model.module.to(self._device)
        if self.path:
            self.path.dtype = self.dtype
        self._micro_batcher = MicroBatcher(self.progress.say)
        self._classifiers: dict[str, Classifier] = {}
        # text features by classifier and by the number of changes that the text tower had
        self._texts: dict[tuple[Classifier, int], Tensor] = {}
        # number of changes of the text tower at the first visit to each point
        self._changes: dict[int, int] = {}

    @torch.no_grad()
    @exact_float32()
    def score(self, moves: Sequence[Move]) -> dict[str, list[Outcome]]:
        """Score every point on every source. Return one outcome per point, by source. Every process
        gets the outcomes of all images.
        """
        shared: dict[object, Classifier] = {}  # by class names or captions
        for name, images in self.sources.items():
            texts_of = _texts_of(images)
            if texts_of not in shared:
                shared[texts_of] = self._classifier_for(images)
            self._classifiers[name] = shared[texts_of]
        # features of captions, to compare with all images at the end
        texts: dict[tuple[str, int], Tensor] = {}
        parts = []
        total = len(moves) * sum(map(len, self.sources.values())) / self._context.world_size
        done = 0
        for load in self._loads():
            for number, move in enumerate(moves):
                if self.path:
                    move(self.path)
                for name, start, pixels in load:
                    features = self._text_features(name, number)
                    if isinstance(self.sources[name], CaptionedImages):
                        texts[name, number] = finite_scores(features, self.sources[name].source)
                    parts.append((name, number, start, self._outputs(name, pixels, features)))
                    done += len(pixels)
                self.progress.advance(done, total)
        for of_process in gather_object([texts]):
            texts.update(of_process)
        values = defaultdict[tuple[str, int], list[NDArray[Any]]](list)
        for name, number, _, part in sorted(gather_object(parts), key=lambda part: part[2]):
            values[name, number].append(part)
        return {
            name: [
                _make_outcome(
                    images, np.concatenate(values[name, number]), texts.get((name, number))
                )
                for number in range(len(moves))
            ]
            for name, images in self.sources.items()
        }

    def _classifier_for(self, images: Images) -> Classifier:
        """Make the classifier of a source's classes or captions."""
        model = self.model
        if isinstance(images, CaptionedImages):
            from clipmerge.models.captions import caption_notes

            _, texts = number_texts(itertools.chain.from_iterable(images.captions))
            for note in caption_notes(images.source, model, texts):
                self.progress.say(note)
            return Prompts(model, texts, 1, self._device)
        templates = templates_for(self.settings.template, images.templates)
        return classifier_for(model, images, templates, self._device)

    def _text_features(self, name: str, number: int) -> Tensor:
        """Return the features of a source's prompts or captions at a point. Points with equal text
        towers share them.
        """
        now = self.path.class_moves if self.path else 0
        key = self._classifiers[name], self._changes.setdefault(number, now)
        if key not in self._texts:
            self._texts[key] = key[0].class_features().cpu()  # there may be many points
        return self._texts[key]

    def _outputs(self, name: str, pixels: Tensor, texts: Tensor) -> NDArray[Any]:
        """Return the best class of each image or, with captions, the features of each image."""
        images = self.sources[name]
        pixels = to_device(pixels, self._device)
        outputs = self._micro_batcher.forward(self.model.image_features, pixels)
        if isinstance(images, CaptionedImages):
            return finite_scores(outputs, images.source).cpu().numpy()
        logits = self._classifiers[name].logits(outputs, texts.to(self._device))
        return finite_scores(logits, images.source).argmax(dim=1).cpu().numpy()

    def _loads(self) -> Iterator[list[_SourceBatch]]:
        """Preprocess this process's images, and yield lists of batches that fit into memory."""
        rank, world_size = self._context.rank, self._context.world_size
        load: list[_SourceBatch] = []
        nbytes = 0
        for name, images in self.sources.items():
            share = math.ceil(len(images) / world_size)
            size = self.settings.batch_size or min(_BATCH, share)
            batches = read_pixels(images.pictures, size, self.model.pixels, (rank, world_size))
            for number, pixels in batches:
                if load and nbytes + pixels.nbytes > self.load_bytes:
                    yield load
                    load, nbytes = [], 0
                load.append((name, number * size, pixels))
                nbytes += pixels.nbytes
        if load:
            yield load


def _texts_of(images: Images) -> object:
    """Return a key that is equal for sources that can share a classifier."""
    if isinstance(images, CaptionedImages):
        return images.captions
    return images.class_names, images.templates, images.imagenet_rows


def _make_outcome(images: Images, values: NDArray[Any], texts: Tensor | None) -> Outcome:
    if isinstance(images, LabelledImages):
        return Outcome(values, values == np.asarray(images.labels))
    from clipmerge.evaluation.recall import retrieve

    assert texts is not None
    return Outcome(*retrieve(torch.from_numpy(values), texts, images.captions))


def stack_correct(outcomes: Sequence[Outcome]) -> Correct:
    """Stack `Outcome.correct` of several points: (points, images)."""
    rows: list[NDArray[Any]] = [outcome.correct for outcome in outcomes]
    return np.stack(rows)
