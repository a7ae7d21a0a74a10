"""Options of plugins, and the user's folders of plugins."""

from pathlib import Path

import pytest

from clipmerge.errors import UsageError
from clipmerge.planning.recipe import load_recipe, recipe_text
from clipmerge.plugins import check_options, load_plugin, plugin_names


@pytest.mark.parametrize(("mask", "option"), [("saliency", "score"), ("random", "key")])
def test_inputs_of_the_arithmetic_are_no_options(mask: str, option: str) -> None:
    with pytest.raises(UsageError, match=rf"{mask}: no option '{option}' \(options: density\)"):
        check_options("masks", mask, {option: 1})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of plugins with one mask and one recipe."""
    for name in ("masks", "recipes"):
        (tmp_path / name).mkdir()
    (tmp_path / "masks" / "nothing.py").write_text("def nothing(change):\n    return change * 0\n")
    (tmp_path / "recipes" / "my-own.yaml").write_text("method: {name: wise-ft, alpha: 0.1}\n")
    monkeypatch.setenv("CLIPMERGE_PLUGINS", str(tmp_path))
    return tmp_path


def test_plugins_and_recipes_of_the_users_folders_are_found_and_replace_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "masks" / "magnitude.py").write_text("raise AssertionError\n")
    (folder / "recipes" / "auto.yaml").write_text("method: {name: wise-ft}\n")
    assert load_plugin("masks", "nothing")(3.0) == 0
    assert load_recipe("my-own").method["alpha"] == 0.1
    assert load_plugin("masks", "magnitude").__module__ == "clipmerge.masks.magnitude"
    assert "learned-coefficients" in recipe_text("auto")
    monkeypatch.delenv("CLIPMERGE_PLUGINS")
    assert "nothing" not in plugin_names("masks")
    with pytest.raises(UsageError, match="no recipe 'my-own'"):
        load_recipe("my-own")


def test_a_folder_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPMERGE_PLUGINS", "/not/there")
    with pytest.raises(UsageError, match="CLIPMERGE_PLUGINS: /not/there is not a folder"):
        plugin_names("masks")
