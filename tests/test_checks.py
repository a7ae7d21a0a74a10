"""Inputs that would make any answer wrong are caught before learning, or before they are believed."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

import clipmerge
from clipmerge.checkpoint import open_checkpoint
from clipmerge.checks import (
    EndAccuracy,
    check_answers,
    check_images,
    check_shifts,
    check_sources,
    check_task,
    check_unseen,
    end_accuracy,
    odd_names,
)
from clipmerge.errors import CheckpointError, DataError, UsageError
from clipmerge.evaluation.accuracy import load_model
from clipmerge.images.dataset import load_images, open_images
from clipmerge.images.source import Columns
from clipmerge.images.store import Pixels
from clipmerge.planning.verdict import Estimate
from clipmerge.progress import Progress
from clipmerge.report.text import text_of
from clipmerge.request import Calibration
from clipmerge.stats import wilson
from tests.support.command import clipmerge as command
from tests.support.command import done, refused
from tests.support.tasks import inputs_of
from tests.support.tiny_clip import Folders, save_images


@pytest.fixture(scope="module")
def swapped(pair: Folders, tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """A pair in the wrong order, which the half precision of its base shows."""
    folder = tmp_path_factory.mktemp("swapped")
    base, tuned = (Path(shutil.copytree(pair[0], folder / name)) for name in ("base", "tuned"))
    torch.manual_seed(0)
    weights = {
        name: value.half().float()
        for name, value in load_file(pair[0] / "model.safetensors").items()
    }
    moved = {name: value + 1e-3 * torch.randn(value.shape) for name, value in weights.items()}
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    save_file(moved, tuned / "model.safetensors", metadata={"format": "pt"})
    return tuned, base


@pytest.mark.parametrize("recipe", ["wise-ft", "auto"])
def test_swapped_checkpoints_are_refused_before_learning(
    swapped: Folders, images: Path, tmp_path: Path, recipe: str
) -> None:
    flags = ("merge", *swapped, "-r", recipe, "--data", images, "-o", tmp_path / "out")
    line = refused(command(*flags), CheckpointError.exit_code)
    assert "are probably swapped" in line
    assert "--allow swapped" in line
    assert not (tmp_path / "out").exists()


def test_a_failed_check_can_be_allowed_and_is_still_said(swapped: Folders, tmp_path: Path) -> None:
    flags = ("merge", *swapped, "-r", "wise-ft", "-o", tmp_path / "out")
    done(*flags, "--allow", "swapped")
    record = json.loads((tmp_path / "out" / "clipmerge.json").read_text())
    assert [warning["kind"] for warning in record["warnings"]] == ["swapped"]
    with pytest.raises(UsageError, match=r"`allow` swaped: no check .* mean 'swapped'"):
        clipmerge.merge(*swapped, "wise-ft", output=tmp_path / "other", allow="swaped")


def estimate(correct: int, images: int) -> Estimate:
    return Estimate(value=correct / images, interval=wilson(correct / images, images))


def ends(zeroshot: int, finetuned: int, images: int, names: list[str]) -> EndAccuracy:
    first, second = estimate(zeroshot, images), estimate(finetuned, images)
    return EndAccuracy(first, second, images, tuple(names), f"a photo of a {names[0]}.")


NAMES = ["cat", "dog", "fox", "owl", "elk", "hen"]
NUMBERS = [str(number) for number in range(6)]


@pytest.mark.parametrize(
    ("answers", "kinds"),
    [
        (ends(20, 2, 144, NUMBERS), ["odd-names"]),  # folders 0 to 5 in place of names
        (ends(24, 24, 144, NAMES), ["at-chance"]),
        (ends(90, 24, 144, NAMES), []),  # the zero-shot model knows these names
        (ends(20, 70, 144, [f"class ci {n}" for n in "abcdef"]), ["odd-names"]),
        (ends(20, 60, 144, NUMBERS), ["odd-names"]),
        (ends(20, 60, 144, [f"n0123456{n}" for n in range(6)]), ["odd-names"]),
        (ends(20, 60, 144, [f"{n}.{name}" for n, name in enumerate(NAMES)]), ["odd-names"]),
        (ends(24, 130, 144, NAMES), ["zeroshot-at-chance"]),
        (ends(24, 130, 144, NUMBERS), ["zeroshot-at-chance"]),  # digits, and it reads them
        (ends(100, 140, 144, NUMBERS), []),
        (ends(100, 140, 144, NAMES), []),
        (ends(60, 80, 144, NAMES), []),  # low, and surely above chance
        (ends(4, 6, 10, ["cat", "dog"]), []),  # too few images to say that it guesses
        (ends(1, 2, 12, NAMES), ["at-chance"]),
    ],
)
def test_answers_that_are_guesses_cast_doubt_on_the_names(
    answers: EndAccuracy, kinds: list[str]
) -> None:
    found = list(check_answers(answers))
    assert [finding.kind for finding in found] == kinds
    for finding in found:
        assert answers.prompt in text_of(finding)
        assert finding.values["images"] == answers.images


@pytest.mark.parametrize(
    ("names", "look"),
    [
        (["0", "1", "10"], "numbers"),
        (["n01440764", "n01443537"], "wordnet"),
        (["001.zero", "002.one"], "numbered"),
        (["12_cat", "7-dog"], "numbered"),
        (["class ci a", "class ci b"], "pattern"),
        (["label_1", "label_2", "label_10"], "pattern"),
        (["cat", "dog"], ""),
        (["cat", "car"], ""),
        (["type 1 diabetes", "type 2 diabetes"], ""),
        (["rose", "rosemary"], ""),
        (["7up", "cola"], ""),
        (["train", "val", "Test"], "splits"),
        (["train", "car"], ""),
        (["airplane", "airport"], ""),
    ],
)
def test_names_that_do_not_look_like_names(names: list[str], look: str) -> None:
    assert odd_names(names) == look


def save_pictures(folder: Path, pixels: Callable[[int], Any], *, each: int = 6) -> Path:
    """Save PNGs of two classes, made of their number."""
    for number in range(2 * each):
        path = folder / ("cat", "dog")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(pixels(number), dtype=np.uint8)).save(path)
    return folder


def noise(number: int) -> Any:
    return np.random.default_rng(number).integers(0, 256, (32, 32, 3))


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Images that cannot be meant, by the kind of check."""
    folder = tmp_path_factory.mktemp("broken")
    return {
        # floats from 0 to 1 that were cast to whole numbers
        "blank-images": save_pictures(folder / "blank", lambda number: noise(number) > 127),
        # a loader that returns its first image
        "same-images": save_pictures(folder / "same", lambda _: noise(0)),
    }


