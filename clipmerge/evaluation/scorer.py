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
from clipmerge.images.batches import batch_size_for, read_pixels
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

#: Sets the weights of a path's model, for example to those at alpha 0.5. Such weights are a
#: *point*.
Move = Callable[[WeightPath], None]
# Most bytes of preprocessed images in memory. All points are scored on these images before more
# images are decoded.
_LOAD_BYTES = 2 << 30
# Fewest images in a batch, if there are as many: a smaller batch would take as long.
_SMALL_BATCH = 32
# Name of a source, position of the first image of a batch, and the pixels of the batch.
_SourceBatch = tuple[str, int, Tensor]


@dataclass(frozen=True, eq=False)
class Outcome:
    """The answers of the model, at one point, to the images of one source.

    Attributes:
        best: Index of each image's best class, (images,). With captions, index of the best caption
            among all different captions.
        correct: Whether each image's best class is right, (images,). With captions, the mean of two
            numbers: 1 if the best caption is one of the image's own, else 0; and the share of the
            image's own captions for which it is the best image.
        recall: Recall at K in both directions; ``None`` without captions.
    """

    best: NDArray[np.int64]
    correct: Correct
    recall: Recall | None = None


class Scorer:
    """Scores a model on images. ``path`` can set the model's weights to different points."""

    def __init__(
        self,
        model: ImageTextModel,
        settings: ImageOptions,
        path: WeightPath | None = None,
        *,
        dtype: OutputDtype = "keep",
        load_bytes: int = _LOAD_BYTES,
    ) -> None:
        self._context = DistributedContext(settings.device)
        self.device = self._context.device
        self._path = path
        if path:
            path.dtype = dtype
        model.module.to(self.device)
        self._model = model
        self._settings = settings
        self._load_bytes = load_bytes
        self._micro_batcher: MicroBatcher
        self._classifiers: dict[str, Classifier] = {}
        # text features by classifier and by the number of changes of the text tower so far
        self._texts: dict[tuple[Classifier, int], Tensor] = {}
        # number of changes of the text tower at the first visit to each point
        self._changes: dict[int, int] = {}

    @torch.no_grad()
    @exact_float32()
    def score(
        self, moves: Sequence[Move], sources: Mapping[str, Images], progress: Progress
    ) -> dict[str, list[Outcome]]:
        """Score every point on every source. Return one outcome per point, by source; all processes
        get the outcomes of all images.
        """
        self._micro_batcher = MicroBatcher(progress.say)
        self._texts.clear()
        self._changes.clear()
        shared: dict[object, Classifier] = {}  # by class names or captions
        for name, images in sources.items():
            texts_of = _texts_of(images)
            if texts_of not in shared:
                shared[texts_of] = self._classifier_for(images, progress)
            self._classifiers[name] = shared[texts_of]
        # features of captions, to compare with all images at the end
        texts: dict[tuple[str, int], Tensor] = {}
        parts = []
        total = len(moves) * sum(map(len, sources.values())) / self._context.world_size
        done = 0
        for load in self._loads(sources):
            for number, move in enumerate(moves):
                if self._path:
                    move(self._path)
                for name, start, pixels in load:
                    features = self._text_features(name, number)
                    if isinstance(sources[name], CaptionedImages):
                        texts[name, number] = finite_scores(features, sources[name].source)
                    outputs = self._outputs(name, pixels, features, sources)
                    parts.append((name, number, start, outputs))
                    done += len(pixels)
                progress.advance(done, total)
        if self._context.world_size > 1:
            parts = gather_object(parts)
            for other in gather_object([texts]):
                texts.update(other)
        values = defaultdict[tuple[str, int], list[NDArray[Any]]](list)
        for name, number, _, part in sorted(parts, key=lambda part: part[2]):
            values[name, number].append(part)
        return {
            name: [
                _make_outcome(
                    images, np.concatenate(values[name, number]), texts.get((name, number))
                )
                for number in range(len(moves))
            ]
            for name, images in sources.items()
        }

    def _classifier_for(self, images: Images, progress: Progress) -> Classifier:
        """Make the classifier of a source's classes or captions."""
        model = self._model
        if isinstance(images, CaptionedImages):
            from clipmerge.models.captions import caption_notes

            _, texts = number_texts(itertools.chain.from_iterable(images.captions))
            for note in caption_notes(images.source, model, texts):
                progress.say(note)
            return Prompts(model, texts, 1, self.device)
        templates = templates_for(self._settings.template, images.templates)
        return classifier_for(model, images, templates, self.device)

    def _text_features(self, name: str, number: int) -> Tensor:
        """Return the features of a source's prompts or captions at a point. Points with equal text
        towers share them.
        """
        now = self._path.class_moves if self._path else 0
        key = self._classifiers[name], self._changes.setdefault(number, now)
        if key not in self._texts:
            self._texts[key] = key[0].class_features().cpu()  # there may be many points
        return self._texts[key]

    def _outputs(
        self, name: str, pixels: Tensor, texts: Tensor, sources: Mapping[str, Images]
    ) -> NDArray[Any]:
        """Return the best class of each image or, with captions, the features of each image."""
        source = sources[name].source
        pixels = to_device(pixels, self.device)
        features = self._micro_batcher.forward(self._model.image_features, pixels)
        if isinstance(sources[name], CaptionedImages):
            return finite_scores(features, source).cpu().numpy()
        logits = self._classifiers[name].logits(features, texts.to(self.device))
        return finite_scores(logits, source).argmax(dim=1).cpu().numpy()

    def _loads(self, sources: Mapping[str, Images]) -> Iterator[list[_SourceBatch]]:
        """Preprocess this process's images, and yield lists of batches that fit into memory."""
        share = (self._context.rank, self._context.world_size)
        load: list[_SourceBatch] = []
        for name, images in sources.items():
            of_process = math.ceil(len(images) / self._context.world_size)
            least = min(_SMALL_BATCH, of_process)
            size = self._settings.batch_size or max(batch_size_for(len(images), None), least)
            for number, pixels in read_pixels(images.pictures, size, self._model.pixels, share):
                nbytes = sum(batch.nbytes for *_, batch in load)
                if load and nbytes + pixels.nbytes > self._load_bytes:
                    yield load
                    load = []
                load.append((name, number * size, pixels))
        if load:
            yield load


def _texts_of(images: Images) -> object:
    """Return a key that is equal for sources with the same classes or captions, whose classifier
    can be shared.
    """
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
