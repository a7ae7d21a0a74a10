"""The fine-tuned model's answers, which stand in for labels where images have none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from clipmerge.learning.augmentation import weak_augment
from clipmerge.learning.learning_loss import (
    LossConfig,
    class_features,
    embeds_less_at_once,
    image_features,
)
from clipmerge.learning.objective import FORWARD, Objective
from clipmerge.learning.sharded_batches import ShardedBatches
from clipmerge.learning.steps import Step

# Weak augmentations of an image about which the fine-tuned model is asked, at most.
_VIEWS = 16
# Seeds of these augmentations start here, above those of all steps.
_SEEDS = 2**42


class FinetunedAnswers:
    """The fine-tuned model's answers about several weak augmentations of each image: the mean of
    its probabilities to learn from, and the views' votes to judge by.

    The mean is right more often than the answer about one view. A model is right about as often as
    it answers two views of an image alike, so votes tell how often that is; probabilities tell it
    less well, above all after mild fine-tuning. The features of an image are computed when a step
    first needs them.

    Source:
        Jiang et al. 2022, Assessing Generalization of SGD via Disagreement, arXiv:2106.13799, for
        two models in place of two views.
    """

    def __init__(self, objective: Objective, config: LossConfig, views: int = _VIEWS) -> None:
        """Start without features; without weak augmentation all views would be the same."""
        self._objective = objective
        self._config = config
        self._views = views if config.weak_aug else 1
        # image features by image, (views, projection_dim)
        self._features: dict[tuple[ShardedBatches, int], Tensor] = {}

    def count_pictures(self, steps: Sequence[Step]) -> int:
        """Number of pictures that this process sends through the model for some steps."""
        if self._config.labelled:
            return 0
        return self._views * len({image for step in steps for image in step.local_keys})

    def with_probabilities(self, steps: Sequence[Step]) -> list[Step]:
        """Add `Step.answers` to learn from, where images have no labels: the mean of the views'
        probabilities. Leaves the objective at the fine-tuned model.
        """
        return self._answered(steps, lambda logits: logits.softmax(-1))

    def with_votes(self, steps: Sequence[Step]) -> list[Step]:
        """Add `Step.answers` to judge by, where images have no labels: the share of the views on
        which each class is the answer. Leaves the objective at the fine-tuned model.
        """
        return self._answered(
            steps, lambda logits: one_hot(logits.argmax(-1), logits.shape[-1]).float()
        )

    @torch.no_grad()
    def _answered(self, steps: Sequence[Step], answer_of: Callable[[Tensor], Tensor]) -> list[Step]:
        objective, config = self._objective, self._config
        if config.labelled:
            return list(steps)
        objective.weights.set_alpha(1.0)
        cached = embeds_less_at_once(objective, steps)
        answered = []
        for step in steps:
            classes = class_features(objective, step, config, cached=cached)
            self._look_at(step)
            features = torch.stack([self._features[image] for image in step.local_keys])
            answers = answer_of(objective.criterion.model.logits(features.flatten(0, 1), classes))
            by_view = answers.reshape(*features.shape[:2], len(classes))
            answered.append(replace(step, answers=by_view.mean(1)))
        return answered

    def _look_at(self, step: Step) -> None:
        """Compute the features of a step's images that no step before had."""
        images = step.images
        new = sorted({at for _, at in step.local_keys if (images, at) not in self._features})
        if not new:
            return
        pixels, count = images.select(new).pixels, len(images.labels)
        strength = self._config.weak_aug
        by_view = [
            image_features(
                self._objective,
                self._config,
                weak_augment(pixels, _SEEDS + view, strength, count, new),
            )
            for view in range(self._views)
        ]
        by_image = torch.stack(by_view, 1)
        self._features |= {(images, at): rows for at, rows in zip(new, by_image, strict=True)}
        self._objective.work.tick(FORWARD * self._views * len(new))


def affordable_views(steps: Sequence[Step]) -> int:
    """Views per image that take no more forward passes than one answer per image and step would."""
    images = {position for step in steps for position in step.positions}
    return min(_VIEWS, max(1, sum(map(len, steps)) // max(1, len(images))))
