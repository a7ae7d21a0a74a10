"""The loss of images with captions, against open_clip's own losses and finite differences."""

import json
import math
from pathlib import Path

import pytest
import torch
from open_clip.loss import ClipLoss, SigLipLoss
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import logsigmoid, normalize

from clipmerge.learning.contrastive_loss import ContrastiveLoss, sigmoid_losses, softmax_losses
from clipmerge.learning.learning_loss import LossConfig, make_pictures
from clipmerge.learning.objective import Batch
from clipmerge.learning.slopes import Slopes
from tests.support.several import several
from tests.support.small_objective import (
    CAPTIONS,
    Ends,
    Reference,
    captioned,
    contrastive,
    descend,
    prepare,
    save_ends,
)


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> Ends:
    return save_ends(tmp_path_factory.mktemp("ends"))


def drawn(images: int, captions: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(  # type: ignore[return-value]
        normalize(torch.randn(count, 6, generator=generator, dtype=torch.float64), dim=1)
        for count in (images, captions)
    )


def test_the_losses_are_those_of_open_clip() -> None:
    images, texts = drawn(9, 9)
    scale, bias = torch.tensor(7.0, dtype=torch.float64), torch.tensor(-3.0, dtype=torch.float64)
    found = softmax_losses(scale * images @ texts.T, torch.arange(9)).mean()
    assert abs(float(found - ClipLoss()(images, texts, scale))) < 1e-12
    found = sigmoid_losses(scale * images @ texts.T + bias, torch.arange(9)).mean()
    assert abs(float(found - SigLipLoss()(images, texts, scale, bias))) < 1e-12


def test_images_with_one_caption_are_not_each_others_negatives() -> None:
    """Entry by entry: images 0, 2 and 3 share a caption."""
    images, texts = drawn(5, 3, seed=1)
    scores = 4 * images @ texts.T
    labels = [0, 1, 0, 0, 2]
    losses, pairs = (
        softmax_losses(scores, torch.tensor(labels)),
        sigmoid_losses(scores, torch.tensor(labels)),
    )
    for image, caption in enumerate(labels):
        row = [float(scores[image, other]) for other in range(3)]
        to_text = math.log(sum(map(math.exp, row))) - row[caption]
        column = [
            float(scores[other, caption])
            for other in range(5)
            if other == image or labels[other] != caption
        ]
        to_image = math.log(sum(map(math.exp, column))) - float(scores[image, caption])
        assert float(losses[image]) == pytest.approx((to_text + to_image) / 2, abs=1e-12)
        each = [
            -float(logsigmoid(scores[image, other] * (1 if other == caption else -1)))
            for other in range(3)
        ]
        assert float(pairs[image]) == pytest.approx(sum(each), abs=1e-12)


class CaptionReference(Reference):
    """The same loss in float64, by transformers' forward and open_clip's loss."""

    def __init__(self, ends: Ends) -> None:
        super().__init__(ends, templates=("{}",), classes=CAPTIONS)

    def loss(self, batch: Batch) -> Tensor:
        output = self.model(pixel_values=batch.pixels.double(), **self.tokens)
        texts = output.text_embeds[batch.labels]
        loss: Tensor = ClipLoss()(output.image_embeds, texts, self.model.logit_scale.exp())
        return loss


@pytest.mark.parametrize("options", [{}, {"images_at_once": 2}, {"prompts_at_once": 3}])
def test_gradients_are_those_of_open_clips_loss_also_in_pieces(
    ends: Ends, options: dict[str, int]
) -> None:
    batches = captioned((5, 7))
    objective, reference = contrastive(ends, batches, **options), CaptionReference(ends)
    assert isinstance(objective.criterion, ContrastiveLoss)
    objective.weights.set_alpha(0.3)
    reference.at(0.3)
    for batch, loss in objective.gradients():
        expected_loss = float(reference.loss(batches[batch.number]).detach())
        assert loss == pytest.approx(expected_loss, abs=1e-5)
        expected = reference.gradient(batches[batch.number])
        for names in objective.weights.layers.values():
            for name in names:
                found = objective.weights.gradient_of(name).double()
                assert torch.allclose(found, expected[name], rtol=2e-3, atol=2e-6), name


def test_slopes_are_finite_differences_along_the_path(ends: Ends) -> None:
    batches, step = captioned((6, 8)), 1e-5
    objective, reference = contrastive(ends, batches), CaptionReference(ends)
    for alpha in (0.0, 0.4, 1.0):
        slopes = Slopes(objective)
        assert slopes.drawn == len(CAPTIONS)  # nothing is drawn: a batch has its own captions alone
        rows, _ = slopes.at(alpha)
        for batch, row in zip(batches, rows, strict=True):
            with torch.no_grad():
                ahead, behind = (
                    float(reference.at(alpha + sign * step).loss(batch)) for sign in (1, -1)
                )
            assert row.sum() == pytest.approx((ahead - behind) / (2 * step), rel=1e-3, abs=1e-4)


def test_a_step_of_learning_is_the_loss_of_its_images_also_in_pieces(ends: Ends) -> None:
    batches = captioned((8,))
    config = LossConfig(0.5, augmentations=(), weak_aug=0.0)
    gradients, losses = [], []
    for at_once in (None, 3):
        objective = contrastive(ends, batches)
        (step,) = prepare(objective, config, 1)
        objective.weights.set_alpha(0.6)
        losses.append(descend(objective, step, config, at_once=at_once))
        gradients.append(
            {
                name: objective.weights.gradient_of(name).clone()
                for names in objective.weights.layers.values()
                for name in names
            }
        )
    pictures = make_pictures(step, config)
    assert len(pictures.labels) == 8
    order = torch.tensor(step.positions)
    shown = Batch(0, batches[0].pixels[order], batches[0].labels[order])
    with torch.no_grad():
        expected = float(CaptionReference(ends).at(0.6).loss(shown))
    for found in losses:
        assert found.cross_entropy == pytest.approx(expected, abs=1e-5)
        assert found.distillation_loss > 0
    for name, whole in gradients[0].items():
        assert torch.allclose(gradients[1][name], whole, rtol=1e-3, atol=1e-6), name


@pytest.mark.slow
def test_processes_compute_open_clips_loss_and_learn_the_same(ends: Ends, tmp_path: Path) -> None:
    """open_clip's losses over as many processes, their features gathered with gradients."""
    for path in ends:
        (tmp_path / path.name).symlink_to(path)
    for count in (1, 2, 4):
        run = several(count, "tests.support.contrast_shared", tmp_path)
        assert run.returncode == 0, run.stderr[-3000:]
        for rank in range(count):
            errors = json.loads((tmp_path / f"{count}-{rank}.json").read_text())
            assert {"softmax", "softmax gradient", "sigmoid", "sigmoid gradient"} < set(errors)
            for name, error in errors.items():
                assert error < (1e-6 if name.startswith("batch") else 1e-12), (count, name)
            alone = load_file(tmp_path / "1-0.safetensors")
            learned = load_file(tmp_path / f"{count}-{rank}.safetensors")
            for name, value in alone.items():
                if not name.endswith("k_proj.bias"):  # a softmax does not see it
                    assert torch.allclose(learned[name], value, atol=1e-3), (count, name)
