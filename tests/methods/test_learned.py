"""The verdict of learned coefficients about the images that were held back."""

from __future__ import annotations

from typing import Any

import pytest

from clipmerge.methods.learned import _chosen
from clipmerge.planning.measurements import HeldBackChoice

SEEN: dict[str, Any] = {"images": 20, "right": 0.9, "path_alpha": 0.5, "path_goal": 1.5, "finetuned_right": 0.95}


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        (
            {"alpha": 0.5, "part": 1.0, "goal": 1.5},
            "nothing that was learned is proven better than alpha 0.5 of the straight path; 90.0%",
        ),
        (
            {"part": 1.0, "goal": 1.2},
            "20 images held back chose all of what was learned; 90.0% of their views are recognised",
        ),
        ({"part": 0.4, "goal": 1.2}, "chose 40% of the way to what was learned; "),
        ({"part": 0.0, "goal": 1.2}, "chose one coefficient for all that the mask keeps; "),
        (
            {"part": 1.0, "beyond": 0.3, "goal": 1.2},
            "chose all of what was learned, and from there 30% of the way to fine-tuned to keep the accuracy; ",
        ),
    ],
)
def test_the_choice_is_told(choice: dict[str, Any], said: str) -> None:
    assert said in _chosen(HeldBackChoice(**SEEN | {"alpha": None, "beyond": 0.0} | choice))


def test_a_mask_that_does_not_beat_the_path_says_so() -> None:
    worse = "which a sparse mask does not beat"
    told = {
        goal: _chosen(HeldBackChoice(**SEEN, alpha=None, part=1.0, beyond=0.0, goal=goal)) for goal in (1.4, 1.5, 1.6)
    }
    assert [worse in told[goal] for goal in (1.4, 1.5, 1.6)] == [False, True, True]
