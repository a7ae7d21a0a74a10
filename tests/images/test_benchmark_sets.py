"""The public layout of tar shards with texts beside them, on the Hub and on the disk; and images
with captions."""

from collections import Counter
from pathlib import Path

import pytest
from huggingface_hub import constants

from clipmerge.errors import DataError, HubError
from clipmerge.images.dataset import load_images, open_images
from clipmerge.images.image_set import LabelledImages
from clipmerge.images.local_files import local_inputs
from clipmerge.report.text import texts_of
from tests.support.benchmark_sets import TEMPLATES, save_files, webdataset
from tests.support.hub_double import FakeHub, upload
from tests.support.image_files import assert_images

V2 = "hf://datasets/clip-benchmark/wds_imagenetv2"
NAMES = ("tench", "sea_lion", "great white shark", "cock")
# twelve shards, so that their numbers sort otherwise than their names; every shard holds every
# class twice
SHARDS = [[label for label in range(4) for _ in range(2)] for _ in range(12)]


@pytest.fixture
def repository(hub: FakeHub, tmp_path: Path) -> str:
    files = webdataset(tmp_path / "tars", SHARDS, NAMES)
    files |= webdataset(tmp_path / "tars", [[0, 1, 2, 3]], NAMES, split="train", first=500)
    return upload(hub, "clip-benchmark/wds_imagenetv2", files, kind="dataset")


def fetched(hub: FakeHub) -> list[str]:
    """Shards that were asked for, in order."""
    return [path.split("/", 6)[-1] for _, path, _ in hub.requests("GET", r"/resolve/.*\.tar")]


def test_names_and_templates_come_with_the_set(
    hub: FakeHub, repository: str, tmp_path: Path
) -> None:
    found = load_images(f"{V2}:test", whole=True)
    assert (found.revision, found.class_names) == (repository, NAMES)
    assert found.templates == ("a bad photo of a {}.", "a photo of the {}.")
    assert found.labels == tuple(label for shard in SHARDS for label in shard)
    assert_images(found, list(range(96)))
    (tmp_path / "names.txt").write_text("a\nb\nc\nd\n")
    assert load_images(f"{V2}:test", tmp_path / "names.txt", whole=True).class_names == (
        "a",
        "b",
        "c",
        "d",
    )
    assert sorted(fetched(hub)) == sorted(f"test/{number}.tar" for number in range(12))
    assert isinstance(open_images(f"{V2}:test"), LabelledImages)


def test_a_split_may_be_written_like_its_folder(hub: FakeHub, tmp_path: Path) -> None:
    """The Hub's library takes the folder ``val`` for the split ``validation``."""
    files = webdataset(tmp_path / "tars", [[0, 1, 2, 3]] * 5, NAMES, split="val")
    upload(hub, "clip-benchmark/wds_insects", files, kind="dataset")
    for written in ("val", "validation"):
        found = load_images(f"hf://datasets/clip-benchmark/wds_insects:{written}", whole=True)
        assert (len(found), found.class_names, len(found.templates)) == (20, NAMES, len(TEMPLATES))


def test_a_sample_fetches_only_the_shards_that_it_needs(hub: FakeHub, repository: str) -> None:
    sample = load_images(f"{V2}:test", max_images=16, seed=3).sample(16, seed=3)
    assert Counter(sample.labels) == {0: 4, 1: 4, 2: 4, 3: 4}
    assert len(fetched(hub)) == 2
    again = load_images(f"{V2}:test", max_images=16, seed=3).sample(16, seed=3)
    assert again.store.names == sample.store.names  # type: ignore[attr-defined]
    other = load_images(f"{V2}:test", max_images=16, seed=4)
    assert len(fetched(hub)) == len(set(fetched(hub))) > 2
    assert len(other) == 16


def test_shards_in_the_order_of_classes_are_read_until_the_sample_is_balanced(
    hub: FakeHub, tmp_path: Path
) -> None:
    files = webdataset(tmp_path / "tars", [[number // 2] * 3 for number in range(8)], NAMES)
    upload(hub, "clip-benchmark/wds_imagenetv2", files, kind="dataset")
    found = load_images(f"{V2}:test", max_images=8)
    assert Counter(found.sample(8, seed=0).labels) == {0: 2, 1: 2, 2: 2, 3: 2}
    assert len(fetched(hub)) < 8
    assert texts_of(found.notes)[-1].startswith(f"{V2}:test: 4 of 8 shards hold ")


def test_a_local_copy_reads_the_same(tmp_path: Path) -> None:
    folder = save_files(tmp_path / "copy", webdataset(tmp_path / "tars", [[0, 1], [2, 3]], NAMES))
    for source in (folder / "test", folder, f"{folder}:test"):
        found = load_images(str(source))
        assert (found.class_names, found.labels, len(found.templates)) == (
            NAMES,
            (0, 1, 2, 3),
            len(TEMPLATES),
        )
    save_files(folder, webdataset(tmp_path / "tars", [[3]], NAMES, split="train"))
    assert load_images(f"{folder}:train").labels == (3,)
    with pytest.raises(
        DataError, match=rf"{folder}: holds several splits \(test, train\); write {folder}:test"
    ):
        load_images(str(folder))
    assert {folder} <= set(local_inputs(f"{folder}:train"))
    (folder / "test" / "0.tar").unlink()
    with pytest.raises(
        DataError, match=r"nshards\.txt counts 2 shards, but 1 of them .* \(first 0\.tar\)"
    ):
        load_images(f"{folder}:test")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("classnames.txt", b"tench\n", r"label 1 has no name; there are 1 class names"),
        ("classnames.txt", b"\xff\xfe", r"classnames\.txt: cannot be read \(not UTF-8"),
        (
            "zeroshot_classification_templates.txt",
            b"a photo\n",
            r"'a photo' has no \{c\} for the class name",
        ),
        (
            "dataset_type.txt",
            b"multilabel\n",
            r"dataset_type\.txt says 'multilabel'; accuracy needs one class",
        ),
        (
            "dataset_type.txt",
            b"retrieval\n",
            r"has no \.txt for `caption_column`",
        ),
        ("test/nshards.txt", b"two\n", r"nshards\.txt: 'two' is not a number of shards"),
        (
            "test/nshards.txt",
            b"3\n",
            r"test/nshards\.txt counts 3 shards, but 2 of them .* \(first 1\.tar\)",
        ),
    ],
)
def test_texts_that_cannot_be_used(
    hub: FakeHub, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    files = webdataset(tmp_path / "tars", [[0, 1]], NAMES) | {name: content}
    upload(hub, "clip-benchmark/wds_imagenetv2", files, kind="dataset")
    with pytest.raises(DataError, match=message):
        load_images(f"{V2}:test", whole=True)


def test_offline_the_shards_of_an_earlier_sample_are_enough(
    hub: FakeHub, repository: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = load_images(f"{V2}:test", max_images=16, seed=3).sample(16, seed=3)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.log)
    assert (
        load_images(f"{V2}:test", max_images=16, seed=3).sample(16, seed=3).labels == before.labels
    )
    with pytest.raises(
        HubError, match=r"missing from .*; go online and run again|Go online and run again"
    ):
        load_images(f"{V2}:test", whole=True)
    assert len(hub.log) == asked
