"""Every measure takes a bounded number of prompts at once, and back through the text tower."""

from string import ascii_lowercase
from typing import Any

import pytest

from clipmerge.learning import objective as objective_module
from clipmerge.models.transformers_clip import TransformersClip
from clipmerge.plugins import plugin_names
from tests.support.measure_everything import measured
from tests.support.small_objective import Ends, make_batches, objective_for

MEASURES = plugin_names("measures")
# These only go forward, once for each point, so they take all prompts.
FORWARD_ONLY = ("gram", "path-accuracy", "soup-accuracy")
# in letters, which are all that the small tokenizer knows
NAMES = tuple(first + second for first in "ab" for second in ascii_lowercase)


@pytest.mark.parametrize(
    ("name", "templates", "classes", "bound"),
    [*((name, 5, 7, 32) for name in MEASURES), ("first-order", 40, 30, None)],
)
def test_a_path_of_many_prompts_is_bounded(
    ends: Ends,
    monkeypatch: pytest.MonkeyPatch,
    spied: Any,
    name: str,
    templates: int,
    classes: int,
    bound: int | None,
) -> None:
    """More prompts than are taken back through the text tower: with a bound of 32 in each measure,
    1024 in one."""
    if bound is not None:
        monkeypatch.setattr(objective_module, "PROMPTS_A_GRADIENT", bound)
    most_prompts = objective_module.PROMPTS_A_GRADIENT
    at_once = most_prompts // 2
    objective = objective_for(
        ends,
        make_batches((3, 2)),
        templates=tuple("{} " + name for name in NAMES[:templates]),
        classes=NAMES[:classes],
        prompts_at_once=at_once,
    )
    embedded = spied(TransformersClip, "text_features")
    notes = measured(name, objective).notes
    assert max(len(call.args[1]["input_ids"]) for call in embedded.call_args_list) <= at_once
    drawn = any("templates, drawn at random" in note for note in notes)
    assert drawn == (name not in (*FORWARD_ONLY, "learned-coefficients", "projection-radii"))
    assert templates * classes > most_prompts
