"""The benchmark of real pictures, with generated pictures and an untrained backbone."""

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from benchmarks.shifts import advice, report, standing
from benchmarks.shifts.evaluation import Evaluation
from benchmarks.shifts.photos import collection
from benchmarks.shifts.photos.__main__ import main
from benchmarks.shifts.photos.backbone import LITE0, Distillation
from benchmarks.shifts.photos.collection import CIFAR10, PACS, TARS, Picture, load_collection
from benchmarks.shifts.photos.finetuning import Regime
from benchmarks.shifts.photos.roles import Dealer
from benchmarks.shifts.photos.testbed import Settings
from tests.benchmarks.conftest import bits, record_of

SIZE = 32
IMAGENET = tuple(f"thing {number}" for number in range(40))


def encoded(seed: int, noise: int = 0) -> bytes:
    """A picture of coloured blocks; the same seed with a little noise is a near-copy."""
    blocks = np.random.default_rng(seed).integers(40, 216, (4, 4, 3))
    pixels = blocks.repeat(SIZE // 4, axis=0).repeat(SIZE // 4, axis=1)
    pixels += np.random.default_rng(1).integers(-noise, noise + 1, pixels.shape)
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "png")
    return file.getvalue()


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures of each class of a domain, the first two of them near-copies; two of a CIFAR
    class."""
    folder = tmp_path_factory.mktemp("photos")
    for domain, (name, classes, count) in {
        **{domain: (TARS[domain], PACS, 12) for domain in ("photo", "art", "sketch")},
        **{domain: (TARS[domain], CIFAR10, 3) for domain in ("cifar10-train", "cifar10")},
        "imagenet": (TARS["imagenet"], ("",), len(IMAGENET)),
    }.items():
        with tarfile.open(folder / name, "w") as archive:
            for label in classes:
                for number in range(count):
                    copy = domain in ("photo", "art", "sketch") and number == 1
                    seed = (
                        list(TARS).index(domain) * 10**6
                        + sum(map(ord, label)) * 1000
                        + (0 if copy else number)
                    )
                    data = encoded(seed, noise=3 if copy else 0)
                    member = tarfile.TarInfo(
                        f"{label}/{number:04d}.jpg" if label else f"n{number:08d}_x.jpg"
                    )
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
    return folder


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A few steps, on an untrained backbone."""
    torch.manual_seed(0)
    weights = tmp_path_factory.mktemp("weights") / "untrained.pth"
    torch.save(timm.create_model(LITE0.timm, pretrained=False).state_dict(), weights)
    regimes = {name: Regime(1e-3, 1, text=False, batch=8) for name in ("aggressive", "mild")}
    regimes["both-towers"] = Regime(1e-3, 1, text=True, batch=8)
    return Settings(
        {"lite0": replace(LITE0, weights=weights)},
        Distillation(steps=3, batch=8),
        regimes,
        regimes,
        SIZE,
        IMAGENET,
    )


def test_near_copies_are_found_and_others_are_not(tars: Path) -> None:
    pictures = [
        each
        for each in load_collection(tars, IMAGENET)
        if each.domain in ("photo", "art", "sketch")
    ]
    found = set(collection.alike_pixels(pictures, 0.95, block=7))
    assert found == {(start, start + 1) for start in range(0, len(pictures), 12)}
    mirrored = [Picture("photo", "dog", encoded(5)), Picture("photo", "dog", mirror(encoded(5)))]
    assert set(collection.alike_pixels(mirrored, 0.95)) == {(0, 1)}
    features = torch.randn(6, 50, generator=torch.Generator().manual_seed(0))
    features[4] = features[1] * 1.01
    assert set(collection.alike_features(features, 0.9, block=4)) == {(1, 4)}
    assert collection.grouped(6, [(4, 5), (1, 4), (2, 3)]) == [0, 5, 3, 3, 5, 5]


def mirror(data: bytes) -> bytes:
    file = io.BytesIO()
    Image.open(io.BytesIO(data)).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(file, "png")
    return file.getvalue()


@pytest.mark.parametrize("target", ["photo", "art", "sketch", "cifar10"])
def test_no_picture_and_no_near_copy_is_in_two_roles(tars: Path, target: str) -> None:
    pictures = load_collection(tars, IMAGENET)
    across = [
        (at, at + 60) for at in range(0, 40, 5)
    ]  # as if some were near-copies of another domain's
    groups = collection.grouped(
        len(pictures), [*((at, at + 1) for at in range(0, 180, 12)), *across]
    )
    dealer = Dealer(pictures, groups)
    one, other = dealer.deal(target, 0), dealer.deal(target, 1)
    sets = [one.finetuning, one.calibration, one.test, *one.ood.values()]
    assert all(sets)
    for place, first in enumerate(sets[:3]):
        for second in sets[place + 1 :]:
            assert not {groups[at] for at in first} & {groups[at] for at in second}
    assert one.test == other.test
    assert set(one.calibration) != set(other.calibration)
    seen = {groups[at] for at in dealer.unlabelled() if pictures[at].domain != "imagenet"}
    assert not seen & {
        groups[at] for name, tested in one.ood.items() if name != "imagenet" for at in tested
    }
    assert not seen & {groups[at] for at in one.test}
    assert {pictures[at].label for at in one.finetuning} <= set(one.classes)