@pytest.mark.parametrize("kind", ["blank-images", "same-images"])
def test_images_that_show_nothing_are_refused_by_every_command(
    pair: Folders, broken: dict[str, Path], images: Path, tmp_path: Path, kind: str
) -> None:
    bad, refusal = broken[kind], pytest.raises(DataError, match=f"allow={kind}")
    with refusal:
        clipmerge.evaluate(pair[1], {"val": bad})
    with refusal:
        clipmerge.merge(*pair, "wise-ft", data=bad, output=tmp_path / "out")
    with refusal:
        clipmerge.merge(*pair, "auto", data=bad, output=tmp_path / "out")
    with refusal:
        clipmerge.sweep(*pair, id={"val": images}, ood={"shift": bad}, alphas="0,1")
    assert not (tmp_path / "out").exists()
    evaluated = clipmerge.evaluate(pair[1], {"val": bad}, allow=kind)
    merged = clipmerge.merge(*pair, "wise-ft", data=bad, output=tmp_path / "out", allow=kind)
    for findings in (evaluated.findings, merged.findings):
        assert kind in [finding.kind for finding in findings]


class Floats:
    """Images that the user has preprocessed: floats (3, 32, 32)."""

    def __init__(self, pixels: Callable[[Tensor], Tensor]) -> None:
        generator = torch.Generator().manual_seed(0)
        self._images = [pixels(torch.rand(3, 32, 32, generator=generator)) for _ in range(12)]
        self.classes = ["cat", "dog"]

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        return self._images[number], number % 2


CLIP_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
CLIP_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]


@pytest.mark.parametrize(
    ("pixels", "kinds"),
    [
        (lambda image: (image - CLIP_MEAN) / CLIP_STD, []),
        (lambda image: 255 * image, ["pixel-range"]),
        (lambda image: (image.round() - 0.5) / 0.5, ["pixel-range"]),
        (lambda image: ((image - CLIP_MEAN) / CLIP_STD - CLIP_MEAN) / CLIP_STD, ["pixel-range"]),
        (lambda image: image, []),  # ToTensor() alone: taken as images
    ],
    ids=["normalised", "0 to 255", "halves", "twice", "ToTensor"],
)
def test_preprocessed_pixels_lie_in_the_range_of_the_model(
    pair: Folders, pixels: Callable[[Tensor], Tensor], kinds: list[str]
) -> None:
    result = clipmerge.evaluate(pair[1], {"val": Floats(pixels)}, allow="pixel-range")
    assert [f.kind for f in result.findings if f.kind == "pixel-range"] == kinds
    if kinds:
        with pytest.raises(DataError, match=r"the floats of 12 images go from .*`allow=pixel"):
            clipmerge.evaluate(pair[1], {"val": Floats(pixels)})


