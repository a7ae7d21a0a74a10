"""Names reach the classes that they name, whatever order the source has."""

from pathlib import Path
from typing import Any

import pytest

from clipmerge.errors import DataError, UsageError
from clipmerge.images.classes import class_prompts
from clipmerge.images.registry import (
    check_templates,
    class_list,
    find_public_set,
    imagenet_names,
    public_sets,
)
from tests.support.image_files import load_images
from tests.support.tiny_clip import save_images

WORDS = tuple(f"{letter} thing" for letter in "abcdefghijkl")


def named(source: Any, names: Any = None) -> dict[str, str]:
    """The class name of each folder."""
    images = load_images(source, names)
    return {
        Path(images.pictures.name_of(at)).parent.name: images.class_names[label]
        for at, label in enumerate(images.labels)
    }


@pytest.mark.parametrize(
    ("there", "given", "expected"),
    [
        (map(str, range(12)), WORDS, WORDS),  # 10 is not the third
        ([f"{number:03}" for number in range(1, 13)], WORDS, WORDS),  # from 1
        (["0", "1"], '{"1": "new", "0": "old"}', ["old", "new"]),
        (["0", "7"], ["x", "y", "z"], ["has 3 class names, there are 8 classes"]),
        (["blue_ring", "red_star"], None, ["blue ring", "red star"]),
        (["blue_ring", "red_star"], "red_star\nblue_ring\n", ["blue ring", "red star"]),
        (["Dog", "bird", "red_fox"], ["dog", "Red Fox", "bird"], ["dog", "bird", "Red Fox"]),
        (
            ["Dog", "bird", "red_fox"],
            ["a hound", "a bird", "a fox"],
            ["a hound", "a bird", "a fox"],
        ),
        ([f"{at}.{word.replace(' ', '_')}" for at, word in enumerate(WORDS)], None, WORDS),
        (["0.zero", "1.one"], None, ["zero", "one"]),
        (["3-series", "5-series", "7.62mm"], None, ["3-series", "5-series", "7.62mm"]),
        (["n01440764", "n15075141"], None, ["tench", "toilet paper"]),
        (["bird", "dog"], '{"bird": "b"}', ["has no name for dog; give one per class"]),
        (["bird", "dog"], '["b", null]', ["None is not a class name; write a text"]),
        (["bird", "dog"], '{"', ["cannot be read as class names"]),
    ],
)
def test_names_of_classes(there: Any, given: Any, expected: Any, tmp_path: Path) -> None:
    there = tuple(there)
    source = save_images(tmp_path / "x", each=1, classes=there)
    if isinstance(given, str):
        given_file = tmp_path / ("names.json" if given[0] in "[{" else "names.txt")
        given_file.write_text(given)
        given = given_file
    if len(expected) != len(there) or len(there) == 1:
        with pytest.raises(DataError, match=expected[0].replace("(", r"\(")):
            load_images(source, given)
    else:
        assert named(source, given) == dict(zip(there, expected, strict=True))


def test_prompts_are_class_by_class_and_template_sets_go_by_name() -> None:
    assert class_prompts(("a", "b"), ("{}", "{}, {}")) == ["a", "a, a", "b", "b, b"]
    sets = ("openai-80", "openai-7", "simple")
    assert [len(check_templates([name])) for name in sets] == [80, 7, 1]
    assert check_templates(["simple", "a {c}!"]) == ("a photo of a {}.", "a {}!")
    with pytest.raises(UsageError, match=r"is not a template set .*Did you mean 'openai-80'"):
        check_templates(["openai-8"])


def test_every_public_set_is_well_formed() -> None:
    for name, known in public_sets().items():
        assert find_public_set(name)[0] is known
        assert all("{}" in template for template in check_templates(known.templates)), name
        if known.imagenet_rows and known.class_names:
            assert len(known.imagenet_rows) == len(known.class_names), name
    objects = public_sets()["objectnet"]
    rows = dict(zip(objects.class_names, objects.imagenet_rows, strict=True))
    assert [class_list("imagenet")[row] for row in rows["bicycle"]] == [
        "mountain bike",
        "tandem bicycle",
    ]
    assert imagenet_names(("n01440764", "n02084071")) is None


def test_a_name_stands_for_a_source_unless_a_folder_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, address in {
        "imagenet-sketch@abc:train": "hf://datasets/clip-benchmark/wds_imagenet_sketch@abc:train",
        "fusionbench-svhn": "hf://datasets/ufldl-stanford/svhn:cropped_digits/test",
        "imagenet-x": "imagenet-x",
    }.items():
        assert find_public_set(name)[1] == address
    (tmp_path / "cifar10").mkdir()
    assert find_public_set("cifar10") == (None, "cifar10")
