"""Images held back from learning: their number and classes."""

from collections import Counter

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clipmerge.learning.learn import MIN_IMAGES, held_out_positions

LABELS = st.lists(st.integers(0, 5), min_size=MIN_IMAGES, max_size=60)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(LABELS, st.floats(0.05, 0.5), st.integers(0, 3))
def test_no_class_gives_two_more_than_another_that_has_them(
    labels: list[int], share: float, seed: int
) -> None:
    chosen = held_out_positions(labels, share, seed)
    assert len(chosen) == len(set(chosen)) == max(1, round(share * len(labels)))
    images, given_away = Counter(labels), Counter(labels[position] for position in chosen)
    for label, count in images.items():
        for other in images:
            # a class keeps half, and its last image while another class could give one
            spare = count - given_away[label] > 1 and 2 * (given_away[label] + 1) <= count
            assert not (spare and given_away[other] > given_away[label] + 1), (images, given_away)
            assert not (spare and count > 1 and given_away[other] == images[other]), (
                images,
                given_away,
            )


def test_nothing_is_held_back_of_few_images_or_where_nothing_is_asked_for() -> None:
    assert held_out_positions([0, 1] * 3, 0.5, 0) == []
    assert held_out_positions([0, 1] * 50, 0.0, 0) == []


def test_the_seed_decides_which_images() -> None:
    first, again, other = (held_out_positions([0, 1, 2, 3] * 20, 0.2, seed) for seed in (0, 0, 1))
    assert first == again != other


def test_some_images_are_left_to_learn_from() -> None:
    assert len(held_out_positions([0, 1] * 20, 0.99, seed=0)) == 39
