"""Every kind of source gives the same images, labels and names, or the same captions."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from huggingface_hub import constants
from PIL import Image
from torch.utils.data import Subset

from clipmerge.errors import DataError
from clipmerge.images.dataset import open_images
from clipmerge.images.image_set import CaptionedImages, Columns, LabelledImages
from tests.support.benchmark_sets import classification_set, save_files, webdataset
from tests.support.hub_double import FakeHub, upload
from tests.support.image_files import assert_images, load_images, png, save_tar

NAMES = ("five", "four", "two")
LABELS = (0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2)
CAPTIONS = tuple(f"a picture of thing {number}" for number in range(12))
COUNT = range(12)


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def pictures(folder: Path) -> Path:
    """Files that tables name."""
    for k in COUNT:
        write(folder / f"{k:02}.png", png(k))
    return folder


def class_folders(folder: Path, inside: str = "") -> Path:
    for k in COUNT:
        write(folder / NAMES[LABELS[k]] / inside / f"{k:02}.png", png(k))
    for left_behind in ("__MACOSX/._00.png", ".DS_Store", "two/.DS_Store", "two/._00.png"):
        write(folder / left_behind, b"no image")
    return folder


def links(folder: Path) -> Path:
    """Class folders that are links, with links to files in them."""
    real = class_folders(folder / "real")
    (folder / "linked").mkdir()
    for name in NAMES:
        (folder / "linked" / name).symlink_to(real / name)
    file = real / "two" / "08.png"
    file.replace(folder / "elsewhere")
    file.symlink_to(folder / "elsewhere")
    (real / "two" / "again").symlink_to(real / "two")
    return folder / "linked"


def keys(folder: Path) -> Path:
    for k in COUNT:
        write(folder / f"{k:02}.txt", CAPTIONS[k].encode())
    return pictures(folder)


def texts(column: str) -> list[str]:
    return [CAPTIONS[k] if column in ("title", "text") else NAMES[LABELS[k]] for k in COUNT]


def table(folder: Path, name: str, column: str) -> Path:
    """A table of image files, as pandas writes it."""
    is_json = name.endswith("l")
    files = [f"{k:02}.png" for k in COUNT]
    rows = pd.DataFrame({"file_name" if is_json else "filepath": files, column: texts(column)})
    path = pictures(folder) / name
    if is_json:
        rows.to_json(path, orient="records", lines=True)
    else:
        mark = "," if column == "label" else "\t"
        rows.to_csv(path, sep=mark, index=False, encoding="utf-8-sig")  # as Excel does
    return path


def hub_table(path: Path, numbers: range = COUNT) -> Path:
    images = [{"bytes": png(k), "path": None} for k in numbers]
    label = datasets.ClassLabel(names=list(NAMES))
    features = datasets.Features({"image": datasets.Image(), "label": label})
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {"image": images, "label": [LABELS[k] for k in numbers]}
    datasets.Dataset.from_dict(columns, features=features).to_parquet(path)
    return path


def shards(folder: Path) -> Path:
    for part in range(3):
        hub_table(folder / f"train-0000{part}-of-00003.parquet", range(4 * part, 4 * part + 4))
    return folder


def archive(path: Path, numbers: range = COUNT, ending: str = "cls") -> Path:
    members = {}
    for k in numbers:
        name = NAMES[LABELS[k]]
        text = {"cls": name, "txt": CAPTIONS[k], "json": json.dumps({"label": name})}[ending]
        members |= {f"{k:02}.png": png(k), f"{k:02}.{ending}": text.encode()}
    return save_tar(path, {"._00.png": b"no image", **members})


def tar_with_links(folder: Path) -> Path:
    """Class folders whose pictures are hard and symbolic links, in the archive, to others there."""
    path = folder.with_suffix(".tar")
    for at, file in enumerate(sorted(folder.glob("*/[0-9]*"))):
        blob = write(folder / ".blobs" / file.name, file.read_bytes())
        file.unlink()
        if at % 2:
            file.hardlink_to(blob)
        else:
            file.symlink_to(Path("..", ".blobs", file.name))
    with tarfile.open(path, "w") as archive:
        archive.add(folder, ".")
    return path


class Torch(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Pictures as torchvision's data sets give them."""

    classes = NAMES

    def __len__(self) -> int:
        return len(COUNT)

    def __getitem__(self, at: int) -> tuple[Image.Image, int]:
        return Image.open(io.BytesIO(png(at))), LABELS[at]


