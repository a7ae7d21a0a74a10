"""The robustness probe: the same in every run, and nothing that a recipe learns from."""

import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.ImageFilter import GaussianBlur

from clipmerge.evaluation import probe as probing
from clipmerge.evaluation.probe import RELATED, UNRELATED, ScaledImages, corrupt, input_side, probe
from clipmerge.images.dataset import load_images
from clipmerge.images.image_set import LabelledImages
from clipmerge.images.store import image_files
from clipmerge.learning import augmentation
from clipmerge.models.building import build_model
from tests.support.tasks import inputs_of
from tests.support.tiny_clip import Folders, save_images


@pytest.fixture
def photo() -> Image.Image:
    """A smooth gradient with stripes: every corruption shows on it."""
    rows, columns = np.mgrid[0:64, 0:80]
    pixels = np.stack([3 * rows, 3 * columns, 60 + 120 * (columns // 4 % 2)], axis=2)
    return Image.fromarray(pixels.astype(np.uint8))


def test_the_verdict_rests_on_no_kind_of_change_that_is_learned_from() -> None:
    """The kinds of learning are geometry, colour, grey, blur and noise; colour holds contrast and
    brightness."""
    assert UNRELATED == ("jpeg", "pixelate", "posterize", "dither", "occlusion")
    assert RELATED == ("noise", "blur", "contrast", "brightness", "rotation")
    assert augmentation.AUGMENTATIONS == ("geometry", "colour", "grey", "blur", "noise")
    assert not set(UNRELATED) & {*RELATED, *augmentation.AUGMENTATIONS}


def test_posterizing_keeps_four_levels_and_dithering_eight_colours(photo: Image.Image) -> None:
    assert len(np.unique(np.asarray(corrupt(photo, "posterize", 0))[..., 0])) <= 4
    dithered = np.asarray(corrupt(photo, "dither", 0))
    assert set(np.unique(dithered)) == {0, 255}
    assert dithered.mean() == pytest.approx(np.asarray(photo).mean(), abs=8)


def test_an_occlusion_hides_a_quarter_by_the_mean_colour(photo: Image.Image) -> None:
    before, after = (
        np.asarray(photo, dtype=float),
        np.asarray(corrupt(photo, "occlusion", 1), dtype=float),
    )
    hidden = (after == np.rint(before.mean(axis=(0, 1)))).all(axis=2)
    assert hidden.mean() == pytest.approx(0.25, abs=0.01)
    assert (after[~hidden] == before[~hidden]).all()


def test_a_corruption_repeats_itself_changes_the_image_and_keeps_its_form(
    photo: Image.Image,
) -> None:
    before = np.asarray(photo, dtype=float)
    for corruption in (*UNRELATED, *RELATED):
        changed = corrupt(photo, corruption, 3)
        assert (changed.size, changed.mode) == (photo.size, "RGB")
        assert np.abs(np.asarray(changed, dtype=float) - before).mean() > 0.5
        assert (np.asarray(photo) == before).all()
        assert changed.tobytes() == corrupt(photo, corruption, 3).tobytes()
        drawn = {corrupt(photo, corruption, seed).tobytes() for seed in range(8)}
        assert (len(drawn) > 1) == (corruption in ("noise", "rotation", "occlusion")), corruption


def test_noise_sets_its_share_of_entries_to_black_or_white() -> None:
    grey = Image.new("RGB", (200, 200), (100, 100, 100))
    pixels = np.asarray(corrupt(grey, "noise", 0))
    assert set(np.unique(pixels)) == {0, 100, 255}
    assert (pixels != 100).mean() == pytest.approx(probing.NOISE, abs=0.003)
    assert (pixels == 255).mean() == pytest.approx(probing.NOISE / 2, abs=0.003)


def test_contrast_brightness_and_blur(photo: Image.Image) -> None:
    before = np.asarray(photo, dtype=float)
    after = np.asarray(corrupt(photo, "contrast", 0), dtype=float)
    assert after.mean(axis=(0, 1)) == pytest.approx(before.mean(axis=(0, 1)), abs=0.5)
    assert after.std(axis=(0, 1)) == pytest.approx(0.3 * before.std(axis=(0, 1)), rel=0.02)
    for level, expected in ((60, 136), (250, 255)):
        grey = Image.new("RGB", (4, 4), (level,) * 3)
        assert corrupt(grey, "brightness", 0).getpixel((0, 0)) == (expected,) * 3
    large = photo.resize((800, 640))
    assert corrupt(large, "blur", 0).tobytes() == large.filter(GaussianBlur(10)).tobytes()
    assert corrupt(photo, "blur", 0).tobytes() == photo.filter(GaussianBlur(1)).tobytes()


def test_rotation_turns_the_centre_and_fills_the_corners_with_the_borders_colour() -> None:
    cross = Image.new("RGB", (101, 101), (10, 200, 30))
    cross.paste((255, 255, 255), (49, 10, 52, 50))  # a hand that points up
    turned = np.asarray(corrupt(cross, "rotation", 0), dtype=int)
    assert abs(turned[0, 0] - [10, 200, 30]).max() <= 1
    rows, columns = np.nonzero(turned[:, :, 0] > 128)
    tip = np.hypot(rows - 50, columns - 50).argmax()
    angle = math.degrees(math.atan2(columns[tip] - 50, 50 - rows[tip]))
    assert abs(angle) == pytest.approx(40, abs=3)


def test_rotation_fills_with_the_mean_of_all_four_sides() -> None:
    width, height = 60, 40
    sides = {(0, 0, width, 1): (240, 0, 0), (0, height - 1, width, height): (0, 200, 0)}
    sides |= {(0, 1, 1, height - 1): (0, 0, 160), (width - 1, 1, width, height - 1): (80, 80, 0)}
    image = Image.new("RGB", (width, height))
    for place, colour in sides.items():
        image.paste(colour, place)
    border = [image.getpixel((x, y)) for x in range(width) for y in (0, height - 1)]
    border += [image.getpixel((x, y)) for y in range(height) for x in (0, width - 1)]
    turned = np.asarray(corrupt(image, "rotation", 0), dtype=int)
    assert turned[0, 0] == pytest.approx(np.mean(border, axis=0), abs=1)


def test_pixelating_leaves_few_colours_and_jpeg_what_pillow_writes(photo: Image.Image) -> None:
    pixels = np.asarray(corrupt(photo, "pixelate", 0))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) <= 26 * 32
    file = io.BytesIO()
    photo.save(file, "JPEG", quality=10)
    assert corrupt(photo, "jpeg", 0).tobytes() == Image.open(file).tobytes()


def test_related_corruptions_are_stronger_than_what_is_learned_from() -> None:
    assert math.degrees(augmentation._TURN) < probing.ROTATION
    assert probing.CONTRAST < 1 - augmentation._CONTRAST
    # brightness there is added in units of the processor's standard deviation, CLIP's largest being
    # 0.28
    assert probing.BRIGHTNESS > 0.28 * augmentation._BRIGHTNESS
    for side in (32, 64, 96, 224, 336, 512):
        point = torch.zeros(1, 3, side, side)
        point[..., side // 2, side // 2] = 1
        places = torch.arange(side, dtype=torch.float32) - side // 2
        blurred = next(
            image
            for seed in range(50)
            if (image := augmentation.strong_augment(point, seed, ("blur",)))[
                0, 0, side // 2, side // 2
            ]
            < 1
        )
        theirs = float((blurred[0, 0].sum(0) * places**2).sum()) ** 0.5
        assert max(1.0, probing.BLUR * side) > theirs


def of_count(count: int) -> LabelledImages:
    paths = tuple(f"{at}.png" for at in range(count))
    return LabelledImages(
        "here", image_files(paths), tuple(at % 2 for at in range(count)), ("one", "two")
    )


@pytest.mark.parametrize(
    ("count", "enough", "fewest", "per_image"),
    [
        *[
            (1, 512, 2, 5),
            (15, 512, 2, 5),
            (102, 512, 2, 5),
            (150, 512, 2, 3),
            (256, 512, 2, 2),
            (300, 512, 2, 2),
        ],
        *[(50, 256, 1, 5), (100, 256, 1, 2), (205, 256, 1, 1), (256, 256, 1, 1)],
    ],
)
def test_each_image_meets_as_many_corruptions_and_each_corruption_as_many_images(
    count: int, enough: int, fewest: int, per_image: int
) -> None:
    tested = probe(ScaledImages(of_count(count), 32), RELATED, enough=enough, fewest=fewest)
    assert tested.per_image == per_image
    met = [sum(at in places for places in tested.positions.values()) for at in range(count)]
    assert met == [per_image] * count
    sizes = [len(places) for places in tested.positions.values()]
    assert max(sizes) - min(sizes) <= 1
    for corruption, places in tested.positions.items():
        assert tested.sources[corruption].labels == tuple(at % 2 for at in places)


def test_the_mean_is_taken_image_by_image() -> None:
    tested = probe(ScaledImages(of_count(100), 32), UNRELATED, enough=300, fewest=2)
    rng = np.random.default_rng(0)
    values = {name: rng.random((3, len(places))) < 0.5 for name, places in tested.positions.items()}
    means = tested.mean_by_image(values)
    for model in range(3):
        for at in range(100):
            met = [values[n][model][p.index(at)] for n, p in tested.positions.items() if at in p]
            assert means[model, at] == pytest.approx(sum(met) / len(met))


def test_images_are_scaled_to_the_models_size_before_they_are_corrupted(
    pair: Folders, tmp_path: Path
) -> None:
    images = load_images(str(save_images(tmp_path / "images", each=3)))  # 36 x 40
    inputs = inputs_of(pair)
    assert input_side(build_model(inputs)) == 32  # the processor's
    tested = probe(ScaledImages(images, 64), UNRELATED, enough=512, fewest=2)
    for corruption, places in tested.positions.items():
        source = tested.sources[corruption]
        for place, at in enumerate(places):
            scaled = images.image(at).resize((64, 71), Image.Resampling.BICUBIC)
            assert source.image(place).tobytes() == corrupt(scaled, corruption, at).tobytes()
            assert source.store.name(place) == images.store.name(at)
