"""Options that one plugin adopts from another."""

from pathlib import Path
from typing import Any

import pytest

from clipmerge import plugins
from clipmerge.errors import RecipeError
from clipmerge.plugins import check_options, plugin_options


def test_options_are_taken_over_with_defaults_and_ranges() -> None:
    sparse, shrink, control = (
        plugin_options("methods", name)
        for name in ("straggler-outlier", "straggler-shrink", "random-matched")
    )
    assert control == {"pool": 3, **sparse}
    assert shrink == {
        k: v for k, v in sparse.items() if k not in ("density", "mask", "mask_options")
    }
    for method in ("straggler-shrink", "random-matched"):
        with pytest.raises(RecipeError, match=f"method {method}: option 'stability' cannot be 1.5"):
            check_options("methods", method, {"stability": 1.5})
    with pytest.raises(RecipeError, match="method straggler-shrink: no option 'density'"):
        check_options("methods", "straggler-shrink", {"density": 0.5})
    with pytest.raises(RecipeError, match="method random-matched: option 'pool' cannot be 0"):
        check_options("methods", "random-matched", {"pool": 0})


def test_what_is_taken_over_reaches_the_function() -> None:
    def other(task: Any, *, a: int = 1, b: int = 2, folder: Path | None = None) -> dict[str, Any]:
        return {"a": a, "b": b, "folder": folder}

    @plugins.options_of(other, without=("b",))
    def one(task: Any, *, c: int = 3, **options: Any) -> dict[str, Any]:
        return {"c": c, **other(task, b=7, **options)}

    assert one(None, a=5) == {"c": 3, "a": 5, "b": 7, "folder": None}


def test_what_the_arithmetic_fills_in_is_no_option() -> None:
    for package, name, option in (
        ("masks", "saliency", "score"),
        ("masks", "weights-random", "theta_0"),
        ("masks", "random", "key"),
        ("combinations", "dare", "key"),
        ("combinations", "ties", "sparsify"),
    ):
        with pytest.raises(
            RecipeError, match=rf"{name}: no option '{option}' \(options: density\)"
        ):
            check_options(package, name, {option: 1})
