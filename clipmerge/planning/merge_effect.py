"""The measured effect of a merge: accuracies on images held back from the decision."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from clipmerge.finding import Finding
from clipmerge.frozen import Frozen
from clipmerge.stats import LEVEL
from clipmerge.types import Names

#: Loss of accuracy, in points, beyond which there is a warning, unless the recipe or the user says.
MAX_LOSS = 3.0

#: Longer side of a thumbnail, in pixels.
THUMBNAIL = 64

ShareOfImages = Annotated[float, Field(ge=0, le=1)]
DifferenceOfShares = Annotated[float, Field(ge=-1, le=1)]
#: Recommendation about the merged model; `docs/explanation/the-answer.md` has the rules.
Recommendation = Literal[
    "use",
    "prefer-finetuned",
    "prefer-zeroshot",
    "either",
    "cannot-tell",
    "too-few-images",
    "check-names",
    "check-models",
    "other-tasks",
]
#: What follows from a doubt about the inputs, by its kind: an error before learning, an advice in
#: place of another, or a warning.
CONSEQUENCES: dict[str, Literal["error", "warning"] | Recommendation] = {
    "swapped": "error",
    "unrelated": "check-models",
    "equal-models": "warning",
    "half-zeroshot": "check-models",
    "blank-images": "error",
    "same-images": "error",
    "pixel-range": "error",
    "at-chance": "check-names",
    "odd-names": "check-names",
    "zeroshot-at-chance": "warning",
    "swapped-sources": "warning",
}


def finetuned_names(count: int) -> list[str]:
    """The names of so many fine-tuned models in tables.

    Example:
        >>> finetuned_names(1), finetuned_names(2)
        (['fine-tuned'], ['fine-tuned 1', 'fine-tuned 2'])
    """
    return (
        ["fine-tuned"] if count == 1 else [f"fine-tuned {number}" for number in range(1, count + 1)]
    )


class Estimate(Frozen):
    """A share of the held-back images, with its interval.

    Attributes:
        value: The share, from 0 to 1.
        interval: Lower and upper bound, from 0 to 1.
    """

    value: ShareOfImages
    interval: tuple[ShareOfImages, ShareOfImages]


class Difference(Frozen):
    """The difference of two models' shares of the same images, with its interval.

    Attributes:
        value: From -1 to 1.
        interval: Lower and upper bound, from -1 to 1.
    """

    value: DifferenceOfShares
    interval: tuple[DifferenceOfShares, DifferenceOfShares]


class ModelAccuracy(Frozen):
    """The accuracy of one model on the held-back images.

    Attributes:
        clean: Accuracy on the unchanged images.
        corrupted: Mean accuracy on the same images under corruptions of kinds that no recipe learns
            from.
        related: Mean accuracy on the same images under stronger forms of changes that recipes learn
            from.
        corruptions: Accuracy under each corruption of the probe, by its name.
    """

    clean: Estimate
    corrupted: Estimate
    related: Estimate
    corruptions: dict[str, Estimate]


class Gain(Frozen):
    """The merged model's accuracy minus another's, compared image by image.

    Attributes:
        clean: Difference on the unchanged images.
        corrupted: Difference under corruptions of kinds that no recipe learns from.
    """

    clean: Difference
    corrupted: Difference


class CaptionExample(Frozen):
    """The images that two models find for one caption, as indices into `MergeEffect.thumbnails`.

    Attributes:
        caption: The caption.
        image: Its own image.
        finetuned: The best images of the reference, best first.
        merged: The best images of the merged model.
    """

    caption: str
    image: Annotated[int, Field(ge=0)]
    finetuned: tuple[Annotated[int, Field(ge=0)], ...]
    merged: tuple[Annotated[int, Field(ge=0)], ...]


class MergeEffect(Frozen):
    """The effect of a merge, measured on images that were not used for the decision.

    Attributes:
        source: Source of the images, as the user wrote it.
        revision: The commit that a data set of the Hub resolved to.
        images: Number of held-back images.
        choosers: Number of these that also chose how far to go from what was learned to fine-tuned.
        classes: Number of classes, or captions, to choose from.
        captions: Number of captions of the images; 0 for images with classes. With captions an
            accuracy is the mean recall at 1 of both ways among these images.
        labelled: Whether the labels are the images' own. If not, they are the fine-tuned model's
            answers on the unchanged images, and an accuracy is the agreement with those.
        classes_without_images: Number of classes without a held-back image.
        classes_with_one_image: Number of classes with a single held-back image.
        corruptions_per_image: Number of corruptions per image, of kinds that no recipe learns from.
        related: Names of the other corruptions, which are stronger forms of changes that recipes
            learn from.
        related_per_image: Number of those per image.
        level: Confidence level of every interval, such as 0.95.
        max_loss: Loss of accuracy, in points, beyond which there is a warning.
        zeroshot: Accuracy of the zero-shot model.
        finetuned: Accuracy of each fine-tuned model, in the order given.
        reference: Index of the most accurate fine-tuned model, with which the merged model is
            compared.
        merged: Accuracy of the merged model.
        over_finetuned: The merged model against that fine-tuned model.
        over_zeroshot: The merged model against the zero-shot model.
        agreement: Share of the images for which the merged and the zero-shot model predict the same
            class.
        recall: Of images with captions, each model's recall: by model, by way (``image_to_text``
            and ``text_to_image``) and by K as text.
        examples: Of images with captions, what is found for the captions of the first images, which
            are in a random order.
        thumbnails: The images of the examples, as JPEG in base64.
        recommendation: Recommendation about the merged model.
        reason: Reason for the recommendation, and the price.
        possible_loss: How large the loss of accuracy may be, if that is beyond the limit.
        warnings: Measured losses beyond the limit.
        text: The recommendation and the main numbers in a sentence, for readers of JSON.
        plan: `Plan.digest` of the plan that was measured; empty until the plan is written.
    """

    source: str
    revision: str | None = None
    images: Annotated[int, Field(ge=1)]
    choosers: Annotated[int, Field(ge=0)] = 0
    classes: Annotated[int, Field(ge=1)]
    captions: Annotated[int, Field(ge=0)] = 0
    labelled: bool = True
    classes_without_images: Annotated[int, Field(ge=0)] = 0
    classes_with_one_image: Annotated[int, Field(ge=0)] = 0
    corruptions_per_image: Annotated[int, Field(ge=1)]
    related: Names
    related_per_image: Annotated[int, Field(ge=0)]
    level: Annotated[float, Field(gt=0, lt=1)] = LEVEL
    max_loss: Annotated[float, Field(ge=0)] = MAX_LOSS
    zeroshot: ModelAccuracy
    finetuned: tuple[ModelAccuracy, ...] = Field(min_length=1)
    reference: Annotated[int, Field(ge=0)] = 0
    merged: ModelAccuracy
    over_finetuned: Gain
    over_zeroshot: Gain
    agreement: Estimate
    recall: dict[str, dict[str, dict[str, ShareOfImages]]] = Field(default_factory=dict)
    examples: tuple[CaptionExample, ...] = ()
    thumbnails: Names = ()
    recommendation: Recommendation
    reason: Finding
    possible_loss: Finding | None = None
    warnings: tuple[Finding, ...] = ()
    text: str = ""
    plan: str = ""

    @property
    def rests_on_experience(self) -> bool:
        """Whether a merge is recommended for what such merges did on other pairs, not for a gain on
        the user's own images.
        """
        return self.recommendation == "use" and self.reason.kind in ("same-accuracy", "votes")

    def with_advice(self, recommendation: Recommendation, reason: Finding) -> MergeEffect:
        """The same effect with another recommendation, which says nothing of a possible loss."""
        return self.replace(recommendation=recommendation, reason=reason, possible_loss=None)

    def __repr__(self) -> str:
        """The recommendation and the accuracies, in per cent."""
        models = ", ".join(
            f"{name} {100 * model.clean.value:.1f} / {100 * model.corrupted.value:.1f}"
            for name, model in self.models.items()
        )
        return (
            f"MergeEffect({self.recommendation}, {self.images} images, %: {models};"
            " unchanged / under unrelated corruptions)"
        )

    __str__ = __repr__

    @property
    def models(self) -> dict[str, ModelAccuracy]:
        """The accuracies of all models by their names: zero-shot, fine-tuned, merged."""
        names = finetuned_names(len(self.finetuned))
        return {
            "zero-shot": self.zeroshot,
            **dict(zip(names, self.finetuned, strict=True)),
            "merged": self.merged,
        }
