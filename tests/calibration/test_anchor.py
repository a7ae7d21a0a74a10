"""Tests of the point of the straight path whose features are held."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clipmerge.calibration import anchor
from clipmerge.calibration.anchor import effective_rank, find_anchor
from tests.support.small_objective import Ends, Reference, make_batches, objective_for


def test_loss_and_rank_are_those_of_all_images(ends: Ends) -> None:
    batches = make_batches((5, 8, 4))
    reference = Reference(ends).at(0.7)
    losses, features = [], []
    for batch in batches:
        outputs = reference.model(pixel_values=batch.pixels.double(), **reference.tokens)
        losses += [reference.loss(batch).item()] * len(batch)
        features.append(outputs.image_embeds.detach().numpy())
    values = np.linalg.eigvalsh(np.cov(np.concatenate(features).T, bias=True))
    loss, rank = anchor._loss_and_rank(objective_for(ends, batches), 0.7)
    assert loss == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    assert rank == pytest.approx(values.sum() ** 2 / (values**2).sum(), rel=1e-3)


def test_one_direction_has_rank_one_and_equal_features_have_none() -> None:
    direction = torch.tensor([3.0, 4.0])
    assert effective_rank(direction.outer(direction)) == pytest.approx(1.0)
    assert effective_rank(torch.zeros(2, 2)) == 0.0


@pytest.mark.parametrize(
    ("ranks", "losses", "expected"),
    [
        ([3.0, 3.0, 3.0, 3.0, 3.0, 3.0], [6.0, 5.0, 4.0, 3.0, 1.0, 2.0], 0.9),  # nothing has collapsed
        ([3.0, 2.5, 2.1, 1.9, 1.0, 1.0], [6.0, 5.0, 4.0, 3.0, 1.0, 2.0], 0.7),  # two thirds of three are two
        ([1.0, 1.0, 1.0, 1.0, 1.0, 1.0], [6.0, 5.0, 4.0, 3.0, 1.0, 2.0], 0.5),  # all have collapsed
        ([3.0, 3.0, 3.0, 3.0, 3.0, 3.0], [1.0, 5.0, 4.0, 3.0, 1.5, 2.0], 0.5),
    ],
)
def test_the_anchor_has_the_lowest_loss_of_what_has_not_collapsed(
    ends: Ends, monkeypatch: pytest.MonkeyPatch, ranks: list[float], losses: list[float], expected: float
) -> None:
    found = dict(zip(anchor.ANCHORS, zip(losses, ranks, strict=True), strict=True)) | {0.0: (9.0, 3.0)}
    monkeypatch.setattr(anchor, "_loss_and_rank", lambda objective, alpha: found[alpha])
    assert find_anchor(objective_for(ends, make_batches((2,)))) == expected
