"""Learning where the fine-tuned model's probabilities stand in for labels, against transformers."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from clipmerge.learning.augmentation import weak_augment
from clipmerge.learning.choice import validate
from clipmerge.learning.coefficients import Coefficients
from clipmerge.learning.learn import LearningConfig, learn
from clipmerge.learning.learning_loss import LossConfig, with_finetuned_answers
from clipmerge.learning.steps import Step, lay_out
from tests.support.small_objective import Ends, Reference, descend, make_batches, objective_for

SIZES = (8, 8, 7)
LOSS = LossConfig(0.0, weak_aug=1.0, labelled=False)


def reference_logits(ends: Ends, alpha: float, step: Step) -> torch.Tensor:
    reference = Reference(ends).at(alpha)
    pixels = weak_augment(step.batch.pixels, step.seed + 1).double()
    with torch.no_grad():
        return reference.model(pixel_values=pixels, **reference.tokens).logits_per_image


def test_the_loss_is_the_cross_entropy_of_the_finetuned_models_probabilities(ends: Ends) -> None:
    objective = objective_for(ends, make_batches(SIZES), labelled=False)
    (step,) = with_finetuned_answers(objective, lay_out(objective, 1).steps, LOSS)
    objective.weights.set_alpha(0.4)
    losses = descend(objective, step, LOSS)
    answers = reference_logits(ends, 1.0, step).softmax(1)
    logits = reference_logits(ends, 0.4, step)
    assert losses.cross_entropy == pytest.approx(float(cross_entropy(logits, answers)), rel=1e-5)
    expected = answers.gather(1, logits.argmax(1)[:, None]).mean()
    assert losses.accuracy == pytest.approx(float(expected), rel=1e-5)


def test_accuracy_is_what_the_finetuned_models_probabilities_expect(ends: Ends) -> None:
    objective = objective_for(ends, make_batches(SIZES), labelled=False)
    held_out = lay_out(objective, 1, held_out_share=0.3).validation_steps
    steps = with_finetuned_answers(objective, held_out, LOSS)
    objective.weights.set_alpha(0.4)
    found = validate(objective, steps, LOSS)
    expected: dict[int, list[float]] = {}
    for step in steps:
        answers = reference_logits(ends, 1.0, step).softmax(1)
        best = reference_logits(ends, 0.4, step).argmax(1)
        for position, share in zip(
            step.positions, answers.gather(1, best[:, None])[:, 0].tolist(), strict=True
        ):
            expected.setdefault(position, []).append(share)
    means = [sum(expected[at]) / len(expected[at]) for at in sorted(expected)]
    assert found.tolist() == pytest.approx(means, rel=1e-5)


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
