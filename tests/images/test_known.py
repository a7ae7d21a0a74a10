"""Public data sets by name: each is well formed, and is read with its names and templates."""

from pathlib import Path

import pytest

from clipmerge.errors import DataError, UsageError
from clipmerge.hub.ids import parse_dataset
from clipmerge.images import registry
from clipmerge.images.classes import name_classes
from clipmerge.images.dataset import load_images, open_images
from clipmerge.images.prompts import check_templates, template_set
from clipmerge.images.registry import (
    class_list,
    find_known,
    imagenet_names,
    known_sets,
)
from clipmerge.images.source import Source
from clipmerge.images.store import ImageList
from tests.support.benchmark_sets import retrieval_set, webdataset
from tests.support.hub_double import FakeHub, upload
from tests.support.image_files import save_hub_parquet


def test_every_set_is_well_formed() -> None:
    # names that users and the issue tracker know them by
    usual = {
        "imagenet",
        "imagenetv2",
        "imagenet-r",
        "imagenet-a",
        "imagenet-sketch",
        "objectnet",
        "cifar10",
    }
    usual |= {f"fusionbench-{task}" for task in ("cars", "eurosat", "resisc45", "gtsrb")}
    assert usual <= known_sets().keys()
    for name, known in known_sets().items():
        assert parse_dataset(known.address()).split == known.split, name
        assert known.split in known.splits, name
        assert set(known.images) <= set(known.splits), name
        assert all("{}" in template for template in known.prompts), name
        assert all(0 < figure < 100 for figure in known.zeroshot.values()), name
        if known.imagenet_rows and known.class_names:
            assert len(known.imagenet_rows) == len(known.class_names), name
        assert known.texts != "here" or (known.class_names and known.prompts), name


def test_rows_of_shifts_are_those_of_their_names() -> None:
    renditions = known_sets()["imagenet-r"]
    assert renditions.class_names[:3] == ("goldfish", "great white shark", "hammerhead shark")
    assert (len(renditions.class_names), len(known_sets()["imagenet-a"].class_names)) == (200, 200)
    objects = known_sets()["objectnet"]
    rows = dict(zip(objects.class_names, objects.imagenet_rows, strict=True))
    assert [class_list("imagenet")[row] for row in rows["bicycle"]] == [
        "mountain bike",
        "tandem bicycle",
    ]
    assert len(class_list("imagenet")) == 1000


def test_wordnet_ids_have_imagenets_names() -> None:
    ids = Path(registry.__file__).with_name("imagenet_ids.txt").read_text().split()
    assert ids == sorted(set(ids))  # ImageNet's classes are in the order of their ids
    assert imagenet_names(tuple(ids)) == class_list("imagenet")
    known = {
        "n01440764": "tench",
        "n02123045": "tabby cat",
        "n02504458": "African bush elephant",
        "n04254680": "soccer ball",
        "n07753592": "banana",
        "n15075141": "toilet paper",
    }
    assert imagenet_names(tuple(known)) == tuple(known.values())
    assert imagenet_names(("n01440764", "n02084071")) is None
    assert imagenet_names(()) is None


def test_a_name_stands_for_a_source_unless_a_folder_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, address in (
        ("imagenet-sketch@abc:test", "hf://datasets/clip-benchmark/wds_imagenet_sketch@abc:test"),
        ("fusionbench-svhn", "hf://datasets/ufldl-stanford/svhn:cropped_digits/test"),
        ("cifar10", known_sets()["cifar10"].address()),
    ):
        assert str(find_known(name)) == address
    (tmp_path / "cifar10").mkdir()
    assert find_known("cifar10") is find_known("imagenet-x") is None
    with pytest.raises(
        DataError, match=r"imagenetv2:tset: no split 'tset' \(splits: test\)\. Did you mean 'test'"
    ):
        find_known("imagenetv2:tset")


def test_a_set_of_clip_benchmark_brings_its_own_texts(hub: FakeHub, tmp_path: Path) -> None:
    names = [f"thing_{number}" for number in range(200)]
    files = webdataset(tmp_path / "tars", [[0, 1, 199]], names)
    sha = upload(hub, "clip-benchmark/wds_imagenet-r", files, kind="dataset")
    found = load_images("imagenet-r", whole=True)
    assert (found.source, found.revision) == (
        "hf://datasets/clip-benchmark/wds_imagenet-r:test",
        sha,
    )
    assert found.class_names == tuple(names)
    assert found.templates == ("a bad photo of a {}.", "a photo of the {}.")
    assert found.imagenet_rows[199] == (988,)


def test_names_that_stand_only_here_replace_the_table_s(hub: FakeHub, tmp_path: Path) -> None:
    content = save_hub_parquet(tmp_path / "x.parquet", [0, 2, 1]).read_bytes()
    upload(
        hub, "tanganke/eurosat", {"data/contrast-00000-of-00001.parquet": content}, kind="dataset"
    )
    found = load_images("fusionbench-eurosat:contrast", whole=True)
    assert found.class_names == class_list("fusionbench-eurosat")
    assert found.templates[0] == "a centered satellite photo of {}."
    assert found.labels == (0, 2, 1)


def test_retrieval_sets_go_by_name_too(hub: FakeHub, tmp_path: Path) -> None:
    upload(
        hub,
        "clip-benchmark/wds_flickr8k",
        retrieval_set(tmp_path / "tars", [[["a dog"]]]),
        kind="dataset",
    )
    assert open_images("flickr8k").captions == (("a dog",),)
    with pytest.raises(DataError, match="have captions and no classes"):
        load_images("flickr8k")


def test_template_sets() -> None:
    assert [len(template_set(name)) for name in ("openai-80", "openai-7", "simple")] == [80, 7, 1]
    assert check_templates(["simple", "a {c}!"]) == ("a photo of a {}.", "a {}!")
    assert set(template_set("openai-7")) <= set(template_set("openai-80"))
    with pytest.raises(UsageError, match=r"is not a template set .*Did you mean 'openai-80'"):
        check_templates(["openai-8"])


def test_a_label_without_a_name_is_refused() -> None:
    known = known_sets()["fusionbench-eurosat"]
    labels = list(range(len(known.class_names)))
    named = known.describe(Source("x", ImageList((), ()), labels))
    assert name_classes(named, None)[:2] == (tuple(labels), known.class_names)
    more = known.describe(Source("x", ImageList((), ()), [*labels, len(labels)]))
    with pytest.raises(
        DataError, match=f"label {len(labels)} has no name; there are {len(labels)} class names"
    ):
        name_classes(more, None)
