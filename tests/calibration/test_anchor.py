"""Tests of the point of the straight path whose features are held."""

import numpy as np
import pytest
import torch

from clipmerge.calibration import anchor
from clipmerge.calibration.anchor import effective_rank, find_anchor
from tests.support.small_objective import Ends, Reference, make_batches, objective_for


def test_loss_accuracy_and_rank_are_those_of_all_images(ends: Ends) -> None:
    batches = make_batches((5, 8, 4))
    reference = Reference(ends).at(0.7)
    losses, features, right = [], [], 0
    for batch in batches:
        outputs = reference.model(pixel_values=batch.pixels.double(), **reference.tokens)
        losses += [reference.loss(batch).item()] * len(batch)
        right += int((outputs.logits_per_image.argmax(1) == batch.labels).sum())
        features.append(outputs.image_embeds.detach().numpy())
    values = np.linalg.eigvalsh(np.cov(np.concatenate(features).T, bias=True))
    point = anchor._point(objective_for(ends, batches), 0.7)
    assert point.loss == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    assert point.accuracy == pytest.approx(right / 17)
    assert point.rank == pytest.approx(values.sum() ** 2 / (values**2).sum(), rel=1e-3)


def test_one_direction_has_rank_one_and_equal_features_have_none() -> None:
    direction = torch.tensor([3.0, 4.0])
    assert effective_rank(direction.outer(direction)) == pytest.approx(1.0)
    assert effective_rank(torch.zeros(2, 2)) == 0.0


FALLING = [6.0, 5.0, 4.0, 3.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("ranks", "losses", "right", "expected"),
    [
        ([3.0] * 6, FALLING, [0.9] * 6, (0.9, False)),  # nothing has collapsed
        ([3.0, 2.5, 2.1, 1.9, 1.0, 1.0], FALLING, [0.9] * 6, (0.7, False)),  # two thirds of three are two
        ([1.0] * 6, FALLING, [0.9] * 6, (0.5, True)),  # all have collapsed
        ([1.0] * 6, FALLING, [0.8, 0.86, 0.88, 0.9, 0.9, 0.9], (0.7, True)),  # and 0.6 loses too much
        ([3.0, 3.0, 1.0, 1.0, 1.0, 1.0], FALLING, [0.8, 0.86, 0.88, 0.9, 0.9, 0.9], (0.7, True)),
        ([3.0] * 6, [1.0, 5.0, 4.0, 3.0, 1.5, 2.0], [0.9] * 6, (0.5, False)),
    ],
)
def test_the_anchor_has_the_lowest_loss_of_what_has_not_collapsed(
    ends: Ends,
    monkeypatch: pytest.MonkeyPatch,
    ranks: list[float],
    losses: list[float],
    right: list[float],
    expected: tuple[float, bool],
) -> None:
    points = dict(zip(anchor.ANCHORS, map(anchor.PathPoint, losses, right, ranks), strict=True))
    points[0.0] = anchor.PathPoint(9.0, 0.1, 3.0)
    monkeypatch.setattr(anchor, "_point", lambda objective, alpha: points[alpha])
    found = find_anchor(objective_for(ends, make_batches((2,))), 3.0)
    assert (found.alpha, found.harmed, found.finetuned_rank) == (*expected, pytest.approx(ranks[-1] / 3))
