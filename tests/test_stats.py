"""The published intervals contain the true value in 95% of the cases, within two points.

Models are simulated by a threshold on a latent score of every image, which is made of the image
itself, of the model and of the view, so that outcomes of one image go together.
"""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import ndtri
from scipy.stats import binomtest, multinomial

from clipmerge.evaluation.tradeoff import curve_height, gains_over_curve
from clipmerge.stats import mean_of_sources, mean_share, paired_accuracy_interval, wilson

Floats = NDArray[np.float64]
LEVEL, SLACK = 0.95, 0.02


def within(covered: list[bool]) -> bool:
    """Whether the level is held within two points and two standard errors of the simulation."""
    error = 2 * math.sqrt(LEVEL * (1 - LEVEL) / len(covered))
    return abs(float(np.mean(covered)) - LEVEL) <= SLACK + error


def recognised(accuracy: Floats, images: int, rng: np.random.Generator) -> Floats:
    """Which images models of a true accuracy (models, views) recognise: (models, views, images)."""
    models, views = accuracy.shape
    score = math.sqrt(0.5) * rng.normal(size=images)
    score = score + math.sqrt(0.3) * rng.normal(size=(models, 1, images))
    score = score + math.sqrt(0.2) * rng.normal(size=(models, views, images))
    return (score < ndtri(accuracy)[..., None]).astype(float)


@pytest.mark.uncounted
@pytest.mark.parametrize(("images", "views"), [(20, 5), (100, 5), (256, 2)])
def test_the_intervals_of_views_cover(images: int, views: int) -> None:
    """Several views of one image go together. For one view, tests below are exact."""
    rng = np.random.default_rng(images)
    shares, gains = list[bool](), list[bool]()
    for _ in range(1500 if images == 20 else 300):  # few images: a point or two off
        finetuned = rng.uniform(0.7, 0.97)
        clean = np.array([[finetuned], [finetuned - rng.uniform(-0.02, 0.15)]])
        worse = clean * rng.uniform(0.5, 0.95, (2, views))
        first, second = recognised(worse, images, rng).mean(axis=1)
        low, high = mean_share(second)
        shares.append(bool(low <= worse[1].mean() <= high))
        low, high = paired_accuracy_interval(second - first, views)
        gains.append(bool(low <= worse[1].mean() - worse[0].mean() <= high))
    assert within(shares), np.mean(shares)
    assert within(gains), np.mean(gains)


@pytest.mark.uncounted
def test_a_sweeps_intervals_cover() -> None:
    """The gain at equal ID accuracy, and the mean OOD accuracy of two sources."""
    images = 100
    rng = np.random.default_rng(images)
    gains, means = list[bool](), list[bool]()
    for trial in range(120):
        # a curve that bends, and a recipe beside its middle
        near = np.append(np.array([0.65, 0.8, 0.87, 0.9, 0.91]), rng.uniform(0.82, 0.93))
        far = np.append(np.array([0.6, 0.63, 0.61, 0.54, 0.45]), rng.uniform(0.5, 0.7))
        height = curve_height(near[:-1], far[:-1], near[-1:])[0]
        right = [recognised(each[:, None], images, rng)[:, 0] for each in (near, far, far)]
        low, high = mean_of_sources([each[-1] for each in right[1:]])
        means.append(bool(low <= far[-1] <= high))
        alphas = len(near) - 1
        (found,) = gains_over_curve(right[:1], right[1:], alphas, seed=trial, resamples=200)
        low, high = found.interval
        gains.append(bool(low <= far[-1] - height <= high))
    assert within(gains), np.mean(gains)
    assert within(means), np.mean(means)


@given(st.integers(1, 300), st.data())
def test_wilson_is_scipys(images: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, images))
    expected = binomtest(right, images).proportion_ci(confidence_level=0.95, method="wilson")
    near = pytest.approx((expected.low, expected.high), abs=1e-9)
    assert wilson(right / images, images) == near
    recognised = np.arange(images) < right
    assert mean_share(recognised.astype(float)) == near
    assert mean_of_sources([recognised]) == near


@pytest.mark.parametrize("images", [5, 10, 20, 50])
@pytest.mark.parametrize(
    ("better", "worse"), [(0.02, 0.05), (0.1, 0.1), (0.05, 0.3), (0.001, 0.01)]
)
def test_the_paired_interval_has_its_level_over_every_outcome(
    images: int, better: float, worse: float
) -> None:
    covered = 0.0
    for plus, minus in np.ndindex(images + 1, images + 1):
        same = images - plus - minus
        if same >= 0:
            low, high = paired_accuracy_interval(np.repeat([1.0, -1.0, 0.0], [plus, minus, same]))
            chance = multinomial.pmf(
                [plus, minus, same], images, [better, worse, 1 - better - worse]
            )
            covered += float(chance) * (low <= better - worse <= high)
    assert covered >= 0.94  # within two points of the level, as all published intervals


def test_the_paired_interval_stays_inside_what_a_difference_can_be() -> None:
    assert paired_accuracy_interval(np.ones(2))[1] <= 1
    low, high = paired_accuracy_interval(np.zeros(20))  # on other images they may differ
    assert low < -0.08 < 0.08 < high
