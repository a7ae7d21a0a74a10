"""Scores on tasks that a model was not fine-tuned for: what fine-tuning broke there, and what the
merge restores.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from clipmerge.frozen import Frozen
from clipmerge.planning.merge_effect import Estimate
from clipmerge.planning.verdict import Recall


class Score(Frozen):
    """The result of one model on one task: an accuracy or recalls.

    Attributes:
        accuracy: Zero-shot accuracy, for images with classes.
        recall: Recall at K, for images with captions.
    """

    accuracy: Estimate | None = None
    recall: Recall | None = None


class OtherTask(Frozen):
    """A task that the models were not fine-tuned for: images with classes or with captions.

    Attributes:
        name: Name of the task.
        kind: ``accuracy`` or ``retrieval``.
        source: Source of the images, as the user wrote it.
        revision: The commit that a data set of the Hub resolved to.
        images: Number of images.
        captions: Number of captions; 0 for images with classes.
        classes: Number of classes to choose from; 0 for images with captions.
    """

    name: str
    kind: Literal["accuracy", "retrieval"]
    source: str
    revision: str | None = None
    images: Annotated[int, Field(ge=1)]
    captions: Annotated[int, Field(ge=0)] = 0
    classes: Annotated[int, Field(ge=0)] = 0


class OtherTaskScores(OtherTask):
    """The scores of the models of a merge on such a task.

    Attributes:
        zeroshot: Score of the zero-shot model.
        finetuned: Score of each fine-tuned model, in the order given.
        merged: Score of the merged model.
        plan: `Plan.digest` of the plan that was measured; empty until the plan is written.
    """

    zeroshot: Score
    finetuned: tuple[Score, ...] = Field(min_length=1)
    merged: Score
    plan: str = ""


def measures_of(score: Score) -> dict[str, float]:
    """List the numbers of a score by name, from 0 to 1.

    Example:
        >>> recall = Recall(image_to_text={"1": 0.5}, text_to_image={"1": 0.25})
        >>> measures_of(Score(recall=recall))
        {'image to text R@1': 0.5, 'text to image R@1': 0.25}
    """
    if score.recall is None:
        return {} if score.accuracy is None else {"accuracy": score.accuracy.value}
    ways = (
        ("image to text", score.recall.image_to_text),
        ("text to image", score.recall.text_to_image),
    )
    return {f"{way} R@{rank}": value for way, by_rank in ways for rank, value in by_rank.items()}
