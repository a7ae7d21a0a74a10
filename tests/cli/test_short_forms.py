"""What one may leave out or write shorter: the recipe, formats, flags; and hints at what was meant."""

import json
from pathlib import Path

import pytest

import clipmerge as api
from clipmerge.errors import RecipeError
from clipmerge.progress import Progress
from tests.support.command import clipmerge, done, refused
from tests.support.tiny_clip import Folders


def test_without_a_recipe_images_decide_which_one_it_is(pair: Folders, images: Path) -> None:
    plain = done("merge", *pair, "--dry-run", "--json")
    assert plain.json["recipe"]["name"] == "wise-ft"
    assert "no recipe was named, so it is wise-ft, because there are no images (--recipe" in (
        " ".join(plain.err.split())
    )
    measured = done("merge", *pair, "--alpha", 0.3, "--data", images, "--dry-run", "--json")
    assert measured.json["recipe"]["name"] == "wise-ft"
    assert "so it is wise-ft, because an alpha is given" in " ".join(measured.err.split())
    plan = api.plan(*pair, data=images, set={"measure.steps": 1}, progress=Progress())
    assert plan.recipe["name"] == "auto"


def test_short_flags_are_the_long_ones(pair: Folders, images: Path, tmp_path: Path) -> None:
    listed = done("recipes", "--json")
    assert listed.out == done("recipes", "list", "--format", "json").out
    assert done("recipes", "list", "-q").out == ""
    words = ("evaluate", pair[1], "-d", f"val={images}", "--json")
    measured = json.loads(done(*words).out)
    assert list(measured["accuracy"]) == ["val"]
    share, count = measured["accuracy"]["val"], measured["images"]["val"]
    for end in measured["accuracy_intervals"]["val"]:  # Wilson's: where the score test just rejects
        if 0 < end < 1:
            assert (share - end) ** 2 == pytest.approx(1.959964**2 * end * (1 - end) / count)
    both = clipmerge("recipes", "list", "--json", "-q")
    assert json.loads(both.err)["error"] == (
        "--json and --quiet: both set the format; give one of them"
    )


@pytest.mark.parametrize("form", [("--json",), ("--format", "json"), ("--format=json",)])
@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("merge", "nowhere", "there"), 1, "no such folder or file"),
        (("merge", "a", "b", "--imags", "3"), 2, "No such option: --imags"),
    ],
)
def test_an_error_in_json_is_an_object_on_stderr_with_the_exit_code(
    form: tuple[str, ...], words: tuple[str, ...], code: int, message: str
) -> None:
    ended = clipmerge(*words, "--dry-run", *form)
    assert (ended.code, ended.out) == (code, "")
    error = json.loads(ended.err.splitlines()[-1])
    assert message in error["error"]
    assert error["exit_code"] == code


@pytest.mark.parametrize(
    ("recipe", "key", "meant"),
    [
        ("wise-ft", "alpha", "method.alpha"),
        ("auto", "steps", "measure.steps"),
        ("wise-ft", "mehtod", "method"),
    ],
)
def test_an_option_without_its_section_is_suggested_with_it(
    recipe: str, key: str, meant: str
) -> None:
    with pytest.raises(RecipeError, match=rf"unknown key '{key}' .*Did you mean '{meant}'\?"):
        api.load_recipe(recipe, {key: 1})


@pytest.mark.parametrize(("alpha", "notes"), [(1.5, 1), (-0.5, 1), (1.0, 0), (0.0, 0)])
def test_an_alpha_beyond_the_two_models_is_noted(pair: Folders, alpha: float, notes: int) -> None:
    plan = api.plan(*pair, "wise-ft", alpha=alpha, progress=Progress())
    findings = [warning for warning in plan.warnings if warning.kind == "extrapolation"]
    assert [finding.values["alpha"] for finding in findings] == [alpha] * notes


def test_so_is_one_of_a_layer_or_of_a_line(pair: Folders) -> None:
    override = {"overrides": [{"layers": "vision.1.mlp", "alpha": 7.0}]}
    for recipe, changes in (("wise-ft", override), ("lines", {"method.slope": 5})):
        plan = api.plan(*pair, recipe, set=changes, progress=Progress())
        assert [warning.kind for warning in plan.warnings].count("extrapolation") == 1


@pytest.mark.parametrize(("planned", "edited", "noted"), [(1.5, 0.5, []), (0.3, 2.5, [2.5])])
def test_an_edited_plan_notes_the_alphas_that_it_has(
    pair: Folders, tmp_path: Path, planned: float, edited: float, noted: list[float]
) -> None:
    plan = api.plan(*pair, "wise-ft", alpha=planned, progress=Progress())
    layers = {name: entry.replace(alpha=edited) for name, entry in plan.layers.items()}
    result = api.apply(plan.replace(layers=layers), output=tmp_path / "out")
    found = [finding for finding in result.findings if finding.kind == "extrapolation"]
    assert [finding.values["alpha"] for finding in found] == noted


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="Linux only")
def test_an_output_that_the_system_refuses_is_refused_before_images_are_read(
    pair: Folders,
) -> None:
    words = ("merge", *pair, "-r", "auto", "--data", "hf://datasets/no/such:train")
    line = refused(clipmerge(*words, "--output", "/proc/x"))
    assert "/proc/x: cannot be created in /proc" in line


def test_the_cache_is_listed_and_cleaned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name, size in (("learning/a.safetensors", 10), ("hashes/b", 3)):
        file = tmp_path / "clipmerge" / name
        file.parent.mkdir(parents=True)
        file.write_bytes(bytes(size))
    listed = done("cache", "list", "--format", "json").json
    assert {name: entry["bytes"] for name, entry in listed["entries"].items()} == {
        "learning": 10,
        "hashes": 3,
    }
    assert "unfinished learning" in done("cache").out
    assert done("cache", "clean").out == "Removed learning: 10 bytes.\n"
    assert [path.name for path in (tmp_path / "clipmerge").iterdir()] == ["hashes"]
    assert done("cache", "clean").out == "There was nothing to remove.\n"
    assert "Did you mean 'hashes'?" in refused(clipmerge("cache", "clean", "hashs"), 2)
    assert done("cache", "clean", "hashes", "--format", "json").json["removed"] == ["hashes"]
    assert "nothing is kept" in done("cache", "list").out
    (tmp_path / "clipmerge" / "learning").symlink_to(tmp_path)
    assert "is a link; remove it yourself" in refused(clipmerge("cache", "clean"))
