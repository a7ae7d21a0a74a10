"""The contrastive loss at the current weights: images with captions, as CLIP and SigLIP train.

Every caption is one prompt of the criterion, and an image's label is the number of its caption. The
loss compares the images of a batch with the captions of that batch. Images with the same caption
share its column, so they are not each other's negatives.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid

from clipmerge.images.batches import Batch
from clipmerge.learning.zeroshot_loss import ZeroShotLoss


class ContrastiveLoss(ZeroShotLoss):
    """The loss of images and captions at the weights that the model has now.

    It is CLIP's softmax over the batch in both directions, or SigLIP's sigmoid of every pair for
    models with a bias of their logits.
    """

    is_contrastive: ClassVar[bool] = True

    @property
    def is_sigmoid(self) -> bool:
        """Whether the model is trained with SigLIP's loss."""
        return getattr(self.model.module, "logit_bias", None) is not None

    def batch_scores(
        self,
        batch: Batch,
        prompt_features: Tensor,
        image_features: Tensor | None = None,
        *,
        at_once: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Scaled similarities of a batch's images with its captions, (batch, captions of the
        batch), and the column of each image's own caption, (batch,).
        """
        images = self.embed(batch.pixels, at_once) if image_features is None else image_features
        captions, labels = torch.unique(batch.labels, return_inverse=True)
        return self.model.logits(images, prompt_features[captions]), labels

    def image_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Each image's part of the loss, (images,), in nats; for SigLIP summed over captions."""
        return (sigmoid_losses if self.is_sigmoid else softmax_losses)(logits, labels)

    def mean_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of a batch."""
        return self.image_losses(logits, labels).mean()


def softmax_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """CLIP's loss by image: the mean of finding its caption, and of its caption finding it.

    Args:
        logits: Scores, (images, captions).
        labels: The column of each image's caption, (images,).

    Returns:
        Shape (images,), in nats. Other images of the same caption are left out where a caption is
        to find its image.

    Source:
        Radford et al. 2021, arXiv:2103.00020.
    """
    by_caption = logits[:, labels]  # column j: scores of all images with the caption of image j
    same = labels[:, None] == labels
    same.fill_diagonal_(False)
    find_image = by_caption.masked_fill(same, -torch.inf).logsumexp(0) - by_caption.diagonal()
    return (cross_entropy(logits, labels, reduction="none") + find_image) / 2


def sigmoid_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """SigLIP's loss by image: of every caption, whether it is the image's own.

    Args:
        logits: Scores with their bias, (images, captions).
        labels: The column of each image's caption, (images,).

    Returns:
        Shape (images,), in nats, summed over captions.

    Source:
        Zhai et al. 2023, arXiv:2303.15343.
    """
    signs = torch.full_like(logits, -1.0)
    signs.scatter_(1, labels[:, None], 1.0)
    return -logsigmoid(signs * logits).sum(1)
