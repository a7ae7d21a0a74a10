"""Recipes and --set from strangers: every text quickly gives a recipe or one line."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from clipmerge.errors import RecipeError
from clipmerge.planning.recipe import load_recipe


@pytest.mark.parametrize(
    "value",
    [
        "!!bool foo",
        '!!int ""',
        "!!timestamp x",
        "!!map [1]",
        "!!float x",
        "!!binary é",
        "!!omap x",
        "!!pairs x",
        "!!set []",
        "!!python/object:os.system x",
        "0x" + "f" * 5000,
        "9" * 5000,
        "[" * 100_000,
        "1:" * 200 + "1",
        "*a",
        "\x00",
        "&a [*a]",
        "2000-99-99",
        "!!int 0b",
        "!!int _",
        "!!null x",
        "? [a]",
        "!!str {}",
    ],
)
def test_values_that_do_not_fit_their_tags(value: str) -> None:
    with pytest.raises(RecipeError, match=r"--set|option 'alpha'"):
        load_recipe("wise-ft", [f"method.alpha={value}"])


def test_aliases_of_aliases_are_refused(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{at}: &a{at} [{', '.join([f'*a{at - 1}'] * 10)}]" for at in range(1, 12)]
    path = tmp_path / "x.yaml"
    path.write_text("\n".join(lines))
    with pytest.raises(RecipeError, match=r"x.yaml: is not YAML: an alias"):
        load_recipe(path)


def test_a_recipe_of_very_many_keys(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("\n".join(f"k{at}: 1" for at in range(40_000)))
    with pytest.raises(RecipeError, match=r"x.yaml: cannot be read \(larger than 64 KiB\)"):
        load_recipe(path)
    with pytest.raises(RecipeError, match="larger than 64 KiB"):
        load_recipe("wise-ft", ["method.alpha=" + " " * (65 << 10)])


def test_a_recipe_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe")
    for name in ("x.yaml", "missing.yaml", "."):
        with pytest.raises(RecipeError):
            load_recipe(tmp_path / name)


def test_a_file_that_is_called_like_a_recipe_is_not_taken_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wise-ft").write_text("method: {name: wise-ft, alpha: 0.123}")
    assert load_recipe("wise-ft").method["alpha"] == 0.5
    assert load_recipe("./wise-ft").method["alpha"] == 0.123


@pytest.mark.skipif(os.name == "nt" or sys.platform == "darwin", reason="such names are not allowed there")
def test_a_recipe_is_named_by_its_file_even_if_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"mine\xff.yaml")
    path.write_text("method: {name: wise-ft}")
    assert load_recipe(path).name == r"mine\xff"
