"""What the merge bought: accuracies on images held back from the decision."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from clipmerge.planning.frozen import Frozen

ShareOfImages = Annotated[float, Field(ge=0, le=1)]


class Estimate(Frozen):
    """A share of the held-back images, with its interval.

    Attributes:
        value: The share, from 0 to 1.
        interval: Lower and upper bound, from 0 to 1.
    """

    value: ShareOfImages
    interval: tuple[ShareOfImages, ShareOfImages]


class ModelAccuracy(Frozen):
    """The accuracy of one model on the held-back images.

    Attributes:
        clean: On the images as they are.
        corrupted: On the same images under the robustness probe; ``None`` where it did not run.
    """

    clean: Estimate
    corrupted: Estimate | None = None


class Bought(Frozen):
    """What the merge bought, measured on images that took no part in the decision.

    Attributes:
        images: Number of held-back images.
        level: Confidence level of every interval, such as 0.95.
        zeroshot: Accuracy of the zero-shot model.
        finetuned: Accuracy of each fine-tuned model, in the order given.
        merged: Accuracy of the merged model.
        agreement: Share of the images that the merged and the zero-shot model classify alike.
        warnings: Conclusions that the user should know, one line each.
    """

    images: Annotated[int, Field(ge=1)]
    level: Annotated[float, Field(gt=0, lt=1)]
    zeroshot: ModelAccuracy
    finetuned: tuple[ModelAccuracy, ...] = Field(min_length=1)
    merged: ModelAccuracy
    agreement: Estimate
    warnings: tuple[str, ...] = ()
