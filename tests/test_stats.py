"""The published intervals contain the true value in 95% of the cases, within two points, on 20 to
1,000 images.

Models are simulated by a threshold on a latent score of every image, which is made of its class, of
the image itself, of the model and of the view, so that outcomes of one image or one class are as
correlated as real ones. True values are those of the whole population: the classes at hand, and all
images that they could have."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri
from scipy.stats import binomtest, bootstrap

from clipmerge.evaluation.tradeoff import compare_with_curve, curve_height
from clipmerge.stats import mean_of_sources, mean_share, paired_accuracy_interval, wilson

Floats = NDArray[np.float64]
LEVEL, SLACK = 0.95, 0.02
ALPHAS = np.linspace(0, 1, 11)


def within(covered: list[bool]) -> bool:
    """Whether the level is held within two points and two standard errors of the simulation."""
    error = 2 * math.sqrt(LEVEL * (1 - LEVEL) / len(covered))
    return abs(float(np.mean(covered)) - LEVEL) <= SLACK + error


def sample_of(classes: int, images: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """The class of each image of a balanced sample; where there are more classes than images, which
    ones is drawn."""
    each, rest = divmod(images, classes)
    return np.concatenate(
        [np.repeat(np.arange(classes), each), rng.choice(classes, rest, replace=False)]
    )


class Models:
    """A fine-tuned and a merged model on images of some classes, unchanged and under views."""

    def __init__(self, classes: int, images: int, views: int, rng: np.random.Generator) -> None:
        self.by_class, self.by_view = (
            math.sqrt(rng.uniform(0, 0.15)),
            math.sqrt(rng.uniform(0.1, 0.3)),
        )
        self.by_model = math.sqrt(rng.uniform(0.1, 0.3))
        rest = math.sqrt(1 - self.by_class**2 - self.by_view**2 - self.by_model**2)
        self.effects, chosen = rng.normal(size=classes), sample_of(classes, images, rng)
        finetuned = rng.uniform(0.7, 0.97)
        self.accuracy = np.array([finetuned, finetuned - rng.uniform(-0.02, 0.15)])
        base = rest * rng.normal(size=images) + self.by_class * self.effects[chosen]
        own = base + self.by_model * rng.normal(size=(2, images))
        self.clean = (
            own + self.by_view * rng.normal(size=(2, images)) < ndtri(self.accuracy)[:, None]
        )
        # under a view, both models are worse, by amounts of their own
        self.worse = self.accuracy[:, None] * rng.uniform(0.5, 0.95, (2, views))
        seen = own[:, None] + self.by_view * rng.normal(size=(2, views, images))
        self.seen = (seen < ndtri(self.worse)[..., None]).mean(axis=1)

    def truth(self, accuracy: Floats) -> Floats:
        """Mean accuracy over the classes at hand: shape (models,) or (models, views)."""
        spread = math.sqrt(1 - self.by_class**2)
        shifted = (ndtri(accuracy)[..., None] - self.by_class * self.effects) / spread
        found: Floats = ndtr(shifted).mean(axis=-1)
        return found


@pytest.mark.uncounted
@pytest.mark.parametrize("classes", [10, 2000])
@pytest.mark.parametrize(("images", "views"), [(20, 5), (100, 5), (256, 2)])
def test_the_verdicts_intervals_cover(images: int, views: int, classes: int) -> None:
    rng = np.random.default_rng(images + classes)
    covered: dict[str, list[bool]] = {}
    for _ in range(
        1500 if images == 20 else 300
    ):  # on few images intervals differ, by a point or two
        models = Models(min(classes, 2 * images), images, views, rng)
        truth, seen_truth = models.truth(models.accuracy), models.truth(models.worse).mean(axis=1)
        intervals = {
            "accuracy": (wilson(float(models.clean[1].mean()), images), truth[1]),
            "corrupted": (mean_share(models.seen[1]), seen_truth[1]),
            "loss": (
                paired_accuracy_interval(models.clean[1] - models.clean[0].astype(float)),
                truth[1] - truth[0],
            ),
            "gain": (
                paired_accuracy_interval(models.seen[1] - models.seen[0], views),
                seen_truth[1] - seen_truth[0],
            ),
        }
        for name, ((low, high), value) in intervals.items():
            covered.setdefault(name, []).append(low <= value <= high)
    missed = {name: float(np.mean(hits)) for name, hits in covered.items() if not within(hits)}
    assert missed == {}


def scenario(rng: np.random.Generator) -> tuple[Floats, Floats]:
    """True ID and OOD accuracies of eleven alphas, whose curve bends, and of a recipe near it."""
    zeroshot, finetuned = rng.uniform(0.5, 0.75), rng.uniform(0.85, 0.97)
    near = zeroshot + (finetuned - zeroshot) * (1 - (1 - ALPHAS) ** rng.uniform(1.5, 3))
    far = rng.uniform(0.4, 0.7) * (1 - ALPHAS) + rng.uniform(0.3, 0.6) * ALPHAS
    far += 4 * rng.uniform(0.02, 0.12) * ALPHAS * (1 - ALPHAS)
    alpha = rng.uniform(0.35, 0.8)
    recipe_near = min(0.985, np.interp(alpha, ALPHAS, near) + rng.uniform(-0.01, 0.02))
    recipe_far = np.interp(alpha, ALPHAS, far) + rng.uniform(-0.03, 0.08)
    return np.append(near, recipe_near), np.append(far, recipe_far)


def recognised(accuracy: Floats, images: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Outcomes of the points, shape (points, images): alphas that are close to each other fail on
    the same images."""
    covariance = np.exp(-(((ALPHAS[:, None] - ALPHAS) / 0.4) ** 2) / 2) + 1e-9 * np.eye(len(ALPHAS))
    smooth = np.linalg.cholesky(covariance) @ rng.normal(size=(len(ALPHAS), images))
    own = np.concatenate([smooth, 0.8 * smooth[5:6] + 0.6 * rng.normal(size=(1, images))])
    score = (
        math.sqrt(0.65) * rng.normal(size=images)
        + 0.5 * own
        + math.sqrt(0.1) * rng.normal(size=own.shape)
    )
    return score < ndtri(accuracy)[:, None]