def pairs(values: Any) -> list[tuple[Any, Any]]:
    return [(Image.open(io.BytesIO(png(k))), values[k]) for k in COUNT]


LABELLED: dict[str, Callable[[Path], Any]] = {
    "class folders": lambda f: class_folders(f, "batch/1"),
    "links": links,
    "CSV": lambda f: table(f, "x.csv", "label"),
    "metadata.jsonl": lambda f: table(f, "metadata.jsonl", "label").parent,
    "folder like the Hub's": lambda f: shards(f / "data").parent,
    "tar": lambda f: archive(f / "x.tar"),
    "JSON in tar": lambda f: archive(f / "x.tar", ending="json"),
    "folders in tar": lambda f: save_tar(
        f / "x.tar", {f"{NAMES[LABELS[k]]}/{k:02}.png": png(k) for k in COUNT}
    ),
    "links in tar": lambda f: tar_with_links(class_folders(f / "x")),
    "folder of tars": lambda f: (
        [archive(f / f"{at}.tar", COUNT[4 * at : 4 * at + 4]) for at in range(3)][-1].parent
    ),
    "CLIP_benchmark's": lambda f: save_files(f / "set", classification_set(f, LABELS, NAMES)),
    "torch Dataset": lambda _: Torch(),
    "list": lambda _: pairs([NAMES[label] for label in LABELS]),
    "paths": lambda f: [
        (file, file.parent.name) for file in sorted(class_folders(f).glob("*/[0-9]*"))
    ],
    "tensors of 0 to 1": lambda _: [
        (torch.tensor(np.asarray(image)).permute(2, 0, 1) / 255, NAMES[LABELS[k]])
        for image, k in pairs(COUNT)
    ],
}
CAPTIONED: dict[str, Callable[[Path], Any]] = {
    "KEY.txt": keys,
    "CSV": lambda f: table(f, "x.csv", "title"),
    "tar": lambda f: archive(f / "x.tar", ending="txt"),
    "CLIP_benchmark's": lambda f: save_files(
        f / "set", webdataset(f, [CAPTIONS], "txt", {"dataset_type.txt": ["retrieval"]})
    ),
    "list": lambda _: pairs(CAPTIONS),
    "list of lists": lambda _: pairs([[caption, " "] for caption in CAPTIONS]),
}


@pytest.mark.parametrize("kind", LABELLED)
def test_the_same_images_labels_and_names(kind: str, tmp_path: Path) -> None:
    source = LABELLED[kind](tmp_path)
    found = load_images(source)
    assert (found.labels, found.class_names, found.notes) == (LABELS, NAMES, ())
    assert_images(found, COUNT)
    drawn = found.sample(6, seed=1)
    assert sorted(drawn.labels) == [0, 0, 1, 1, 2, 2]
    assert_images(drawn, drawn.pictures.items)


@pytest.mark.parametrize("kind", CAPTIONED)
def test_the_same_images_and_captions(kind: str, tmp_path: Path) -> None:
    source = CAPTIONED[kind](tmp_path)
    found = open_images(source)
    assert isinstance(found, CaptionedImages)
    assert found.captions == tuple((caption,) for caption in CAPTIONS)
    assert_images(found, COUNT)


@pytest.fixture
def cars(hub: FakeHub, tmp_path: Path) -> str:
    """The commit of a data set with two splits."""
    files = {}
    for split, numbers in {"train": COUNT, "test": range(3, 9)}.items():
        table = hub_table(tmp_path / f"{split}.parquet", numbers)
        files[f"data/{split}-00000-of-00001.parquet"] = table.read_bytes()
    return upload(hub, "acme/cars", files, kind="dataset")


def test_a_split_on_the_hub_is_read_at_its_commit_and_again_offline(
    hub: FakeHub, cars: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(hub, "acme/cars", {"data/test-00000-of-00001.parquet": b"broken"}, kind="dataset")
    source = f"hf://datasets/acme/cars@{cars}:test"
    found = load_images(source)
    assert (found.revision, found.labels) == (cars, LABELS[3:9])
    assert_images(found, range(3, 9))
    assert not any("train-00000" in request for request in hub.log)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load_images(source).labels == found.labels
    with pytest.raises(DataError, match=r"was not opened before; unset HF_HUB_OFFLINE"):
        load_images(source.replace("test", "train"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "hf://datasets/acme/cars:tset",
            r"splits after a colon \(train, test\)\. Did you mean 'test'",
        ),
        ("hf://datasets/acme/cars", r"write one of its splits after a colon \(train, test\)"),
        ("hf://datasets/acme/none:test", r"acme/none:test: Repository Not Found.* Check the name"),
        ("hf://datasets/cars", "is not a dataset on the Hub; write hf://datasets/ORG/NAME"),
    ],
)
def test_hub_sources_that_are_not_there(
    hub: FakeHub, cars: object, source: str, message: str
) -> None:
    with pytest.raises(Exception, match=message) as raised:
        load_images(source)
    assert "\n" not in str(raised.value)


