"""Every shipped recipe is valid and complete, and every fault in a recipe is an error of one
line."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from clipmerge.errors import UsageError
from clipmerge.files import recipe_files
from clipmerge.planning.recipe import load_recipe
from clipmerge.plugins import plugin_names, plugin_options
from tests.support.command import one_line

FILES = sorted((Path(__file__).parents[2] / "recipes").rglob("*.yaml"))


def test_there_is_a_recipe_for_every_method() -> None:
    assert sorted(file.stem for file in FILES) == list(recipe_files())
    assert set(plugin_names("methods")) == {
        load_recipe(name).method["name"] for name in recipe_files()
    }


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_recipe_is_valid_and_says_how_to_run_it(file: Path) -> None:
    recipe = load_recipe(file.stem)
    assert recipe == load_recipe(str(file))
    assert recipe.name == file.stem
    text = file.read_text()
    assert text.startswith("# ")
    assert f"--recipe {file.stem}" in text
    assert ("--data" in text) is (recipe.measure is not None)
    for override in re.findall(r"--set (.*)", text):
        assert load_recipe(file.stem, [override]) != recipe


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_recipe_lists_every_option_with_its_default_and_a_comment(file: Path) -> None:
    text = file.read_text()
    explained = set(re.findall(r"^  +(\w+):.*#", text, re.MULTILINE))
    for section, written in yaml.safe_load(text).items():
        if section in ("measure", "method"):
            name = written.pop("name")
            defaults = plugin_options(f"{section}s", name)
            assert written.keys() == defaults.keys()
            assert set(defaults) <= explained
            if name == file.stem or section == "measure":  # other recipes of a method differ
                for option, value in written.items():
                    value = tuple(value) if isinstance(value, list) else value
                    assert value == defaults[option] or not (value or defaults[option])


def test_assignments_reach_every_place() -> None:
    recipe = load_recipe(
        "straggler-outlier",
        ["method.alpha=0.4", "measure.nodes=2", "missing=keep-zeroshot", "method.mask=null",
         "overrides=[{layers: text.*, alpha: 0}, {layers: '*', density: 0.5}]"],
    )  # fmt: skip
    assert (recipe.method["alpha"], recipe.method["mask"]) == (0.4, None)
    assert recipe.measure_options["nodes"] == 2
    assert recipe.missing == "keep-zeroshot"
    assert [override.layers for override in recipe.overrides] == ["text.*", "*"]


WRONG: dict[str, tuple[Any, Any, str]] = {
    "a number for a recipe": (3, [], "^no recipe '3'"),
    "a number for a change": ("wise-ft", 3, "^`set` 3: expected KEY=VALUE"),
    "measure without a name": ("wise-ft", ["measure.nodes=3"], "measure: needs a `name:`"),
    "half a count": ("straggler-outlier", ["method.bootstraps=2.5"], "option 'bootstraps' cannot be 2.5"),
    "a density among a mask's options": ("straggler-outlier", ["method.mask_options={density: 0.2}"], "mask saliency: has its density beside `mask_options`"),
    "a date that is none": ("wise-ft", ["method.alpha=2024-99-99"], "2024-99-99: the value is not YAML: month"),
    "code": ("wise-ft", ["method.alpha=!!python/object/apply:os.system [x]"], "the value is not YAML"),
    "an option of a number": ("wise-ft", ["method.alpha.x=1"], "'alpha' holds no options"),
    "override key": ("wise-ft", ["overrides=[{layer: x}]"], r"overrides\.0\.layers: Field required"),
    "override typo": ("wise-ft", ["overrides=[{layers: x, alhpa: 1}]"], "overrides.0.alhpa: .*Did you mean 'alpha'"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_recipe_is_an_error_of_one_line(what: str) -> None:
    name, assignments, message = WRONG[what]
    with one_line(UsageError, message):
        load_recipe(name, assignments)


@pytest.mark.parametrize("method", [{"alpha": 0.3}, {"name": 5}, {}])
def test_an_unknown_key_is_named_whatever_the_method(method: dict[str, Any]) -> None:
    with one_line(UsageError, r"^recipe: unknown key 'foo' \(keys: name, "):
        load_recipe({"method": method, "foo": 1})


@pytest.mark.parametrize("text", ["", "a: [", "method: wise-ft", "\xff", "1: 2"])
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text, encoding="latin-1")
    with one_line(UsageError, str(file)):
        load_recipe(str(file))


def test_max_loss_goes_to_a_measure_that_has_the_option() -> None:
    assert load_recipe("auto", max_loss=2).max_loss == 2
    assert load_recipe("wise-ft", max_loss=2).measure is None


def test_a_file_with_a_recipes_name_does_not_hide_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wise-ft").write_text("method: {name: wise-ft, alpha: 0.123}")
    assert load_recipe("wise-ft").method["alpha"] == 0.5
    assert load_recipe("./wise-ft").method["alpha"] == 0.123