@pytest.mark.nightly
@pytest.mark.uncounted
def test_the_command_makes_a_pair_judges_it_and_resumes(
    tars: Path, settings: Settings, tmp_path: Path
) -> None:
    words = [
        "--pictures",
        str(tars),
        "--cache",
        str(tmp_path / "cache"),
        "--results",
        str(tmp_path / "results"),
    ]
    words += ["--only", "aggressive-cifar10-0", "--no-page"]
    small = Evaluation(alphas=(0.0, 0.5, 1.0), images=20)
    assert main([*words, "--train"], settings) == 0
    assert not (tmp_path / "results").exists()
    weights = {
        file: file.stat().st_mtime_ns for file in (tmp_path / "cache").rglob("*.safetensors")
    }
    assert len(weights) == 2
    assert main([*words, "--recipes", "wise-ft"], settings, small) == 0
    file = tmp_path / "results" / "aggressive-cifar10-0.json"
    record = json.loads(file.read_text())
    assert record["target"] == "cifar10"
    assert record["tuning"] is True
    assert record["images"].keys() == {"test", "imagenet", "photo", "art"}
    ((row,), half) = record["recipes"], record["curve"][1]
    assert {kind: row[kind] for kind in ("id", "ood")} == {
        kind: half[kind] for kind in ("id", "ood")
    }
    assert row["recommendation"]
    assert row["seconds"] > 0
    assert main([*words, "--recipes", "wise-ft"], settings, small) == 0
    assert json.loads(file.read_text()) == record
    assert {
        file: file.stat().st_mtime_ns for file in (tmp_path / "cache").rglob("*.safetensors")
    } == weights
    (pair,) = report.read_pairs(tmp_path / "results")
    assert pair.name == "aggressive-cifar10-0"
    assert pair.gain("wise-ft")[0] == 0
    assert "| aggressive-cifar10-0 |" in "\n".join(advice.tables([pair], ("wise-ft",)))


@pytest.mark.parametrize(
    ("said", "merged", "right"),
    [
        ("use", (0.78, 0.7), True),
        ("use", (0.78, 0.4), False),
        ("use", (0.7, 0.7), False),
        ("prefer-finetuned", (0.7, 0.7), True),
        ("prefer-finetuned", (0.8, 0.7), False),
        ("prefer-zeroshot", (0.3, 0.2), True),
        ("prefer-zeroshot", (0.3, 0.9), False),
        ("either", (0.8, 0.52), True),
        ("either", (0.8, 0.7), False),
        ("too-few-images", (0.8, 0.7), None),
    ],
)
def test_advice_is_held_against_the_test_pictures(
    said: str, merged: tuple[float, float], right: bool | None
) -> None:
    correct = {"test": bits([0.4, 0.6, 0.8, merged[0]]), "far": bits([0.6, 0.6, 0.5, merged[1]])}
    record = record_of(correct, {"auto": 3}, alphas=[0, 0.5, 1], target="art", all_things=99)
    record["recipes"][0]["recommendation"] = said
    pair = standing.resampled(record, resamples=20)
    assert advice.agrees(pair, "auto") is right
    text = "\n".join(advice.tables([pair]))
    assert f"{said}: { {True: 'right', False: 'wrong', None: 'undecided'}[right] }" in text
    assert "| mild-art-1 |" in text
    assert (
        advice.tables(
            [standing.resampled(record_of(correct, {"auto": 3}, alphas=[0, 0.5, 1]), resamples=20)]
        )
        == []
    )


@pytest.mark.parametrize(
    ("merged", "above", "within"),
    [
        ((0.78, 0.7), 1, 1),
        ((0.78, 0.55), 0, 1),  # below alpha 0.5
        ((0.7, 0.7), 0, 0),
        ((0.76, 0.7), 0, 1),  # four points, less than three and a standard error
    ],
)
def test_safe_merges_are_counted(merged: tuple[float, float], above: int, within: int) -> None:
    correct = {"test": bits([0.4, 0.6, 0.8, merged[0]]), "far": bits([0.6, 0.6, 0.5, merged[1]])}
    record = record_of(correct, {"auto": 3}, alphas=[0, 0.5, 1], target="art", all_things=99)
    record["recipes"][0]["recommendation"] = "use"
    text = "\n".join(advice.tables([standing.resampled(record, resamples=200)]))
    assert f"at a loss of at most 3 points of ID accuracy: {above}." in text
    assert f"plus its standard error: {within}." in text


def test_robustness_is_counted_where_accuracy_is_kept() -> None:
    pairs = []
    for merged in ((0.78, 0.7), (0.78, 0.4), (0.7, 0.2)):
        correct = {
            "test": bits([0.4, 0.6, 0.8, merged[0]]),
            "far": bits([0.6, 0.6, 0.5, merged[1]]),
        }
        pairs.append(
            standing.resampled(record_of(correct, {"auto": 3}, alphas=[0, 0.5, 1]), resamples=20)
        )
    (sentence,) = advice.kept_accuracy(pairs)
    assert (
        "on 1 of 2 held-out and 0 of 0 tuning pairs; the worst difference is -10.0 points"
        in sentence
    )