CARD = """---
configs:
- config_name: big
  data_files: [{split: validation, path: b/x.parquet}]
- config_name: small
  default: true
  data_files: [{split: validation, path: a/x.parquet}]
---
"""


def test_the_card_says_which_files_are_which_split(hub: FakeHub, tmp_path: Path) -> None:
    files = {"README.md": CARD.encode()}
    for name, numbers in {"a": range(2), "b": range(4, 9)}.items():
        files[f"{name}/x.parquet"] = hub_table(tmp_path / name, numbers).read_bytes()
    upload(hub, "acme/pets", files, kind="dataset")
    assert load_images("hf://datasets/acme/pets").labels == LABELS[:2]
    assert load_images("hf://datasets/acme/pets:big/validation").labels == LABELS[4:9]


def test_tars_on_the_hub_bring_names_and_templates(hub: FakeHub, tmp_path: Path) -> None:
    tars = classification_set(tmp_path, LABELS, [f"thing_{k}" for k in range(200)])
    commit = upload(hub, "clip-benchmark/wds_imagenet-r", tars, kind="dataset")
    found = load_images("imagenet-r")
    assert (found.source, found.revision) == (
        "hf://datasets/clip-benchmark/wds_imagenet-r:test",
        commit,
    )
    assert (found.labels, found.class_names[199]) == (LABELS, "thing_199")
    assert found.templates == ("a bad photo of a {}.", "a photo of the {}.")
    assert found.imagenet_rows[199] == (988,)
    assert_images(found, COUNT)


def test_columns_are_taken_as_they_are_named(tmp_path: Path) -> None:
    """Labels are taken where there are both, and captions if they are asked for."""
    columns = {"picture": [png(0), png(1)], "kind": ["x", "y"], "text": ["a b c", "d e f"]}
    path = tmp_path / "x.parquet"
    datasets.Dataset.from_dict(columns).to_parquet(path)
    assert isinstance(open_images(path), CaptionedImages)
    named = load_images(path, columns=Columns(image="picture", label="kind"))
    assert named.class_names == ("x", "y")
    columns["label"] = columns.pop("kind")
    table = datasets.Dataset.from_dict(columns)
    assert isinstance(open_images(table), LabelledImages)
    asked = open_images(table, columns=Columns(caption="text"))
    assert isinstance(asked, CaptionedImages)
    tar = archive(tmp_path / "x.tar", ending="json")
    assert load_images(tar, columns=Columns("png", "json.label")).labels == LABELS
    with pytest.raises(DataError, match=r"x\.tar, 00: has no \.cls \(endings: png, json\)"):
        open_images(tar, columns=Columns(label="cls"))


@pytest.mark.parametrize(
    ("written", "read"), [('"a cat,\nasleep"', "a cat,\nasleep"), ('"Cats" asleep', "Cats asleep")]
)
def test_a_table_has_a_row_for_each_caption_of_an_image(
    written: str, read: str, tmp_path: Path
) -> None:
    """A caption may have line breaks, or begin with a quote."""
    pictures(tmp_path)
    rows = (f"00.png,{written}", "01.png,a dog", "00.png,three")
    (tmp_path / "x.csv").write_text("\n".join(["filepath,title", *rows]))
    found = open_images(tmp_path / "x.csv")
    assert isinstance(found, CaptionedImages)
    assert found.captions == ((read, "three"), ("a dog",))
    assert_images(found, [0, 1])


def test_what_torchvision_keeps_is_not_decoded_for_its_labels() -> None:
    class Kept(Torch):
        targets = torch.tensor(LABELS)
        read: ClassVar[list[int]] = []

        def __getitem__(self, at: int) -> tuple[Image.Image, int]:
            self.read.append(at)
            return super().__getitem__(at)

    data = Kept()
    found = load_images(Subset(Subset(data, [11, *range(11)]), range(11)))
    assert (found.labels, found.class_names) == ((2, *LABELS[:10]), NAMES)
    assert not data.read
    assert_images(found.subset([0, 1]), [11, 0])
