"""Less work for code in which nobody asks for less: shipped recipes with few steps."""

import re

import pytest

from clipmerge.planning import recipe

FEW = {"steps": 4, "nodes": 1, "bootstraps": 20, "batch_size": 8, "num_strong": 8}
OPTION = re.compile(rf"^( +)({'|'.join(FEW)}): \d+", re.MULTILINE)


def shorten_recipes(patch: pytest.MonkeyPatch) -> None:
    """Change these options of recipes that are loaded by name."""
    shipped = recipe.recipe_text

    def shortened(name: str) -> str:
        return OPTION.sub(lambda found: f"{found[1]}{found[2]}: {FEW[found[2]]}", shipped(name))

    patch.setattr(recipe, "recipe_text", shortened)
