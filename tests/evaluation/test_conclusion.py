"""The verdict never contradicts the numbers it was drawn from."""

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from clipmerge.evaluation.conclusion import (
    Conclusion,
    conclude,
    exceeds_max_loss,
    weigh_other_tasks,
)
from clipmerge.planning.merge_effect import (
    Difference,
    Estimate,
    Gain,
    ModelAccuracy,
    Recommendation,
)
from clipmerge.planning.other_tasks import OtherTaskScores, Score
from clipmerge.report.text import text_of
from clipmerge.stats import normal_interval, paired_accuracy_interval, wilson

Right = NDArray[np.float64]


def accuracy(clean: Right, corrupted: Right) -> ModelAccuracy:
    found = [
        Estimate(value=float(x.mean()), interval=wilson(float(x.mean()), len(x)))
        for x in (clean, corrupted)
    ]
    return ModelAccuracy(clean=found[0], corrupted=found[1], related=found[1], corruptions={})


def difference(first: Right, second: Right) -> Difference:
    return Difference(
        value=float((first - second).mean()), interval=paired_accuracy_interval(first - second)
    )


class Case:
    """Three models on the same images."""

    def __init__(
        self,
        right: NDArray[np.float64],
        max_loss: float,
        learned: bool = True,
    ) -> None:
        """Take outcomes: shape (zero-shot, fine-tuned, merged; clean, corrupted; images)."""
        zeroshot, finetuned, merged = right
        self.right = right
        self.max_loss = max_loss
        self.learned = learned
        self.clean = difference(merged[0], finetuned[0])
        self.corrupted = difference(merged[1], finetuned[1])
        over = [difference(merged[each], zeroshot[each]) for each in (0, 1)]
        self.over_zeroshot = Gain(clean=over[0], corrupted=over[1])

    @property
    def conclusion(self) -> Conclusion:
        models = [accuracy(*model) for model in self.right]
        return conclude(
            finetuned=models[1],
            merged=models[2],
            over_finetuned=Gain(clean=self.clean, corrupted=self.corrupted),
            over_zeroshot=self.over_zeroshot,
            images=self.right.shape[2],
            max_loss=self.max_loss,
            learned=self.learned,
        )

    def counted(self, model: int, condition: int) -> Any:
        """The share in per cent, counted one by one, as a text with one decimal can give it."""
        total = 0.0
        for value in self.right[model, condition]:
            total += float(value)
        return pytest.approx(100 * total / self.right.shape[2], abs=0.0501)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Images that a model recognises at random, at rates from nothing to everything; few and
    many."""
    images = draw(st.sampled_from([1, 3, 15, 40, 100, 256, 2000]))
    rates = [draw(st.sampled_from([0.0, 0.1, 0.5, 0.7, 0.9, 0.95, 1.0])) for _ in range(6)]
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    luck = rng.random(
        (1 if draw(st.booleans()) else 3, 1, images)
    )  # models that fail on the same images, or do not
    right = (np.broadcast_to(luck, (3, 1, images)) < np.reshape(rates, (3, 2, 1))).astype(
        np.float64
    )
    max_loss = draw(st.sampled_from([0.0, 1.0, 3.0, 10.0]))
    return Case(right, max_loss, draw(st.booleans()))


def made(
    zeroshot: float,
    finetuned: float,
    merged: float,
    *corrupted: float,
    images: int = 1000,
    learned: bool = False,
) -> Case:
    """Models that recognise a percentage of images, counted from the first: clean and then
    corrupted."""
    order = np.arange(images)
    clean = [order < round(share * images / 100) for share in (zeroshot, finetuned, merged)]
    probed = [order < round(share * images / 100) for share in corrupted]
    return Case(np.stack([clean, probed], axis=1).astype(np.float64), 3.0, learned)


@given(cases())
def test_a_loss_beyond_the_limit_is_a_warning_and_nothing_else_is(case: Case) -> None:
    right = case.right[:, 0].sum(axis=1)
    lost = 100 * (right[1] - right[2]) / case.right.shape[2]
    beyond = lost > case.max_loss + 1e-6
    assert (
        bool(case.conclusion.warnings)
        == beyond
        == exceeds_max_loss(case.clean.value, case.max_loss)
    )
    for warning in case.conclusion.warnings:
        values = warning.values
        assert warning.kind == "loses-accuracy"
        assert 100 * (values["finetuned"] - values["accuracy"]) == pytest.approx(lost)
        assert values["limit"] == case.max_loss


@given(cases())
@example(made(70, 97, 94.1, 81, 61.5, 78.3))
def test_the_recommendation_follows_from_the_numbers(case: Case) -> None:
    conclusion, limit = case.conclusion, case.max_loss / 100
    (low, high), (corrupted_low, corrupted_high) = case.clean.interval, case.corrupted.interval
    if conclusion.recommendation == "use":
        assert not conclusion.warnings
        assert low >= -2 * limit - 1e-9 or high - low <= 4 * limit
        assert corrupted_high >= 0
        assert corrupted_low > 0 or low > 0 or case.learned
    elif conclusion.recommendation == "prefer-finetuned":
        assert high < -limit
    elif conclusion.recommendation == "cannot-tell":
        assert corrupted_high < 0
        assert not conclusion.warnings
    elif conclusion.recommendation == "prefer-zeroshot":
        assert case.right[0, 0].sum() >= max(case.right[1, 0].sum(), case.right[2, 0].sum())
        assert (
            min(case.over_zeroshot.clean.interval[1], case.over_zeroshot.corrupted.interval[1]) < 0
        )
    elif conclusion.recommendation == "either":
        assert max(low, corrupted_low) <= 0 <= corrupted_high
        assert -limit <= low <= high <= limit
        assert -limit <= corrupted_low <= corrupted_high <= limit
        assert not case.learned
    else:
        undecided = (low < -2 * limit and high - low > 4 * limit) or case.clean.value < -limit
        assert undecided or (corrupted_low <= 0 <= corrupted_high and not case.learned)


#: The kinds of reasons that a recommendation may have.
REASONS = {
    "use": {"gains", "same-accuracy"},
    "prefer-finetuned": {"surely-loses"},
    "prefer-zeroshot": {"no-worse-zeroshot"},
    "either": {"no-difference"},
    "cannot-tell": {"loses-under-corruptions"},
    "too-few-images": {"unclear-accuracy", "unclear-robustness"},
}


@given(cases())
def test_the_reason_has_the_numbers_that_were_measured(case: Case) -> None:
    conclusion = case.conclusion
    values = conclusion.reason.values
    assert conclusion.reason.kind in REASONS[conclusion.recommendation]
    against = case.over_zeroshot if conclusion.recommendation == "prefer-zeroshot" else case
    for name in values.keys() & {"clean", "corrupted"}:
        measured = getattr(against, name)
        stated = values[name]
        interval = stated["interval"] if isinstance(stated, dict) else stated
        assert tuple(interval) == measured.interval
        assert not isinstance(stated, dict) or stated["value"] == measured.value
    assert values.get("price", 0.0) == (max(0.0, -case.clean.value) if "price" in values else 0.0)
    low = case.clean.interval[0]
    doubtful = conclusion.recommendation in ("use", "cannot-tell", "too-few-images")
    doubtful &= low < -case.max_loss / 100 - 1e-9
    possible = conclusion.possible_loss
    assert (possible is not None) == doubtful
    assert possible is None or possible.values == {"loss": -low, "limit": case.max_loss}


@pytest.mark.parametrize(
    ("case", "recommendation"),
    [
        (made(70, 97, 94.1, 81, 61.5, 78.3), "use"),
        (made(70, 97, 94, 81, 61.5, 78.3), "use"),  # the limit itself is no loss beyond it
        (
            made(70, 97, 93.9, 81, 61.5, 78.3),
            "too-few-images",
        ),  # a loss, perhaps not beyond the limit
        (made(20, 74.2, 34.0, 30, 60, 40), "prefer-finetuned"),
        (
            made(20, 74.2, 34.0, 30, 60, 40, images=60),
            "prefer-finetuned",
        ),  # few images, and yet plain
        (made(70, 97, 92, 81, 61.5, 78.3), "prefer-finetuned"),  # more robust, and too much lost
        (made(70, 97, 96, 81, 61.5, 50), "cannot-tell"),  # less robust to corruptions
        (made(90, 80, 80, 90, 60, 60), "prefer-zeroshot"),
        (made(90, 80, 89, 90, 60, 60), "prefer-zeroshot"),  # as accurate, less robust
        (made(90, 80, 91, 90, 60, 60), "use"),
        (made(70, 97, 96, 81, 61.5, 50, learned=True), "cannot-tell"),
        (made(70, 97, 97, 81, 61.5, 61.5), "either"),
        (made(70, 97, 97, 81, 61.5, 61.5, images=15), "too-few-images"),
        (made(60, 100, 100, 60, 40, 100, images=15), "too-few-images"),
        (made(70, 97, 96, 81, 61.5, 63.5, images=200), "too-few-images"),
        (
            made(70, 97, 96, 81, 61.5, 63.5, images=200, learned=True),
            "use",
        ),  # the recipe kept the accuracy
        (made(70, 97, 97, 81, 61.5, 61.5, learned=True), "use"),
        (
            made(70, 97, 96, 81, 61.5, 75, images=60),
            "use",
        ),  # a loss of accuracy up to twice the limit is possible
        (made(70, 97, 96, 81, 61.5, 75, images=40), "too-few-images"),  # a greater one
    ],
)
def test_cases_as_in_the_docs(case: Case, recommendation: str) -> None:
    assert case.conclusion.recommendation == recommendation


def test_an_accuracy_that_is_narrowly_known_lacks_no_images() -> None:
    """16 images lost and 12 gained of 210: -1.9 points [-6.9, 3.1], less than four limits wide."""
    finetuned, merged = np.ones(210), np.ones(210)
    finetuned[:12], merged[-16:] = 0, 0
    right = np.array([[finetuned, finetuned], [finetuned, finetuned], [merged, finetuned]])
    assert Case(right, 3.0).conclusion.recommendation == "use"
    assert Case(right, 2.0).conclusion.recommendation == "too-few-images"


def scores(zeroshot: float, finetuned: float, merged: float, images: int = 1000) -> OtherTaskScores:
    def score(share: float) -> Score:
        return Score(accuracy=Estimate(value=share, interval=wilson(share, images)))

    return OtherTaskScores(
        name="letters",
        kind="accuracy",
        source="x",
        images=images,
        classes=26,
        zeroshot=score(zeroshot),
        finetuned=(score(finetuned),),
        merged=score(merged),
    )


@pytest.mark.parametrize(
    ("advice", "task", "weighed"),
    [
        # the fine-tuned model byte for byte, which forgot: 92.2 -> 54.3 -> 54.3
        ("either", scores(0.922, 0.543, 0.543), ("other-tasks", "lost-on-other-tasks")),
        ("either", scores(0.922, 0.543, 0.8), ("use", "regains-other-tasks")),
        ("either", scores(0.922, 0.91, 0.915), None),
        ("use", scores(0.922, 0.543, 0.543), None),  # it is no worse than the fine-tuned one
        ("use", scores(0.922, 0.9, 0.6), ("other-tasks", "worse-on-other-tasks")),
        ("use", scores(0.922, 0.9, 0.6, images=10), None),  # ten images cannot tell
        ("prefer-finetuned", scores(0.922, 0.543, 0.543), None),
    ],
)
def test_an_advice_does_not_ignore_other_tasks(
    advice: Recommendation, task: OtherTaskScores, weighed: tuple[str, str] | None
) -> None:
    found = weigh_other_tasks(advice, [task], 3.0)
    assert (found and (found[0], found[1].kind)) == weighed
    if found:
        assert "letters (accuracy): " in text_of(found[1])


def test_experience_does_not_outweigh_a_task_that_both_have_lost() -> None:
    """That such merges were robust elsewhere says nothing of a task that is gone."""
    lost, back = scores(0.922, 0.543, 0.543), scores(0.922, 0.543, 0.8)
    found = weigh_other_tasks("use", [lost], 3.0, on_experience=True)
    assert found is not None
    assert (found[0], found[1].kind) == ("other-tasks", "lost-on-other-tasks")
    assert weigh_other_tasks("use", [back], 3.0, on_experience=True) is None
    assert weigh_other_tasks("use", [lost, back], 3.0, on_experience=True) is None


#: What the merge gains by the votes, and under corruptions; how many answers differ; the advice
#: and its reason.
WITHOUT_LABELS = {
    "few answers differ": (None, 0, 2, ("use", "same-accuracy")),
    "many answers differ": (None, 0, 4, ("cannot-tell", "disagrees")),
    "the votes see a small loss": ((-0.018, 0.01), 0, 40, ("use", "votes")),
    "they see a large one": ((-0.04, 0.01), 0, 40, ("too-few-images", "unclear-accuracy")),
    "they see a certain one": ((-0.08, 0.01), 0, 40, ("prefer-finetuned", "surely-loses")),
    "they are few": ((-0.018, 0.04), 0, 40, ("too-few-images", "unclear-accuracy")),
    "corruptions see a loss": (
        (-0.018, 0.01),
        20,
        40,
        ("cannot-tell", "loses-under-corruptions"),
    ),
}


@pytest.mark.parametrize("name", WITHOUT_LABELS)
def test_without_labels_the_votes_judge_and_disagreement_is_no_loss(name: str) -> None:
    votes, lost, differing, expected = WITHOUT_LABELS[name]
    finetuned = np.ones((2, 100))
    merged = finetuned.copy()
    merged[0, :differing] = 0
    merged[1, :lost] = 0
    case = Case(np.stack([0 * finetuned, finetuned, merged]), 3.0)
    voted = votes and Difference(value=votes[0], interval=normal_interval(*votes))
    found = conclude(
        finetuned=accuracy(*case.right[1]),
        merged=accuracy(*case.right[2]),
        over_finetuned=Gain(clean=case.clean, corrupted=case.corrupted),
        over_zeroshot=case.over_zeroshot,
        images=100,
        max_loss=3.0,
        learned=True,
        labelled=False,
        voted=voted,
    )
    assert (found.recommendation, found.reason.kind) == expected
    assert not found.warnings
    if expected[1] in ("votes", "disagrees"):
        assert f"on {differing}.0%" in text_of(found.reason)
    if expected[1] == "votes":
        told = "the accuracy changes by -1.8 points (-3.8 to +0.2)"
        assert told in text_of(found.reason)
        assert found.possible_loss is not None
        assert "as large as 3.8 points" in text_of(found.possible_loss)


def judged(case: Case, **more: Any) -> Conclusion:
    return conclude(
        finetuned=accuracy(*case.right[1]),
        merged=accuracy(*case.right[2]),
        over_finetuned=Gain(clean=case.clean, corrupted=case.corrupted),
        over_zeroshot=case.over_zeroshot,
        images=case.right.shape[2],
        max_loss=3.0,
        learned=True,
        **more,
    )


def test_a_rare_class_that_is_lost_is_not_hidden_by_the_others() -> None:
    case = made(70, 97, 97, 81, 61.5, 78.3)
    assert judged(case, class_means=(0.9, 0.871)).recommendation == "use"
    found = judged(case, class_means=(0.9, 0.5))
    assert (found.recommendation, found.reason.kind) == ("too-few-images", "uneven-classes")
    assert "it is 50.0% accurate, the fine-tuned one 90.0%" in text_of(found.reason)


def test_a_merge_that_is_the_zeroshot_model_is_not_recommended_as_a_merge() -> None:
    case = made(97, 70, 97, 81, 61.5, 81)
    assert judged(case).recommendation == "use"
    found = judged(case, is_zeroshot=True)
    assert found.recommendation == "prefer-zeroshot"
    assert text_of(found.reason) == "The merged model is the zero-shot model itself."
