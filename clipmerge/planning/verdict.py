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
#: Recall at K of image-text retrieval, by direction and K as text: ``image_to_text``, the share of
#: the images with one of their captions among the K best-matching, and ``text_to_image``, the share
#: of the captions with their image among the K best-matching.
Recall = dict[str, dict[str, float]]

_Share = Annotated[float, Field(ge=-1, le=1)]
_Count = Annotated[int, Field(ge=0)]


class Estimate(Frozen):
    """A share of the images, such as an accuracy, or a difference of two, with its 95% interval."""

    value: _Share
    interval: tuple[_Share, _Share]


class Comparison(Frozen):
    """The models on one source of images.

    Attributes:
        name: ``target``, ``corrupted``, or the name given with ``--ood``.
        source: Where the images come from.
        revision: The commit, for a data set of the Hub.
        images: Number of images.
        models: Accuracy by model: ``zero-shot``, ``fine-tuned`` (or ``fine-tuned 1``, ...) and
            ``merged``. Of captions it is the mean of recall at 1 both ways.
        gain: Merged minus fine-tuned, the most accurate one on the target's images.
        finetuning_gain: Fine-tuned minus zero-shot.
        class_names: The first classes, for examples; empty for captions.
        recall: Recall at K by model, for captions.
    """

    name: str
    source: str
    revision: str | None = None
    images: _Count
    models: dict[str, Estimate]
    gain: Estimate
    finetuning_gain: Estimate
    class_names: Names = ()
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
    target: Comparison
    corrupted: Comparison
    ood: tuple[Comparison, ...] = ()

    @property
    def sources(self) -> tuple[Comparison, ...]:
        """The target and the ``--ood`` sources."""
        return (self.target, *self.ood)


def finetuned_names(count: int) -> list[str]:
    """The names of so many fine-tuned models.

    Example:
        >>> finetuned_names(1), finetuned_names(2)
        (['fine-tuned'], ['fine-tuned 1', 'fine-tuned 2'])
    """
    if count == 1:
        return ["fine-tuned"]
    return [f"fine-tuned {number + 1}" for number in range(count)]
