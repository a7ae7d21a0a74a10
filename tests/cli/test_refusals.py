"""The command line on bad input: one line on stderr, the right exit code, nothing written."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.support.command import clipmerge, done, refused
from tests.support.raw_safetensors import edit
from tests.support.tiny_clip import Folders, save_images

KEY = "vision_model.encoder.layers.1.mlp.fc1.weight"


def merge_refused(
    inputs: tuple[object, ...], message: str, *flags: object, recipe: str = "wise-ft", code: int = 1
) -> None:
    """A merge must end in one line that matches, and leave the output's parent as it was."""
    parent = Path(str(inputs[1])).parent
    before = sorted(parent.rglob("*"))
    line = refused(
        clipmerge("merge", *inputs, "--recipe", recipe, "--output", parent / "out", *flags), code
    )
    assert re.search(message, line), line
    assert sorted(parent.rglob("*")) == before


def _entry(folder: Path, value: float) -> None:
    tensor = load_file(folder / "model.safetensors")[KEY]
    tensor[7, 7] = value
    edit(folder, **{KEY: tensor})


def _cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-7])


#: One fault of each kind; `tests/checkpoint` has the others.
BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated": (_cut, "is truncated"),
    "inf": (lambda folder: _entry(folder, float("-inf")), f"tensor {re.escape(KEY)} holds Inf"),
    "shape": (
        lambda folder: edit(folder, **{KEY: torch.zeros(3)}),
        f"differs in shape; first {re.escape(KEY)}",
    ),
    "empty": (
        lambda folder: (folder / "model.safetensors").unlink(),
        r"no model\.safetensors in this folder",
    ),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_checkpoint_is_an_error_of_one_line(copies: Folders, how: str) -> None:
    damage, message = BROKEN[how]
    damage(copies[1])
    merge_refused(copies, message)


@pytest.mark.parametrize(("alpha", "which"), [("0", 1), ("1", 0)])
def test_nan_is_found_in_an_end_that_the_merge_does_not_use(
    copies: Folders, alpha: str, which: int
) -> None:
    _entry(copies[which], float("nan"))
    merge_refused(copies, f"{copies[which]}: tensor .* holds NaN", "--set", f"method.alpha={alpha}")


def test_nan_is_not_said_to_be_mergeable_without_images(copies: Folders, tmp_path: Path) -> None:
    _entry(copies[1], float("nan"))
    images = save_images(tmp_path / "images")
    merge_refused(copies, "holds NaN; .* merge an earlier one$", "--data", images)


@pytest.mark.parametrize(
    ("flags", "message", "recipe"),
    [
        (("--set", "method.alhpa=1"), "Did you mean 'alpha'", "wise-ft"),
        ((), r"mine\.yaml: cannot be read", "mine.yaml"),
        (("--set", "overrides=[{layers: visoin.1.attn}]"), "matches no layer.*mean 'vision.1.attn'", "wise-ft"),
        (("--set", "overrides=[{layers: '*', density: 0.5}]"), "does not have", "monosoup"),
    ],
)  # fmt: skip
def test_a_recipe_that_says_nonsense_is_an_error_of_one_line(
    pair: Folders, tmp_path: Path, flags: tuple[str, ...], message: str, recipe: str
) -> None:
    merge_refused((pair[0], pair[1]), message, *flags, recipe=recipe)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "recipe 'straggler-outlier' measures.*--data FOLDER"),
        (
            ("--data", ".", "--template", "a photo"),
            r"--template 'a photo': has no \{\} for the class name",
        ),
        (
            ("--data", ".", "--device", "tpu"),
            "--device.*'tpu' is not one of 'auto', 'cpu', 'cuda', 'mps'",
        ),
        (("--data", ".", "--images", "0"), "--images.*greater than or equal to 1"),
        (("--nonsense",), "No such option: --nonsense"),
    ],
)
def test_flags_that_contradict_themselves_are_usage(
    pair: Folders, flags: tuple[str, ...], message: str
) -> None:
    merge_refused(pair, message, *flags, recipe="straggler-outlier", code=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("merge",), "Missing argument"),
        (("merge", "a", "b", "--recipe", "wise-ft"), "--output is missing"),
    ],
)
def test_what_is_missing_is_usage(arguments: tuple[str, ...], message: str) -> None:
    assert message in refused(clipmerge(*arguments), 2)


