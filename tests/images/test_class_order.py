"""Names that the user gives reach the classes that they name, whatever order the source has."""

import io
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from clipmerge.errors import DataError
from clipmerge.images.dataset import load_images
from clipmerge.images.image_set import LabelledImages
from clipmerge.images.split import sample_and_hold_back
from clipmerge.report.text import texts_of
from tests.support.image_files import png, save_plain_parquet, save_tar

WORDS = tuple(
    f"{word} thing" for word in ["zero", "one", "two", "three", "four", "five", "six"]
) + tuple(f"{word} thing" for word in ["seven", "eight", "nine", "ten", "eleven"])


def save_folders(folder: Path, *names: str, each: int = 2, first: int = 0) -> Path:
    for number, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for at in range(each):
            (folder / name / f"{at}.png").write_bytes(png(first + 100 * number + at))
    return folder


def named(images: LabelledImages) -> dict[str, str]:
    """The class name of each image, by the folder or the name that its path or place has."""
    return {
        Path(images.store.name(at)).parent.name: images.class_names[label]
        for at, label in enumerate(images.labels)
    }


def test_folders_named_by_numbers_are_numbers(tmp_path: Path) -> None:
    folder = save_folders(tmp_path / "x", *map(str, range(12)))
    images = load_images(str(folder), WORDS)
    assert images.class_names == WORDS
    assert named(images) == {str(number): WORDS[number] for number in range(12)}
    with pytest.raises(DataError, match="the numbers 0 to 11 without names"):
        load_images(str(folder))


def test_folders_that_count_from_one(tmp_path: Path) -> None:
    folder = save_folders(tmp_path / "x", *(f"{number:03}" for number in range(1, 13)))
    images = load_images(str(folder), WORDS)
    assert named(images) == {f"{number:03}": WORDS[number - 1] for number in range(1, 13)}
    assert texts_of(images.notes) == [
        "the class names given: the labels are 1 to 12, so the first name is that of 1"
    ]


def test_json_names_numbers_that_do_not_count_up(tmp_path: Path) -> None:
    folder = save_folders(tmp_path / "x", "2000", "1990")
    (tmp_path / "names.json").write_text('{"1990": "old", "2000": "new"}')
    images = load_images(str(folder), tmp_path / "names.json")
    assert named(images) == {"1990": "old", "2000": "new"}
    (tmp_path / "names.json").write_text('{"1990": "old"}')
    with pytest.raises(DataError, match="has no name for 1 class: 2000"):
        load_images(str(folder), tmp_path / "names.json")


def test_underscores_in_a_list_of_names_are_spaces_as_in_folders(tmp_path: Path) -> None:
    folder = save_folders(tmp_path / "x", "red_star", "blue_ring")
    (tmp_path / "names.txt").write_text("blue_ring\nred_star\n")
    (tmp_path / "names.json").write_text('{"red_star": "red_star", "blue_ring": "blue_ring"}')
    expected = load_images(str(folder)).class_names
    assert expected == ("blue ring", "red star")
    for names in (tmp_path / "names.txt", tmp_path / "names.json", ["blue_ring", "red_star"]):
        assert load_images(str(folder), names).class_names == expected


@pytest.mark.parametrize("kind", ["parquet", "datasets", "tar"])
def test_texts_of_digits_are_the_same_labels_as_numbers(tmp_path: Path, kind: str) -> None:
    texts = [str(number) for number in range(12)]
    if kind == "tar":
        files: Mapping[str, bytes] = {
            f"{text}.{ending}": content
            for text in texts
            for ending, content in (("png", png(int(text))), ("cls", text.encode()))
        }
        images = load_images(str(save_tar(tmp_path / "x.tar", files)), WORDS)
    else:
        columns = {"image": [png(number) for number in range(12)], "label": texts}
        path = save_plain_parquet(tmp_path / "x.parquet", columns)
        source = str(path) if kind == "parquet" else datasets.Dataset.from_dict(columns)
        images = load_images(source, WORDS)
    assert (images.labels, images.class_names) == (tuple(range(12)), WORDS)


def test_the_same_names_in_another_order_are_matched_by_name(tmp_path: Path) -> None:
    folder = save_folders(tmp_path / "x", "red_fox", "bird", "Dog")
    images = load_images(str(folder), ["dog", "Red Fox", "bird"])
    assert named(images) == {"red_fox": "Red Fox", "bird": "bird", "Dog": "dog"}
    other = load_images(str(folder), ["a hound", "a bird", "a fox"])
    assert other.class_names == ("a hound", "a bird", "a fox")  # Dog, bird, red_fox


def test_names_that_contradict_the_order_are_refused(tmp_path: Path) -> None:
    folder = save_folders(tmp_path / "x", "bird", "dog", "fox")
    with pytest.raises(DataError, match="'bird' is class 1 of the images, but name 3 of 3"):
        load_images(str(folder), ["hound", "fox-like", "bird"])
    assert load_images(str(folder), ["bird", "a hound", "fox"]).class_names[1] == "a hound"


@pytest.mark.parametrize("width", [1, 3])
def test_numbers_in_front_of_names_stay_out_of_prompts_and_order_the_classes(
    tmp_path: Path, width: int
) -> None:
    folders = [
        f"{number:0{width}}.{word.title().replace(' ', '_')}" for number, word in enumerate(WORDS)
    ]
    images = load_images(str(save_folders(tmp_path / "x", *folders)))
    assert images.class_names == tuple(word.title() for word in WORDS)
    assert "classes are numbered" in texts_of(images.notes)[0]
    listed = load_images(str(tmp_path / "x"), [f"a {word}" for word in WORDS])
    assert listed.class_names == tuple(f"a {word}" for word in WORDS)
    models = save_folders(tmp_path / "cars", "3-series", "5-series", "7.62mm")
    assert load_images(str(models)).class_names == ("3-series", "5-series", "7.62mm")


def test_a_class_with_one_image_is_learned_from_and_not_held_back(tmp_path: Path) -> None:
    singles = save_folders(tmp_path / "x", *(f"class {letter}" for letter in "abcdefghij"), each=1)
    save_folders(singles, "shared a", "shared b", each=3, first=5000)
    samples = sample_and_hold_back(load_images(str(singles)), 1024, seed=0)
    assert samples.held_back is not None
    names = Counter(
        Path(samples.held_back.store.name(at)).parent.name for at in range(len(samples.held_back))
    )
    assert set(names) <= {"shared a", "shared b"}
    assert len(set(samples.decide.labels)) == 12
    alone = save_folders(tmp_path / "y", *"abcdef", each=1)
    assert sample_and_hold_back(load_images(str(alone)), 1024, seed=0).held_back is None


@pytest.mark.parametrize("mode", ["RGB", "L", "I;16"])
def test_jpeg_2000_is_decoded(tmp_path: Path, mode: str) -> None:
    values = np.random.default_rng(0).integers(0, 256, (24, 20, 3)).astype(np.uint8)
    if mode != "RGB":
        values = values[:, :, 0]
    stored = values.astype(np.uint16) * 257 if mode == "I;16" else values
    file = io.BytesIO()
    Image.fromarray(stored).save(file, "JPEG2000")  # lossless by default
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.jp2").write_bytes(file.getvalue())
    images = load_images(str(tmp_path))
    assert len(images) == 2
    expected = Image.fromarray(values).convert("RGB")
    assert images.image(0).tobytes() == expected.tobytes()
