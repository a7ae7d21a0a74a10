"""The sentence about a measure's time."""

from __future__ import annotations

import pytest
import torch

from clipmerge.api.measure import cost_sentence
from clipmerge.planning.recipe import load_recipe


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ("straggler-outlier", "measuring on 24 images takes about 5 s on this CPU (fewer --images cost less)"),
        ("auto", "learning on 24 images takes about 5 s on this CPU (a smaller measure.steps costs less)"),
        ("straggler-sparse", "learning on 24 images takes about 5 s on this CPU (a smaller measure.steps costs less)"),
        ("tpgm", "learning on 24 images takes about 5 s on this CPU (a smaller measure.steps costs less)"),
    ],
)
def test_the_sentence_names_what_takes_less_time(recipe: str, said: str) -> None:
    sentence = cost_sentence(24, torch.device("cpu"), learns=load_recipe(recipe).learns)
    assert sentence is not None
    assert sentence("5 s") == said
