"""Classify images in 16 bits if that gives float32's answers, and in float32 if it might not.

Some images of each point are classified in both precisions. They show how far 16 bits move the
lead of the best class over the others; an image whose lead is not several times larger is
classified again, in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clipmerge.models import ImageTextModel
from clipmerge.models.memory import MicroBatcher
from clipmerge.models.precision import dtype_of, passes

#: Images that are classified in both precisions first.
COMPARED = 16
# A lead is trusted if it is this many times larger than the largest error of a lead among those.
_SAFETY = 4.0
# If more than this share of the images has to be classified again, 16 bits save nothing.
_MAX_SHARE_AGAIN = 0.6


class Bf16Classifier:
    """A model, whose weights are those of one point at every call, and the `class_embeddings` of
    one source.
    """

    def __init__(
        self, model: ImageTextModel, classes: Tensor, pieces: MicroBatcher, images: int
    ) -> None:
        self._model = model
        self._classes = classes
        self._pieces = pieces
        # with twice as many images as are compared, half the time for the others only pays for
        # comparing
        is_faster = dtype_of(classes.device, "auto") != torch.float32
        self._quick = images > 2 * COMPARED and len(classes) > 1 and is_faster
        self._error = 0.0
        self._compared = self._seen = self._again = 0

    def classify(self, pixels: Tensor) -> Tensor:
        """Class indices (batch,) on the CPU, of pixels (batch, 3, height, width) on the model's
        device.
        """
        if not self._quick:
            return self._class_cosines(pixels).argmax(dim=1).cpu()
        fresh = max(0, COMPARED - self._compared)
        parts = [self._compare(pixels[:fresh])] if fresh else []
        if len(pixels) > fresh:
            parts.append(self._classify_quickly(pixels[fresh:]))
        return torch.cat(parts).cpu()

    def _compare(self, pixels: Tensor) -> Tensor:
        exact, rough = self._class_cosines(pixels), self._class_cosines(pixels, quick=True)
        off = rough - exact
        lead = (off - off.gather(1, rough.argmax(dim=1, keepdim=True))).abs().max()
        self._error = max(float(lead), self._error)
        self._compared += len(pixels)
        return exact.argmax(dim=1)

    def _classify_quickly(self, pixels: Tensor) -> Tensor:
        leaders = self._class_cosines(pixels, quick=True).topk(2, dim=1)
        best = leaders.indices[:, 0]
        trusted = (
            leaders.values[:, 0] - leaders.values[:, 1] > _SAFETY * self._error
        )  # false if it is not a number
        if not bool(trusted.all()):
            best[~trusted] = self._class_cosines(pixels[~trusted]).argmax(dim=1)
        self._seen += len(pixels)
        self._again += int((~trusted).sum())
        self._quick = self._again <= max(COMPARED, _MAX_SHARE_AGAIN * self._seen)
        return best

    def _class_cosines(self, pixels: Tensor, *, quick: bool = False) -> Tensor:
        with passes(pixels.device, "auto" if quick else "float32"):
            features = self._pieces.forward(self._model.image_features, pixels)
        return features.float() @ self._classes.T
