"""Targets with natural shifts, with generated clones and an untrained zero-shot model."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.shifts import summary
from benchmarks.shifts.evaluation import Evaluation
from benchmarks.shifts.natural import targets
from benchmarks.shifts.natural.__main__ import main
from benchmarks.shifts.natural.pairs import chosen_pairs
from benchmarks.shifts.natural.targets import OWN, load_target
from benchmarks.shifts.natural.testbed import Settings, deal
from benchmarks.shifts.photos.backbone import LITE0, built, config_of, save_model
from benchmarks.shifts.photos.collection import Picture
from benchmarks.shifts.photos.finetuning import Regime
from benchmarks.shifts.standing import resampled
from clipmerge.errors import UsageError
from tests.benchmarks.conftest import bits, record_of

SIZE = 32
IMAGENET = tuple(f"thing {number}" for number in range(12))


def written(file: Path, seed: int, brightness: int = 128, side: int = 48) -> Path:
    """A picture of coloured blocks with about this brightness."""
    file.parent.mkdir(parents=True, exist_ok=True)
    blocks = np.random.default_rng(seed).integers(-30, 31, (4, 4, 3)) + brightness
    pixels = blocks.clip(0, 255).repeat(side // 4, axis=0).repeat(side // 4, axis=1)
    Image.fromarray(pixels.astype(np.uint8)).save(file)
    return file


@pytest.fixture(scope="module")
def clones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clones")
    for place, name in enumerate(("aGrass", "eForest")):
        for number in (*range(1, 25), 201, 202, 301):
            written(folder / "RSSCN7" / name / f"{name[0]}{number:03d}.jpg", 1000 * place + number)
    groceries = folder / "GroceryStoreDataset" / "dataset"
    for split, numbers in {"train": (1, 2), "val": (3,), "test": (4,)}.items():
        lines = []
        for number in numbers:
            path = f"{split}/Fruit/Apple/Royal-Gala/{number}.jpg"
            written(groceries / path, number)
            lines.append(f"{path}, 4, 0")
        (groceries / f"{split}.txt").write_text("\n".join(lines) + "\n")
    written(groceries / "icons" / "gala.jpg", 5)
    (groceries / "classes.csv").write_text(
        "Class Name (str),Class ID (int),Coarse Class Name (str),Coarse Class ID (int),Icon,Words\n"
        "Royal-Gala,4,Passion-Fruit,0,/icons/gala.jpg,/words.txt\n"
    )
    for number in range(50):
        written(folder / "fruits-360-3-body-problem/Test/Apple/Apple 6" / f"{number:02d}.jpg", 9)
    signs = folder / "traffic-sign-recognition" / "GTSRB"
    for number, brightness in enumerate((20, 50, 120)):
        written(signs / f"Final_Training/Images/00014/{number:05d}_00015.ppm", 1, brightness)
    written(signs / "Final_Training/Images/00014/00000_00016.ppm", 1, 120)
    rows = []
    for number in range(9):
        written(signs / f"Final_Test/Images/{number:05d}.ppm", number, 30)
        rows.append(f"{number:05d}.ppm;48;48;0;0;48;48;0")
    head = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"
    (signs / "Final_Test" / "GT-final_test.csv").write_text("\n".join([head, *rows]) + "\n")
    return folder


def shown(pictures: list[Picture]) -> dict[str, list[str]]:
    domains: dict[str, list[str]] = {}
    for picture in pictures:
        domains.setdefault(picture.domain, []).append(picture.label)
    return domains


def test_each_target_has_its_own_pictures_and_its_shifts(clones: Path) -> None:
    aerial = shown(load_target(clones, "aerial", SIZE, 99))
    assert {name: len(labels) for name, labels in aerial.items()} == {
        OWN: 48,
        "farther": 4,
        "farthest": 2,
    }
    assert set(aerial[OWN]) == {"grassland", "forest"}
    groceries = shown(load_target(clones, "groceries", SIZE, 99))
    assert groceries == {
        OWN: ["passion fruit"] * 4,
        "product": ["passion fruit"],
        "studio": ["apple"] * 2,
    }
    # one frame of a drive past a sign, and only signs that are bright or dark
    assert shown(load_target(clones, "signs", SIZE, 99)) == {
        OWN: ["stop"],
        "dark": ["speed limit 20"] * 2,
    }


def test_pictures_are_sampled_and_scaled_down(clones: Path) -> None:
    some = load_target(clones, "aerial", SIZE, 5)
    assert [picture.domain for picture in some].count(OWN) == 5
    assert some == load_target(clones, "aerial", SIZE, 5)
    with Image.open(io.BytesIO(some[0].data)) as image:
        assert image.size == (SIZE, SIZE)
    with pytest.raises(targets.DataError, match="has no pictures of signs"):
        load_target(clones / "RSSCN7", "signs", SIZE, 5)


def test_no_near_copy_is_in_two_roles() -> None:
    pictures = [Picture(OWN, "ab"[at % 2], b"") for at in range(40)] + [
        Picture("far", "a", b"") for _ in range(7)
    ]
    groups = [at // 3 for at in range(40)] + list(range(40, 47))
    how = Settings(test=8, calibration=8)
    one, other = deal(pictures, groups, 0, how), deal(pictures, groups, 1, how)
    parts = [one.finetuning, one.calibration, one.test]
    assert sorted(at for part in parts for at in part) == list(range(40))
    for place, first in enumerate(parts):
        for second in parts[place + 1 :]:
            assert not {groups[at] for at in first} & {groups[at] for at in second}
    assert one.test == other.test
    assert one.calibration != other.calibration
    assert one.ood == {"far": list(range(40, 47))}
    assert one.classes == ("a", "b")


def test_pairs_are_chosen_by_purpose() -> None:
    held_out = {spec.name for spec in chosen_pairs(["held-out"])}
    assert held_out == {"mild-groceries-0", "mild-aerial-0"}
    assert len(chosen_pairs(["tuning"])) == 4
    with pytest.raises(UsageError, match="no pair 'mild-moon-0'"):
        chosen_pairs(["mild-moon-0"])


def test_a_quarter_of_the_work_stands_for_auto_where_that_was_not_run() -> None:
    correct = {"test": bits([0.4, 0.6, 0.8, 0.7, 0.7]), "far": bits([0.6, 0.6, 0.5, 0.7, 0.9])}
    quarter = resampled(record_of(correct, {"auto-quarter": 3}, alphas=[0, 0.5, 1]), 20)
    both = resampled(record_of(correct, {"auto-quarter": 3, "auto": 4}, alphas=[0, 0.5, 1]), 20)
    neither = resampled(record_of(correct, {"lines": 3}, alphas=[0, 0.5, 1]), 20)
    for pair, ood in ((quarter, "70.0"), (both, "90.0")):
        groups = summary.held_out({"natural": [pair]})
        ((_, _, _, merged, gain, *_),) = summary.rows(groups)
        assert merged == f"70.0 / {ood}"
        assert gain.startswith("+")
    assert summary.held_out({"natural": [neither]}) == {}


@pytest.mark.nightly
@pytest.mark.uncounted
def test_the_command_makes_a_pair_judges_it_and_resumes(clones: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = config_of(LITE0.timm, SIZE)
    save_model(built(config), config, tmp_path / "zeroshot")
    with tarfile.open(tmp_path / "samples.tar", "w") as archive:
        for number in range(len(IMAGENET)):
            archive.add(written(tmp_path / "sample.jpg", number), f"n{number:08d}_x.jpg")
    how = Settings({"mild": Regime(1e-3, 1, batch=8)}, 60, 10, 12, SIZE, IMAGENET)
    small = Evaluation(alphas=(0.0, 0.5, 1.0), images=20)
    words = ["--clones", str(clones), "--samples", str(tmp_path / "samples.tar")]
    words += ["--zeroshot", str(tmp_path / "zeroshot"), "--cache", str(tmp_path / "cache")]
    words += ["--results", str(tmp_path / "results"), "--only", "mild-aerial-0", "--no-page"]
    assert main([*words, "--train"], how) == 0
    assert not (tmp_path / "results").exists()
    assert main([*words, "--recipes", "wise-ft"], how, small) == 0
    file = tmp_path / "results" / "mild-aerial-0.json"
    record = json.loads(file.read_text())
    assert record["images"] == {"test": 10, "farther": 4, "farthest": 2, "imagenet": 10}
    assert record["tuning"] is False
    # nothing in one source is the thing of another
    things = [thing for each in record["things"].values() for thing in each]
    assert len(things) == len(set(things))
    before = file.stat().st_mtime_ns
    assert main([*words, "--recipes", "wise-ft"], how, small) == 0
    assert file.stat().st_mtime_ns == before
    ((row,), half) = record["recipes"], record["curve"][1]
    assert (row["id"], row["ood"]) == (half["id"], half["ood"])
