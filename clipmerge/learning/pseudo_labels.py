"""Pseudo-labels: a model's answers, which stand in for labels where images have none."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from clipmerge.distributed import to_device
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

# Most weak augmentations of an image about which the model is asked.
_VIEWS = 16
# Images that choose the model, at most about so many, and weak augmentations of each.
_CHOICE_IMAGES = 512
_CHOICE_VIEWS = 4
# Seeds of these augmentations start here, above those of all steps.
_SEEDS = 2**42
# Standard errors by which the zero-shot model must tell the images apart better.
_SURE = 2.0


class PseudoLabels:
    """A model's answers about several weak augmentations of each image: the mean of its
    probabilities to learn from, and the views' votes to judge by.

    The mean is right more often than the answer about one view. A model is right about as often as
    it answers two views of an image alike, so votes tell how often that is; probabilities tell it
    less well, above all after mild fine-tuning. The features of an image are computed when a step
    first needs them.

    Source:
        Jiang et al. 2022, Assessing Generalization of SGD via Disagreement, arXiv:2106.13799, for
        two models in place of two views.
    """

    def __init__(
        self, objective: Objective, config: LossConfig, alpha: float, views: int = _VIEWS
    ) -> None:
        """Ask the model at ``alpha``; without weak augmentation all views would be the same."""
        self._alpha = alpha
        self._objective = objective
        self._config = config
        self._views = _views_of(config, views)
        # image features by image, (views, projection_dim)
        self._features: dict[tuple[ShardedBatches, int], Tensor] = {}

    def with_probabilities(self, steps: Sequence[Step]) -> list[Step]:
        """Add `Step.answers` to learn from: the mean of the views' probabilities. Leaves the
        objective at this model.
        """
        return self._answered(steps, lambda logits: logits.softmax(-1))

    def with_votes(self, steps: Sequence[Step]) -> list[Step]:
        """Add `Step.answers` to judge by: the share of the views on which each class is the answer.
        Leaves the objective at this model.
        """
        return self._answered(
            steps, lambda logits: one_hot(logits.argmax(-1), logits.shape[-1]).float()
        )

    @torch.no_grad()
    def _answered(self, steps: Sequence[Step], answer_of: Callable[[Tensor], Tensor]) -> list[Step]:
        objective, config = self._objective, self._config
        objective.weights.set_alpha(self._alpha)
        cached = embeds_less_at_once(objective, steps)
        answered = []
        for step in steps:
            classes = class_features(objective, step, config, cached=cached)
            self._look_at(step)
            features = torch.stack([self._features[image] for image in _local_images(step)])
            answers = answer_of(objective.criterion.model.logits(features.flatten(0, 1), classes))
            by_view = answers.reshape(*features.shape[:2], len(classes))
            answered.append(replace(step, answers=by_view.mean(1)))
        return answered

    def _look_at(self, step: Step) -> None:
        """Compute the features of a step's images that no step before had."""
        images = step.images
        new = sorted({at for _, at in _local_images(step) if (images, at) not in self._features})
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


def count_pictures(steps: Sequence[Step], config: LossConfig, views: int = _VIEWS) -> int:
    """Number of pictures of steps that this process sends through the model for pseudo-labels."""
    images = {image for step in steps for image in _local_images(step)}
    return _views_of(config, views) * len(images)


def _views_of(config: LossConfig, views: int) -> int:
    return views if config.weak_aug else 1


@torch.no_grad()
def choose_pseudo_labeller(
    objective: Objective, config: LossConfig, steps: Sequence[Step]
) -> tuple[float, dict[float, float]]:
    """Choose whose answers stand in for labels: the zero-shot model's if it surely tells the images
    apart better, else the fine-tuned model's.

    How well a model tells them apart is the mutual information of image and answer: high if it
    answers the views of an image alike, and different images differently. The middle of the path
    is not asked: it answers views alike more often than it is right.

    Args:
        objective: Left at one end of the path.
        config: Of the loss; without weak augmentation the fine-tuned model answers.
        steps: Training steps, the images of the first of which are looked at.

    Returns:
        The model's alpha, and the mutual information in nats by alpha.

    Source:
        Bridle et al. 1991, Unsupervised Classifiers, Mutual Information and 'Phantom Targets'.
    """
    seen = set[int]()
    looked_at = list[Step]()
    for step in steps:
        if len(seen) < _CHOICE_IMAGES and not seen.issuperset(step.positions):
            seen |= set(step.positions)
            looked_at.append(step)
    if not looked_at or not config.weak_aug:
        return 1.0, {}
    work = sum(len(step) * step.work_share for step in looked_at)
    objective.work.announce(FORWARD * _CHOICE_VIEWS * 2 * work)
    information = {
        alpha: _information(_count_votes(objective, config, looked_at, alpha))
        for alpha in (0.0, 1.0)
    }
    gain = information[0.0] - information[1.0]
    is_sure = float(gain.mean()) > _SURE * float(gain.std()) / math.sqrt(len(gain))
    means = {alpha: float(by_image.mean()) for alpha, by_image in information.items()}
    return 0.0 if is_sure else 1.0, means


def _count_votes(
    objective: Objective, config: LossConfig, steps: Sequence[Step], alpha: float
) -> Tensor:
    """Count how often each class is a model's answer about an image, over all processes, (images,
    classes).
    """
    objective.weights.set_alpha(alpha)
    cached = embeds_less_at_once(objective, steps)
    images = sorted({position for step in steps for position in step.positions})
    row_of = {position: row for row, position in enumerate(images)}
    votes = torch.zeros(len(images), objective.criterion.prompts.classes)
    for step in steps:
        classes = class_features(objective, step, config, cached=cached)
        positions = list(step.positions[step.local_rows])
        pixels, count = step.batch.pixels, len(step.images.labels)
        answers = []
        for view in range(_CHOICE_VIEWS):
            augmented = weak_augment(pixels, _SEEDS + view, config.weak_aug, count, positions)
            features = image_features(objective, config, augmented)
            answers.append(objective.criterion.model.logits(features, classes).argmax(-1))
        best = torch.cat(answers).cpu()
        if step.classes is not None:
            best = step.classes[best]
        rows = torch.tensor([row_of[position] for position in positions]).repeat(_CHOICE_VIEWS)
        votes.index_put_((rows, best), torch.ones(len(rows)), accumulate=True)
        objective.work.tick(FORWARD * _CHOICE_VIEWS * len(positions))
    votes = to_device(votes, objective.data.context.device)
    objective.data.all_reduce_(votes)
    return votes.cpu().double()


def _information(votes: Tensor) -> Tensor:
    """The mutual information of image and answer in nats, as one term per image, (images,)."""
    shares = votes / votes.sum(1, keepdim=True)
    mean = shares.mean(0)
    return (torch.xlogy(shares, shares) - torch.xlogy(shares, mean)).sum(1)


def _local_images(step: Step) -> list[tuple[ShardedBatches, int]]:
    """This process's images of a step, as keys."""
    return [(step.images, at) for at in step.positions[step.local_rows]]
