"""Distribution shifts: pictures, training, and the commands, from nothing."""

import json
import subprocess
from itertools import combinations
from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks.shifts import command
from benchmarks.shifts.emoji import shift as emoji
from benchmarks.shifts.emoji_roles import shift as emoji_roles
from benchmarks.shifts.experiment import Shift, Source, TrainedPair, chosen_pairs, prepare
from benchmarks.shifts.fonts import shift as fonts
from benchmarks.shifts.fonts.characters import CHARACTERS, class_folder
from benchmarks.shifts.training import Pretraining, Regime
from clipmerge.errors import DataError, UsageError
from tests.benchmarks.conftest import SIZE, SMALL


@pytest.fixture(scope="module")
def tiny_shift() -> Shift:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(
        0, 256, (9, 4, 2 * SIZE, 2 * SIZE), generator=generator, dtype=torch.uint8
    )
    labels = torch.arange(3).repeat(3)
    ones = Source(pixels[:3], labels[:3])
    return Shift(
        name="tiny",
        folders=("bird", "cat", "red_dog"),
        pretraining=Source(pixels, labels),
        finetuning=ones,
        calibration=Source(pixels[:3], labels[:3], copies=2),
        test=Source(pixels[:3], labels[:3], copies=4),
        ood={"others": Source(pixels[3:], labels[3:], copies=2, change=lambda taken, _: 1 - taken)},
        zeroshot=Pretraining(steps=2, batch=4, width=32, vision_layers=1, text_layers=1),
        regimes={
            "both": Regime(steps=2, rate=1e-2, batch=4),
            "image": Regime(steps=2, rate=1e-2, text=False, batch=4),
        },
        seeds={"both": (0, 1), "image": (0,)},
        further={"both": (3, 2)},
    )


@pytest.fixture(scope="module")
def prepared(
    tiny_shift: Shift, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[TrainedPair]]:
    folder = tmp_path_factory.mktemp("shift")
    return folder, list(prepare(tiny_shift, folder, tuple(tiny_shift.regimes)))


def test_every_pair_is_trained_once_and_named(
    tiny_shift: Shift, prepared: tuple[Path, list[TrainedPair]]
) -> None:
    folder, first = prepared
    assert [pair.name for pair in first] == ["both-0", "image-0", "both-1"]
    times = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    assert list(prepare(tiny_shift, folder, tuple(tiny_shift.regimes))) == first
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == times
    assert chosen_pairs(tiny_shift, ["both"]) == [("both", 0), ("both", 1)]
    assert chosen_pairs(tiny_shift, ["both-3", "image", "both-2"]) == [
        ("image", 0),
        ("both", 2),
        ("both", 3),
    ]
    with pytest.raises(UsageError, match=r"no regime 'mild' \(regimes: both, image\)"):
        list(prepare(tiny_shift, folder, ["mild"]))


def test_sources_have_the_pictures_they_say(prepared: tuple[Path, list[TrainedPair]]) -> None:
    pair = prepared[1][0]
    counts = [
        len(list(each.rglob("*.png"))) for each in (pair.calibration, pair.test, pair.ood["others"])
    ]
    assert counts == [6, 12, 12]
    contents = [
        file.read_bytes()
        for folder in (pair.calibration, pair.test)
        for file in folder.rglob("*.png")
    ]
    assert len(set(contents)) == len(contents)
    with Image.open(next(pair.test.rglob("red_dog/*.png"))) as picture:
        assert picture.size == (SIZE, SIZE)


@pytest.mark.nightly
@pytest.mark.uncounted
@pytest.mark.parametrize(
    ("name", "recipes"),
    # what learns is tested elsewhere
    [("emoji", ("wise-ft", "monosoup")), ("fonts", ("lines",))],
    ids=["emoji", "fonts"],
)
def test_the_quick_size_runs_from_nothing(
    name: str,
    recipes: tuple[str, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(command, "_QUICK", SMALL)
    about, layout = {
        "emoji": (emoji.ABOUT, emoji.emoji_shift),
        "fonts": (fonts.ABOUT, fonts.fonts),
    }[name]
    try:
        layout(tmp_path, True)
    except (DataError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"the data cannot be fetched here: {error}")
    if name == "emoji":  # which has fetched the packages of the other split
        assert_roles_differ(layout(tmp_path, True), emoji_roles.emoji_roles(tmp_path, True))
    chosen = ["--quick", "--cache", str(tmp_path), "--recipes", ",".join(recipes)]
    assert command.run(about, layout, chosen) == 0
    record = json.loads((tmp_path / "results" / "aggressive-0.json").read_text())
    assert {row["name"] for row in record["recipes"]} == set(recipes)
    assert str(tmp_path / "results" / "aggressive-0.json") in capsys.readouterr().out


def assert_roles_differ(one: Shift, other: Shift) -> None:
    """No source of one split has the drawings of the same source of the other, which has other
    classes."""
    assert not set(one.folders) & set(other.folders)
    assert len(other.folders) == len(one.folders)
    assert other.stills > other.calibration.copies
    assert torch.equal(other.finetuning.pixels, other.calibration.pixels)
    seen = {
        pixels.numpy().tobytes() for pixels in [*other.pretraining.pixels, *other.finetuning.pixels]
    }
    assert not [
        name
        for name, source in other.ood.items()
        for each in source.pixels
        if each.numpy().tobytes() in seen
    ]


def test_the_command_tells_errors_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--quick", "--cache", str(tmp_path), "--recipes", "nobody"]
    assert command.run(emoji.ABOUT, emoji.emoji_shift, arguments) == 1
    assert capsys.readouterr().err.startswith("error: contestants.yaml has no contestant 'nobody'")


def test_names_and_typefaces_are_used_once() -> None:
    folders = [class_folder(character) for character in CHARACTERS]
    assert len(set(folders)) == len(CHARACTERS) == 199
    assert {
        "capital_a",
        "small_e_acute",
        "digit_seven",
        "greek_small_psi",
        "cyrillic_capital_zhe",
    } <= set(folders)
    roles = [fonts.PRETRAINED, fonts.FINETUNED, fonts.CALIBRATION, fonts.TEST, *fonts.OOD.values()]
    families = [{face.removesuffix("-700") for face in role} for role in roles]
    assert not [one & other for one, other in combinations(families, 2) if one & other]
