"""Datasets on the Hub: real files, the real client, and the small part of a large split that is
downloaded."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants

from clipmerge.errors import ClipmergeError, DataError, HubError
from clipmerge.hub.download import Snapshot
from clipmerge.hub.ids import HubId
from clipmerge.images import hub_splits
from clipmerge.images.dataset import load_images
from clipmerge.report.text import texts_of
from tests.support.command import one_line
from tests.support.hub_double import FakeHub, put, upload
from tests.support.image_files import assert_images, save_hub_parquet

CARS = "hf://datasets/acme/cars"
TRAIN = np.random.default_rng(3).integers(0, 3, 300).tolist()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A dataset as `push_to_hub` lays it out: 300 training images in two files of row groups of
    ten, 9 test images."""
    folder = tmp_path_factory.mktemp("cars")
    half = len(TRAIN) // 2
    parts = {
        "data/train-00000-of-00002.parquet": (TRAIN[:half], 0),
        "data/train-00001-of-00002.parquet": (TRAIN[half:], half),
        "data/test-00000-of-00001.parquet": ([2, 1, 0] * 3, 1000),
    }
    found = {}
    for name, (labels, first) in parts.items():
        found[name] = save_hub_parquet(folder / name, labels, first=first, group=10).read_bytes()
    return found


@pytest.fixture
def sha(hub: FakeHub, files: dict[str, bytes]) -> str:
    return upload(hub, "acme/cars", files, kind="dataset")


@pytest.mark.parametrize(
    "source", ["datasets/cars", "datasets/a/c:", "datasets/a/../x", "acme/clip"]
)
def test_what_is_no_dataset(source: str) -> None:
    with pytest.raises(DataError, match=r"not a dataset on the Hub; write hf://datasets/ORG/NAME"):
        load_images(f"hf://{source}")


def test_a_split_gives_names_labels_images_and_its_commit(hub: FakeHub, sha: str) -> None:
    found = load_images(f"{CARS}:test")
    assert (found.revision, found.class_names) == (sha, ("bird", "red fox", "dog"))
    assert found.labels == (2, 1, 0) * 3
    assert_images(found, list(range(1000, 1009)))
    assert found.store.name(4) == f"{CARS}@{sha}/data/test-00000-of-00001.parquet, row 4"
    assert not hub.requests("GET", "/resolve/main")


def test_a_sample_of_a_large_split_is_a_small_part_of_it(
    hub: FakeHub, sha: str, files: dict[str, bytes]
) -> None:
    before = hub.sent
    found = load_images(f"{CARS}:train")
    sample = found.sample(12, seed=0)
    whole = sum(len(content) for name, content in files.items() if "train" in name)
    assert found.labels == tuple(TRAIN)
    assert hub.sent - before < 0.35 * whole
    assert Counter(sample.labels) == {0: 4, 1: 4, 2: 4}
    statuses = {status for _, _, status in hub.requests("GET", r"/resolve/.*parquet")}
    assert statuses == {206}
    rows = [name.rpartition(" ")[2] for name in sample.store.names]  # type: ignore[attr-defined]
    firsts = [150 * ("00001-of" in name) for name in sample.store.names]  # type: ignore[attr-defined]
    assert_images(sample, [first + int(row) for first, row in zip(firsts, rows, strict=True)])


def test_a_whole_split_of_a_commit_is_kept_in_the_cache(
    hub: FakeHub, sha: str, tmp_path: Path
) -> None:
    assert_images(load_images(f"{CARS}:test", whole=True), list(range(1000, 1009)))
    before = len(hub.requests("GET", "/resolve/"))
    assert_images(load_images(f"{CARS}@{sha}:test", whole=True), list(range(1000, 1009)))
    assert len(hub.requests("GET", "/resolve/")) == before
    assert "train" not in " ".join(path for _, path, _ in hub.log if "/resolve/" in path)
    newer = save_hub_parquet(tmp_path / "new.parquet", [1], first=50).read_bytes()
    head = upload(hub, "acme/cars", {"data/test-00000-of-00001.parquet": newer}, kind="dataset")
    assert len(load_images(f"{CARS}@{sha}:test")) == 9
    found = load_images(f"{CARS}:test")
    assert (found.revision, len(found)) == (head, 1)


CARD = """---
configs:
- config_name: small
  data_files:
  - split: train
    path: a/one.parquet
  - split: holdout
    path: ["b/*.parquet"]
- config_name: full
  default: true
  data_files: "a/*.parquet"
---
"""