def test_pixels_of_a_model_that_takes_patches_have_no_range(
    family_pairs: Callable[[str], Folders],
) -> None:
    model = load_model(open_checkpoint(str(family_pairs("SigLIP2")[0])))
    images = load_images(Floats(lambda image: 9 * image))
    assert isinstance(images.store, Pixels)
    assert list(check_images(images, model)) == []


def test_sources_of_a_sweep_in_the_wrong_place_are_told() -> None:
    lost, gained = -np.eye(1, 40).repeat(12, 0).sum(0), np.ones(40)
    lost[:30] = -1.0
    (finding,) = check_shifts({"val": lost}, {"shift": gained})
    assert "`id` and `ood` are probably swapped" in text_of(finding)
    assert not check_shifts({"val": gained}, {"shift": lost})
    assert not check_shifts({"val": lost}, {"shift": lost})
    assert not check_shifts({"val": lost, "more": gained}, {"shift": gained})


def save_captioned(folder: Path, count: int, caption: Callable[[int], str]) -> Path:
    """Save images of noise with a caption beside each."""
    folder.mkdir(parents=True)
    for number in range(count):
        Image.fromarray(noise(number).astype(np.uint8)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(caption(number))
    return folder


def test_captions_are_checked_before_learning(pair: Folders, tmp_path: Path) -> None:
    """The zero-shot and the fine-tuned model see one caption of each image."""
    texts = "a red bird on a branch\na bird\n", "a dog that runs\na dog\n"
    images = save_captioned(tmp_path / "images", 60, lambda n: f"{texts[n % 2]}number {n}")
    asked = open_images(str(images), columns=Columns(caption="txt"))
    said = list[str]()
    progress = Progress()
    progress.say = said.append  # type: ignore[method-assign]
    settings = Calibration(device="cpu")
    (finding,) = check_sources(inputs_of(pair), {"": asked}, settings, progress)
    assert finding.kind == "at-chance"
    # one of each caption, or a model that always says the most common one would seem to know it
    assert 20 < finding.values["images"] == finding.values["classes"] < 60
    assert finding.values["captions"] is True
    assert said == [f"captions look like '{finding.values['prompt']}'"]


def estimates(*correct: int) -> list[Estimate]:
    return [estimate(count, 144) for count in correct]


@pytest.mark.parametrize(
    ("scores", "kinds"),
    [
        ((20, 22, 24), ["odd-names"]),
        ((140, 22, 90), []),  # forgotten by fine-tuning
        ((20, 140, 90), []),  # learned by it
    ],
)
def test_names_of_other_tasks_are_doubted_if_no_model_knows_them(
    tmp_path: Path, scores: tuple[int, ...], kinds: list[str]
) -> None:
    names = [f"class_ci_{n}" for n in "abcdef"]
    task = open_images(str(save_images(tmp_path, each=24, classes=tuple(names))))
    found = list(check_task("other", task, estimates(*scores)))
    assert [finding.kind for finding in found] == kinds
    for finding in found:
        assert "`keep` other: the best model recognises 16.7% of 144" in text_of(finding)


@pytest.mark.parametrize(
    ("answers", "doubted"),
    [
        (ends(20, 50, 50, NAMES), True),
        (ends(20, 49, 49, NAMES), False),  # so few may all be right by chance
        (ends(20, 143, 144, NAMES), False),
        (ends(143, 144, 144, NAMES), False),  # easy images
    ],
)
def test_images_that_are_all_recognised_may_have_been_seen(
    answers: EndAccuracy, doubted: bool
) -> None:
    assert [finding.kind for finding in check_unseen(answers)] == ["all-recognised"] * doubted


def test_a_merge_says_that_fine_tuning_may_have_seen_the_images(
    pair: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "clipmerge.api._merge_effect.end_accuracy",
        lambda *given: replace(end_accuracy(*given), finetuned=estimate(144, 144), images=144),
    )
    data = save_images(tmp_path / "images", each=8)
    result = clipmerge.merge(
        *pair, "wise-ft", data=data, output=tmp_path / "out", allow="at-chance"
    )
    assert any("recognises all of 144" in warning for warning in result.warnings)
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "recognises all of 144 images; if it was fine-tuned on them" in page
