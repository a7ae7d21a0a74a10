"""The losses of images with captions, against open_clip's own."""

import pytest
import torch
from open_clip.loss import ClipLoss, SigLipLoss
from torch import Tensor
from torch.nn.functional import normalize

from clipmerge.images.batches import Batch
from clipmerge.models.classifier import sigmoid_losses, softmax_losses
from tests.learning.test_objective import assert_gradients
from tests.support.small_objective import CAPTIONS, Ends, Reference, captioned, contrastive


def drawn(images: int, captions: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(  # type: ignore[return-value]
        normalize(torch.randn(count, 6, generator=generator, dtype=torch.float64), dim=1)
        for count in (images, captions)
    )


def test_the_sigmoid_loss_is_that_of_open_clip() -> None:
    images, texts = drawn(9, 9)
    scale, bias = torch.tensor(7.0, dtype=torch.float64), torch.tensor(-3.0, dtype=torch.float64)
    found = sigmoid_losses(scale * images @ texts.T + bias, torch.arange(9)).mean()
    assert abs(float(found - SigLipLoss()(images, texts, scale, bias))) < 1e-12


def test_images_with_one_caption_are_not_each_others_negatives() -> None:
    """Images 0, 2 and 3 share a caption: each alone has the loss of a batch without the others."""
    images, texts = drawn(5, 3, seed=1)
    scores, labels = 4 * images @ texts.T, torch.tensor([0, 1, 0, 0, 2])
    losses = softmax_losses(scores, labels)
    for image in (0, 2, 3):
        alone = [image, 1, 4]
        expected = softmax_losses(scores[alone], labels[alone])[0]
        assert float(losses[image]) == pytest.approx(float(expected), abs=1e-12)


class CaptionReference(Reference):
    """The same loss in float64, by transformers' forward and open_clip's loss."""

    def __init__(self, ends: Ends) -> None:
        super().__init__(ends, templates=("{}",), classes=CAPTIONS)

    def loss(self, batch: Batch) -> Tensor:
        output = self.model(pixel_values=batch.pixels.double(), **self.tokens)
        texts = output.text_embeds[batch.labels]
        loss: Tensor = ClipLoss()(output.image_embeds, texts, self.model.logit_scale.exp())
        return loss


@pytest.mark.parametrize("options", [{}, {"max_images": 2}, {"prompts_at_once": 3}])
def test_gradients_are_those_of_open_clips_loss_also_in_pieces(
    ends: Ends, options: dict[str, int]
) -> None:
    batches = captioned((7, 5))
    objective, reference = contrastive(ends, batches, **options), CaptionReference(ends)
    objective.path.set_alpha(0.3)
    reference.at(0.3)
    assert_gradients(objective, reference, batches)
