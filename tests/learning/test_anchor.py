"""Points of the straight path and mixtures: features that are held, ends in memory."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from clipmerge.learning import anchor
from clipmerge.learning.anchor import effective_rank, find_anchor, finetuned_rank
from clipmerge.learning.coefficients import Coefficients
from clipmerge.learning.mixtures import try_mixture
from tests.support.raw_safetensors import edit
from tests.support.small_objective import Ends, Reference, make_batches, objective_for, save_ends


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
    assert effective_rank(torch.zeros(2, 2)) == 0.0  # of equal features


def point_of(
    loss: float, accuracy: float, rank: float, spread: tuple[float, ...] = (0.0, 0.0)
) -> anchor.PathPoint:
    """A point whose images' losses lie around their mean."""
    return anchor.PathPoint(loss, accuracy, rank, loss + torch.tensor(spread))


FALLING = [6.0, 5.0, 4.0, 3.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("ranks", "losses", "right", "expected"),
    [
        ([3.0] * 6, FALLING, [0.9] * 6, 0.9),  # nothing has collapsed
        (
            [3.0, 2.5, 2.1, 1.9, 1.0, 1.0],
            FALLING,
            [0.9] * 6,
            0.7,
        ),  # two thirds of three are two
        ([1.0] * 6, FALLING, [0.9] * 6, 0.5),  # all have collapsed
        (
            [1.0] * 6,
            FALLING,
            [0.8, 0.86, 0.88, 0.9, 0.9, 0.9],
            0.7,
        ),  # and 0.6 loses too much
        ([3.0, 3.0, 1.0, 1.0, 1.0, 1.0], FALLING, [0.8, 0.86, 0.88, 0.9, 0.9, 0.9], 0.7),
        ([3.0] * 6, [1.0, 5.0, 4.0, 3.0, 1.5, 2.0], [0.9] * 6, 0.5),
    ],
)
def test_the_anchor_has_the_lowest_loss_of_what_has_not_collapsed(
    ends: Ends,
    monkeypatch: pytest.MonkeyPatch,
    ranks: list[float],
    losses: list[float],
    right: list[float],
    expected: float,
) -> None:
    points = dict(zip(anchor.ANCHORS, map(point_of, losses, right, ranks), strict=True))
    points[0.0] = point_of(9.0, 0.1, 3.0)
    monkeypatch.setattr(
        anchor, "_point", lambda objective, alpha, precision="float32": points[alpha]
    )
    found = find_anchor(objective_for(ends, make_batches((2,))), 3.0)
    assert (found.alpha, found.finetuned_rank) == (expected, pytest.approx(ranks[-1] / 3))


def test_a_lower_alpha_is_the_anchor_unless_its_loss_is_surely_higher(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    spread = (0.3, -0.5, 0.4, -0.6, 0.2, 0.2)  # its mean is 0, the standard error 0.186
    for above, expected in ((0.29, 0.6), (0.32, 0.7)):
        losses = {0.5: 2.0, 0.6: 1 + above, 0.7: 1.0, 0.8: 1.5, 0.9: 1.5, 1.0: 1.5}
        points = {
            a: point_of(loss, 0.9, 3.0, spread if a == 0.6 else (0.0,) * 6)
            for a, loss in losses.items()
        }
        monkeypatch.setattr(
            anchor, "_point", lambda _, alpha, points=points: points.get(alpha, points[0.5])
        )
        sure = stats.ttest_1samp(
            points[0.6].losses - points[0.7].losses, 0
        ).statistic > stats.norm.ppf(0.95)
        assert sure == (expected == 0.7)
        assert find_anchor(objective_for(ends, make_batches((4, 2))), 3.0).alpha == expected


def test_the_rank_of_fine_tuned_features_is_found_in_the_precision_of_the_goal(ends: Ends) -> None:
    objective = objective_for(ends, make_batches((5, 8, 4)))
    exact, rounded = (finetuned_rank(objective, precision) for precision in ("float32", "bfloat16"))
    assert exact == anchor._point(objective, 1.0).rank / anchor._point(objective, 0.0).rank
    assert rounded == pytest.approx(exact, rel=0.02)
    assert rounded != exact


def test_a_parameter_that_only_the_zero_shot_model_has_stays(tmp_path: Path) -> None:
    ends = save_ends(tmp_path)
    reference, alone = Reference(ends).at(1.0), "vision_model.post_layernorm.weight"
    with torch.no_grad():
        reference.parameters[alone].copy_(reference.ends[alone][0])
    edit(ends[1], **{alone: None})
    (batch,) = make_batches((4,))
    found = try_mixture(objective_for(ends, [batch], missing="keep-zeroshot"), (1.0,))
    assert found.loss == pytest.approx(reference.loss(batch).item(), rel=1e-5)


def test_a_density_of_one_drops_nothing(ends: Ends) -> None:
    objective = objective_for(ends, make_batches((2,)))
    coefficients = Coefficients(objective, "entry", 0.5)
    coefficients.make_sparse(objective.path.layers["vision.0.mlp"], 1.0)
    assert all(bool((value == 0.5).all()) for value in coefficients.by_parameter().values())
    coefficients.make_sparse(objective.path.layers["vision.0.mlp"], 0.5)
    dropped = {
        name for name, value in coefficients.by_parameter().items() if bool((value == 0).any())
    }
    assert dropped == {
        name
        for name in objective.path.layers["vision.0.mlp"]
        if objective.path.theta_0[name].numel() > 1
    }


def test_what_lies_in_memory_alone_is_copied(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ends with other storage at each reading, as those of an adapter, are held, and move like
    mapped ones."""
    from clipmerge.checkpoint import Inputs

    mapped = objective_for(ends, make_batches((2,)))
    for end in ("theta_0", "theta_1"):
        read = getattr(Inputs, end)
        monkeypatch.setattr(
            Inputs, end, lambda *given, read=read, **named: read(*given, **named).clone()
        )
    held = objective_for(ends, make_batches((2,)))
    for objective in (mapped, held):
        objective.path.move_to(0.3)
    assert all(
        torch.equal(value, mapped.path.parameters[name])
        for name, value in held.path.parameters.items()
    )
    first, second = held.path.theta_0, mapped.path.theta_0
    assert all(torch.equal(first[name], second[name]) for name in second)
