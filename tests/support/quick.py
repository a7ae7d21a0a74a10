"""Less work for code in which nobody asks for less: shipped recipes with few steps."""

import re
from collections.abc import Mapping

import pytest

from clipmerge.planning import recipe

FEW_STEPS = {"steps": 4, "nodes": 1, "bootstraps": 20}
SMALL_STEPS = {"batch_size": 8, "num_strong": 8}


def shorten_recipes(patch: pytest.MonkeyPatch, options: Mapping[str, int]) -> None:
    """Change these options of recipes that are loaded by name."""
    shipped = recipe.recipe_text
    option = re.compile(rf"^( +)({'|'.join(options)}): \d+", re.MULTILINE)

    def shortened(name: str) -> str:
        return option.sub(lambda found: f"{found[1]}{found[2]}: {options[found[2]]}", shipped(name))

    patch.setattr(recipe, "recipe_text", shortened)