def test_the_card_says_which_files_are_which_split(hub: FakeHub, tmp_path: Path) -> None:
    parts = {"a/one": [0], "a/two": [1, 1], "b/x": [2, 2, 2]}
    named = {
        f"{k}.parquet": save_hub_parquet(tmp_path / f"{k}.parquet", v).read_bytes()
        for k, v in parts.items()
    }
    upload(hub, "acme/cars", {"README.md": CARD.encode(), **named}, kind="dataset")
    assert load_images(f"{CARS}:small/train").labels == (0,)
    assert load_images(f"{CARS}:small/holdout").labels == (2, 2, 2)
    found = load_images(CARS)
    assert found.labels == (0, 1, 1)
    assert texts_of(found.notes) == [f"{CARS}: reading its only split, train"]
    alone = CARD.partition("- config_name: full")[0] + "---\n"
    for card in (alone, alone.replace("\n", "\r\n")):
        upload(hub, "acme/cars", {"README.md": card.encode(), **named}, kind="dataset")
        assert load_images(f"{CARS}:holdout").labels == (2, 2, 2)  # of the only configuration
    upload(hub, "acme/cars", {"README.md": CARD.encode(), **named}, kind="dataset")
    with pytest.raises(DataError, match=r"no configuration 'ful' \(there are small, full\)"):
        load_images(f"{CARS}:ful/train")
    with pytest.raises(DataError, match=r"no split 'holdout' \(splits: train\)"):
        load_images(f"{CARS}:holdout")


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["train.parquet", "val.parquet"], "train, validation"),
        (["x/clean-00000-of-00001.parquet", "x/noisy-00000-of-00001.parquet"], "clean, noisy"),
        (["large/test.parquet", "large/train.parquet"], "large/test, large/train"),
    ],
)
def test_splits_are_read_off_names(
    hub: FakeHub, tmp_path: Path, names: list[str], splits: str
) -> None:
    content = save_hub_parquet(tmp_path / "x.parquet", [0]).read_bytes()
    card = b"---\nconfigs: {a: b}\n---\n"  # of another shape, so it is passed over
    put(hub, "acme/cars", {"README.md": card, **dict.fromkeys(names, content)}, kind="dataset")
    parts = splits.replace("large/", "").split(", ")
    told = (
        rf"{CARS}: which split\? \(splits: ({parts[0]}, {parts[1]}|{parts[1]}, {parts[0]})\); write"
        r" it after a colon"
    )
    with pytest.raises(DataError, match=told):
        load_images(CARS)
    for split in splits.split(", "):
        assert len(load_images(f"{CARS}:{split}")) == 1


FILES: dict[str, tuple[dict[str, bytes], str, str]] = {
    "no usable file": (
        {"cat/1.jpg": b"x", "data.zip": b"x"},
        "",
        r"no Parquet or tar files \(it holds \.jpg, \.zip\)",
    ),
    "damaged": ({"train.parquet": b"PAR1 no"}, "", r"train\.parquet: cannot be read as Parquet"),
    "both kinds": (
        {"train.parquet": b"", "train/1.tar": b""},
        "",
        r"split 'train' holds Parquet and tar files",
    ),
    "no such split": (
        {"train.parquet": b"", "test.parquet": b""},
        ":tets",
        r"no split 'tets' .*Did you mean 'test'",
    ),
    "no such folder": (
        {"a/train.parquet": b""},
        ":b/train",
        r"no configuration 'b' \(folders: a\)",
    ),
    "a card of other files": (
        {
            "README.md": b"---\nconfigs:\n- data_files: x.csv\n---\n",
            "x.csv": b"a",
            "y.parquet": b"",
        },
        "",
        "the files that its card names are not Parquet or tar files",
    ),
    "a bad card": (
        {"README.md": b"---\na: [\n---\n", "test.parquet": b""},
        "",
        r"reading the card of .*acme/cars@",
    ),
    "a large card": (
        {"README.md": b"---\nlicense: mit\n---\n" + b"# Cars" * 300_000, "test.parquet": b""},
        "",
        "reading the card of .*acme/cars@.*: it cannot be read",
    ),
}


@pytest.mark.parametrize("how", FILES)
def test_datasets_that_cannot_be_used(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(hub_splits, "MAX_TEXT_BYTES", 1 << 20)
    content, split, message = FILES[how]
    put(hub, "acme/cars", content, kind="dataset")
    with one_line(ClipmergeError, message):
        load_images(f"{CARS}{split}")


def test_offline_a_whole_split_is_there_and_no_sample(
    hub: FakeHub, sha: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_images(f"{CARS}:test", whole=True)
    load_images(f"{CARS}:train").sample(3, seed=0)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    before = len(hub.log)
    found = load_images(f"{CARS}:test")
    assert_images(found, list(range(1000, 1009)))
    assert (
        texts_of(found.notes)[0]
        == f"HF_HUB_OFFLINE is set: {CARS} is the cached commit {sha}, not checked against the Hub"
    )
    with pytest.raises(DataError, match=r"no split 'train' \(splits: test\)"):
        load_images(f"{CARS}:train")
    with pytest.raises(HubError, match="not in the cache"):
        load_images("hf://datasets/acme/none:test")
    assert len(hub.log) == before


def test_offline_part_of_a_split_fails(
    hub: FakeHub, sha: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    load_images(f"{CARS}:train", whole=True)
    (part,) = tmp_path.rglob("snapshots/*/data/train-00001-of-00002.parquet")
    part.unlink()
    bare = upload(
        hub,
        "acme/bare",
        {"README.md": b"---\nlicense: mit\n---\n", "test.parquet": b""},
        kind="dataset",
    )
    Snapshot(HubId("acme/bare", bare, "dataset")).download(["README.md"])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        DataError, match=r"1 of its 2 files are in the cache; go online and run again"
    ):
        load_images(f"{CARS}:train")
    (other,) = tmp_path.rglob("snapshots/*/data/train-00000-of-00002.parquet")
    other.rename(other.with_name("validation-00000-of-00002.parquet"))
    for source in (CARS, f"{CARS}:val"):  # the only split, and another name of it
        with pytest.raises(DataError, match=r"1 of its 2 files are in the cache"):
            load_images(source)
    with pytest.raises((DataError, HubError), match=r"not in the cache"):
        load_images(f"hf://datasets/acme/bare@{bare}:test")
