"""Every measure takes a bounded number of prompts back through the text tower."""

from string import ascii_lowercase
from typing import Any

import pytest

from clipmerge.learning import objective as objective_module
from clipmerge.learning import train as training
from clipmerge.models.transformers_clip import TransformersClip
from clipmerge.plugins import plugin_names
from tests.support.measure_everything import measured
from tests.support.small_objective import Ends, make_batches, objective_for
from tests.support.told import Told

# These only go forward, once for each point, so they take all prompts.
FORWARD_ONLY = ("gram", "path-accuracy", "soup-accuracy")
# in letters, which are all that the small tokenizer knows
NAMES = tuple(first + second for first in "ab" for second in ascii_lowercase)


@pytest.mark.parametrize("name", plugin_names("measures"))
@pytest.mark.parametrize(("templates", "classes", "bound"), [(5, 7, 256), (2, 30, 20)])
def test_a_path_of_many_prompts_is_bounded(
    ends: Ends,
    monkeypatch: pytest.MonkeyPatch,
    spied: Any,
    name: str,
    templates: int,
    classes: int,
    bound: int,
) -> None:
    """By three for each of eight images at least, and by what a step of learning takes."""
    for module in (objective_module, training):
        monkeypatch.setattr(module, "PROMPTS_A_GRADIENT", bound)
    told = Told()
    objective = objective_for(
        ends,
        make_batches((3, 2), classes),
        progress=told,
        templates=tuple("{} " + name for name in NAMES[:templates]),
        classes=NAMES[:classes],
    )
    embedded = spied(TransformersClip, "text_features")
    found = measured(name, objective)
    learns = name in ("learned-coefficients", "projection-radii")
    most = max(len(call.args[1]["input_ids"]) for call in embedded.call_args_list)
    if name in FORWARD_ONLY:
        assert most == templates * classes
    else:
        assert most <= (bound if learns or name == "learned-sparse" else min(24, bound))
    drawn = [note for note in {*told.lines} if "prompts for each batch, drawn at" in note]
    assert len(drawn) == (not learns and name not in FORWARD_ONLY)
    # every loss of the path is over the same prompts
    assert all(check.relative_error < 0.01 for check in found.checks.values())
