"""Learning where the fine-tuned model's answers stand in for labels, against transformers."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from clipmerge.learning.answers import FinetunedAnswers, affordable_views
from clipmerge.learning.augmentation import weak_augment
from clipmerge.learning.choice import validate
from clipmerge.learning.coefficients import Coefficients
from clipmerge.learning.learn import LearningConfig, learn
from clipmerge.learning.learning_loss import LossConfig
from clipmerge.learning.steps import Step, lay_out
from tests.support.small_objective import Ends, Reference, descend, make_batches, objective_for

SIZES = (8, 8, 7)
LOSS = LossConfig(0.0, weak_aug=1.0, labelled=False)


def logits_of(ends: Ends, alpha: float, pixels: torch.Tensor) -> torch.Tensor:
    reference = Reference(ends).at(alpha)
    with torch.no_grad():
        logits: torch.Tensor = reference.model(
            pixel_values=pixels.double(), **reference.tokens
        ).logits_per_image
    return logits


def logits_of_step(ends: Ends, alpha: float, step: Step) -> torch.Tensor:
    return logits_of(ends, alpha, weak_augment(step.batch.pixels, step.seed + 1))


def logits_of_views(ends: Ends, step: Step) -> torch.Tensor:
    """The fine-tuned model's logits for 16 views of the step's images, (16, images, classes)."""
    images = torch.cat([batch.pixels for batch in make_batches(SIZES)])
    views = [weak_augment(images, 2**42 + view) for view in range(16)]
    return torch.stack([logits_of(ends, 1.0, view) for view in views])[:, list(step.positions)]


def test_the_loss_is_the_cross_entropy_of_the_finetuned_models_mean_probabilities(
    ends: Ends,
) -> None:
    objective = objective_for(ends, make_batches(SIZES), labelled=False)
    (step,) = FinetunedAnswers(objective, LOSS).with_probabilities(lay_out(objective, 1).steps)
    objective.weights.set_alpha(0.4)
    losses = descend(objective, step, LOSS)
    answers = logits_of_views(ends, step).softmax(-1).mean(0)
    logits = logits_of_step(ends, 0.4, step)
    assert losses.cross_entropy == pytest.approx(float(cross_entropy(logits, answers)), rel=1e-5)
    expected = answers.gather(1, logits.argmax(1)[:, None]).mean()
    assert losses.accuracy == pytest.approx(float(expected), rel=1e-5)


def test_accuracy_is_the_share_of_the_finetuned_models_views_that_agree(ends: Ends) -> None:
    objective = objective_for(ends, make_batches(SIZES), labelled=False)
    held_out = lay_out(objective, 1, held_out_share=0.3).validation_steps
    steps = FinetunedAnswers(objective, LOSS).with_votes(held_out)
    objective.weights.set_alpha(0.4)
    found = validate(objective, steps, LOSS)
    expected: dict[int, list[float]] = {}
    for step in steps:
        votes = logits_of_views(ends, step).argmax(-1)
        best = logits_of_step(ends, 0.4, step).argmax(1)
        shares = (votes == best).double().mean(0)
        for position, share in zip(step.positions, shares.tolist(), strict=True):
            expected.setdefault(position, []).append(share)
    means = [sum(expected[at]) / len(expected[at]) for at in sorted(expected)]
    assert found.tolist() == pytest.approx(means, rel=1e-5)


def test_many_images_are_looked_at_no_more_often_than_steps_would(ends: Ends) -> None:
    objective = objective_for(ends, make_batches(SIZES), labelled=False)
    assert [affordable_views(lay_out(objective, steps).steps) for steps in (0, 3, 20, 99)] == [
        1,
        1,
        160 // 23,
        16,
    ]


def test_a_process_that_shares_a_step_finds_the_same_answers(ends: Ends) -> None:
    objective = objective_for(ends, make_batches(SIZES), labelled=False)
    (step,) = lay_out(objective, 1).steps
    (whole,) = FinetunedAnswers(objective, LOSS).with_probabilities([step])
    (shard,) = FinetunedAnswers(objective, LOSS).with_probabilities(
        [replace(step, rank=1, world_size=2)]
    )
    assert whole.answers is not None
    assert shard.answers is not None
    assert torch.allclose(shard.answers, whole.answers[1::2], rtol=1e-5)


def test_no_label_is_read(ends: Ends) -> None:
    learned = []
    for seed in (0, 1):
        batches = make_batches(SIZES)
        generator = torch.Generator().manual_seed(seed)
        for batch in batches:
            batch.labels.copy_(torch.randint(0, 3, batch.labels.shape, generator=generator))
        objective = objective_for(ends, batches, labelled=False)
        coefficients = Coefficients(objective, "entry")
        config = LearningConfig(LossConfig(0.3, weak_aug=1.0), 4, 0.1)
        learn(objective, coefficients, config)
        learned.append(coefficients.by_parameter())
    for name, values in learned[0].items():
        assert torch.equal(values, learned[1][name])