@pytest.mark.uncounted
def test_a_sweeps_intervals_cover() -> None:
    """The gain at equal ID accuracy, and the mean OOD accuracy of two sources."""
    images = 100
    rng = np.random.default_rng(images)
    gains, means = list[bool](), list[bool]()
    for trial in range(120):
        near, far = scenario(rng)
        truth = float(
            far[-1] - curve_height(near[None, :-1], far[None, :-1], near[None, -1:])[0, 0]
        )
        right = [recognised(near, images, rng), *(recognised(far, images, rng) for _ in range(2))]
        found = compare_with_curve(
            right[:1], right[1:], range(len(ALPHAS)), seed=trial, resamples=200
        )[-1]
        means.append(found["ood_interval"][0] <= far[-1] <= found["ood_interval"][1])
        if found["gain_interval"] is not None and not math.isnan(truth):
            gains.append(found["gain_interval"][0] <= truth <= found["gain_interval"][1])
    assert len(gains) > 100
    assert within(gains), np.mean(gains)
    assert within(means), np.mean(means)


@given(
    st.integers(1, 300).flatmap(lambda images: st.tuples(st.integers(0, images), st.just(images)))
)
def test_wilson_is_scipys(counts: tuple[int, int]) -> None:
    right, images = counts
    expected = binomtest(right, images).proportion_ci(confidence_level=0.95, method="wilson")
    assert wilson(right / images, images) == pytest.approx((expected.low, expected.high), abs=1e-9)


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_a_share_of_images_that_are_recognised_or_not_is_wilsons(right: list[bool]) -> None:
    values = np.array(right, dtype=float)
    assert mean_share(values) == pytest.approx(wilson(float(values.mean()), len(values)))
    assert mean_of_sources([values > 0]) == pytest.approx(wilson(float(values.mean()), len(values)))


@pytest.mark.parametrize("images", [5, 10, 20, 50])
@pytest.mark.parametrize(
    ("better", "worse"), [(0.02, 0.05), (0.1, 0.1), (0.05, 0.3), (0.001, 0.01)]
)
def test_the_paired_interval_has_its_level_over_every_outcome(
    images: int, better: float, worse: float
) -> None:
    covered = 0.0
    for plus in range(images + 1):
        for minus in range(images + 1 - plus):
            same = images - plus - minus
            ways = math.factorial(images) // (
                math.factorial(plus) * math.factorial(minus) * math.factorial(same)
            )
            low, high = paired_accuracy_interval(np.repeat([1.0, -1.0, 0.0], [plus, minus, same]))
            if low <= better - worse <= high:
                covered += ways * better**plus * worse**minus * (1 - better - worse) ** same
    assert covered >= 0.94  # within two points of the level, as all published intervals


def test_the_paired_interval_is_the_bootstraps_where_images_are_many() -> None:
    rng = np.random.default_rng(0)
    differences = rng.choice(
        [-1.0, -0.5, 0.0, 0.5, 1.0], size=2000, p=[0.02, 0.05, 0.8, 0.08, 0.05]
    )
    expected = bootstrap(
        (differences,), np.mean, method="percentile", rng=rng, n_resamples=4000
    ).confidence_interval
    assert paired_accuracy_interval(differences) == pytest.approx(
        (expected.low, expected.high), abs=0.001
    )


def test_the_paired_interval_stays_inside_what_a_difference_can_be() -> None:
    assert paired_accuracy_interval(np.ones(2))[1] <= 1
    assert paired_accuracy_interval(-np.ones(2))[0] >= -1
    low, high = paired_accuracy_interval(
        np.zeros(20)
    )  # models that never differ may still differ on other images
    assert low < -0.08 < 0.08 < high
