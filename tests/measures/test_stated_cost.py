"""Every measure states its cost, prompts included, before it starts, and takes a bounded number of them."""

from __future__ import annotations

from collections.abc import Iterator
from string import ascii_lowercase

import pytest
import torch
from torch import Tensor

from clipmerge.calibration import objective as calibration_objective
from clipmerge.models.transformers_clip import TransformersClip
from clipmerge.plugins import plugin_names
from tests.support.measure_everything import SIZES, measured
from tests.support.small_objective import TEMPLATES, Ends, make_batches, objective_for

MEASURES = plugin_names("measures")
# These only go forward, once for each point, so they take all prompts.
FORWARD_ONLY = ("gram", "path-accuracy", "soup-accuracy")
PASSES = ("image_features", "text_features")
# in letters, which are all that the small tokenizer knows
NAMES = tuple(first + second for first in "ab" for second in ascii_lowercase)


class Begun(Exception):
    """The cost was stated, and the work would begin."""


class Watched:
    """The inputs of all forward passes, and the statements of cost, each with the passes before it."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.passes: list[tuple[str, int]] = []
        self.stated: list[tuple[float, float]] = []
        self.before: list[list[tuple[str, int]]] = []
        for name in PASSES:
            patch.setattr(TransformersClip, name, self._counted(name))

    def _counted(self, name: str) -> object:
        forward = getattr(TransformersClip, name)

        def counted(model: TransformersClip, inputs: dict[str, Tensor] | Tensor, *rest: object) -> Tensor:
            rows = inputs if isinstance(inputs, Tensor) else inputs["input_ids"]
            self.passes.append((name, len(rows)))
            result: Tensor = forward(model, inputs, *rest)
            return result

        return counted

    def state(self, work: float, seconds: float) -> None:
        self.stated.append((work, seconds))
        self.before.append(self.passes[:])

    def first(self, name: str, ends: Ends, templates: tuple[str, ...]) -> tuple[float, float]:
        """The first statement of a measure, which goes no further."""

        def begun(work: float, seconds: float) -> None:
            self.state(work, seconds)
            raise Begun

        self.passes.clear()
        objective = objective_for(ends, make_batches(SIZES), templates=templates, cost=begun)
        with pytest.raises(Begun):
            measured(name, objective)
        return self.stated[-1]


@pytest.fixture
def watched() -> Iterator[Watched]:
    with pytest.MonkeyPatch.context() as patch:
        yield Watched(patch)


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("moves", ["both", "vision"])
def test_the_cost_with_prompts_is_stated_before_the_work(
    ends: Ends, frozen: Ends, watched: Watched, name: str, moves: str
) -> None:
    models = ends if moves == "both" else frozen
    one, several = (watched.first(name, models, templates) for templates in (TEMPLATES[:1], TEMPLATES))
    assert several[0] > one[0] > 0
    assert min(several[1], one[1]) > 0
    before = watched.before[-1]
    assert moves == "vision" or max(count for which, count in before if which == "text_features") == 1
    images = sum(count for which, count in before if which == "image_features")
    # one to count the work, one to warm up, twice the timed ones, two to size
    assert images <= 1 + 1 + 2 * max(SIZES) + 1 + 2


@pytest.mark.parametrize(
    ("name", "templates", "classes", "bound"),
    [*((name, 5, 7, 32) for name in MEASURES), ("first-order", 40, 30, None)],
)
def test_a_path_of_many_prompts_is_bounded(
    ends: Ends,
    watched: Watched,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    templates: int,
    classes: int,
    bound: int | None,
) -> None:
    """More prompts than are taken back through the text tower: with a bound of 32 in each measure, 1024 in one."""
    if bound is not None:
        monkeypatch.setattr(calibration_objective, "PROMPTS_A_GRADIENT", bound)
    most_prompts = calibration_objective.PROMPTS_A_GRADIENT
    at_once = most_prompts // 2
    objective = objective_for(
        ends,
        make_batches((3, 2)),
        templates=tuple("{} " + name for name in NAMES[:templates]),
        classes=NAMES[:classes],
        prompts_at_once=at_once,
        cost=watched.state,
    )
    notes = measured(name, objective).notes
    most = max(count for which, count in watched.passes if which == "text_features")
    assert most <= at_once
    drawn = any("templates, drawn at random" in note for note in notes)
    assert drawn == (name not in (*FORWARD_ONLY, "learned-coefficients", "projection-radii"))
    assert objective.criterion.prompts.count == templates * classes > most_prompts


def test_the_pace_is_that_of_the_precision(ends: Ends) -> None:
    from clipmerge.calibration.tower_cost import seconds_per_pass

    objective = objective_for(ends, make_batches(SIZES), templates=TEMPLATES[:1])
    seen: list[torch.dtype] = []
    objective.criterion.model.module.visual_projection.register_forward_hook(
        lambda _m, _i, output: seen.append(output.dtype)
    )
    for precision in ("float32", "bfloat16"):
        assert seconds_per_pass(objective.criterion, objective.shares, precision) > 0  # type: ignore[arg-type]
    assert seen == [torch.float32] * 3 + [torch.bfloat16] * 3