def test_no_command_at_all_shows_the_help() -> None:
    assert done("--version").out.startswith("clipmerge ")
    outcome = clipmerge()
    assert outcome.code == 2
    assert "Commands:" in outcome.out


def test_one_checkpoint_given_twice_is_usage(
    pair: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge_refused((pair[0], pair[0]), f"{pair[0]}: is given twice", code=2)
    merge_refused((pair[0], pair[1], f"{pair[1]}/"), "is given twice", code=2)
    monkeypatch.chdir(pair[0].parent)
    merge_refused((pair[0].name, pair[0]), "is given twice", code=2)


def test_an_output_that_is_an_input_or_exists_is_refused(copies: Folders, tmp_path: Path) -> None:
    for output in (copies[0], copies[1], tmp_path):
        for flags in ((), ("--overwrite",)):
            outcome = clipmerge("merge", *copies, "--recipe", "wise-ft", "--output", output, *flags)
            assert ", which this command reads" in refused(outcome)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x").write_text("x")
    for flags in ((), ("--overwrite",)):
        merge_refused(copies, r"already exists and was not written by this command \(it", *flags)
    (tmp_path / "out" / "x").rename(tmp_path / "out" / "clipmerge.json")
    merge_refused(copies, "out: already exists; choose another output, or pass --overwrite")
    (tmp_path / "out" / "clipmerge.json").unlink()
    (tmp_path / "out").rmdir()
    (tmp_path / "out").write_text("x")
    merge_refused(copies, "already exists")


#: What an earlier output holds, and the command that reads it and would replace it.
READ: dict[str, tuple[str, Callable[[Path], list[object]]]] = {
    "recipe": ("r.yaml", lambda at: ["merge", "ZEROSHOT", "FINETUNED", "-r", at / "r.yaml"]),
    "images": ("img", lambda at: [*MEASURING, "--data", at / "img"]),
    "class names": (
        "classes.txt",
        lambda at: [*MEASURING, "--data", "IMAGES", "--classes", at / "classes.txt"],
    ),
    "plan": ("plan.json", lambda at: ["apply", at / "plan.json"]),
    "checkpoint": (
        "x.safetensors",
        lambda at: ["merge", "ZEROSHOT", at / "x.safetensors", "-r", "wise-ft"],
    ),
}
MEASURING = ("merge", "ZEROSHOT", "FINETUNED", "-r", "straggler-outlier")


@pytest.mark.parametrize("what", READ)
def test_overwrite_deletes_nothing_that_is_read(
    pair: Folders, images: Path, tmp_path: Path, what: str
) -> None:
    output, (name, words) = tmp_path / "ov", READ[what]
    done("merge", *pair, "--recipe", "wise-ft", "-o", output)
    shutil.copytree(images, output / "img")
    shutil.copy(pair[1] / "model.safetensors", output / "x.safetensors")
    (output / "r.yaml").write_text("method: {name: wise-ft, alpha: 0.5}\n")
    (output / "classes.txt").write_text("bird\ncat\ndog\n")
    if what == "plan":
        done("plan", *pair, "-r", "wise-ft", "-o", output / name)
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    given = {"ZEROSHOT": pair[0], "FINETUNED": pair[1], "IMAGES": images}
    command = [given.get(str(word), word) for word in words(output)]
    line = refused(clipmerge(*command, "-o", output, "--overwrite"))
    held = f"holds {output / name}, which this command reads"
    assert line.startswith(f"error: {output}: {held}; choose another output")
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before


def test_inspecting_another_model_names_it(copies: Folders) -> None:
    edit(copies[0], decoder__weight=torch.zeros(1))
    for others in ((), (copies[1],)):
        line = refused(clipmerge("inspect", copies[0], *others))
        assert f"{copies[0]}: parameter 'decoder.weight' belongs to no layer" in line
