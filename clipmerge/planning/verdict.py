"""The verdict on a merge: what is recommended, why, and the accuracies that it rests on."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from clipmerge.planning import Frozen
from clipmerge.types import Names, Recommendation

#: Loss of accuracy, in points, that is accepted unless the recipe or the user says otherwise.
MAX_LOSS = 3.0
#: Values of K in recall at K.
RANKS = (1, 5, 10)

Share = Annotated[float, Field(ge=0, le=1)]
SignedShare = Annotated[float, Field(ge=-1, le=1)]


class Estimate(Frozen):
    """A share of the images, such as an accuracy, and its 95% interval."""

    value: Share
    interval: tuple[Share, Share]


class Difference(Frozen):
    """One model's share of the images minus another's, and its 95% interval."""

    value: SignedShare
    interval: tuple[SignedShare, SignedShare]


class Recall(Frozen):
    """Recall at K of image-text retrieval, by K as text.

    Attributes:
        image_to_text: Share of the images with one of their captions among the K best-matching.
        text_to_image: Share of the captions with their image among the K best-matching.
    """

    image_to_text: dict[str, Share]
    text_to_image: dict[str, Share]


class Comparison(Frozen):
    """The models on the same images.

    Attributes:
        models: Accuracy by model: ``zero-shot``, ``fine-tuned`` (or ``fine-tuned 1``, ...) and
            ``merged``. Of captions it is the mean of recall at 1 both ways.
        gain: Merged minus fine-tuned, the most accurate one on the target's images.
    """

    models: dict[str, Estimate]
    gain: Difference


class SourceComparison(Comparison):
    """The models on one source of images.

    Attributes:
        name: ``target``, or the name given with ``--ood``.
        source: Where the images come from.
        revision: The commit, for a data set of the Hub.
        images: Number of images.
        classes: Number of classes; 0 for captions.
        class_names: The first classes, for examples.
        captions: Number of captions; 0 for classes.
        recall: Recall at K by model, for captions.
    """

    name: str
    source: str
    revision: str | None = None
    images: Annotated[int, Field(ge=1)]
    classes: Annotated[int, Field(ge=0)] = 0
    class_names: Names = ()
    captions: Annotated[int, Field(ge=0)] = 0
    recall: dict[str, Recall] = Field(default_factory=dict)


class Verdict(Frozen):
    """Whether to use a merged model.

    Attributes:
        recommendation: What to do.
        reason: The rule's reason, for programs.
        sentence: Recommendation and reason in words; the numbers are in the fields below.
        max_loss: Loss of accuracy, in points, that is accepted.
        target: The models on the target's images, from which nothing was learned.
        corrupted: The models on the same images under corruptions that no recipe learns from.
        ood: The models on each source given with ``--ood``.
    """

    recommendation: Recommendation
    reason: str
    sentence: str
    max_loss: Annotated[float, Field(ge=0)] = MAX_LOSS
    target: SourceComparison
    corrupted: Comparison
    ood: tuple[SourceComparison, ...] = ()

    @property
    def sources(self) -> tuple[SourceComparison, ...]:
        """The target and the ``--ood`` sources."""
        return (self.target, *self.ood)


def finetuned_names(count: int) -> list[str]:
    """The names of so many fine-tuned models.

    Example:
        >>> finetuned_names(1), finetuned_names(2)
        (['fine-tuned'], ['fine-tuned 1', 'fine-tuned 2'])
    """
    return ["fine-tuned"] if count == 1 else [f"fine-tuned {at}" for at in range(1, count + 1)]
