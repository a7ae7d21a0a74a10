"""Parquet and WebDataset sources: columns found, parts read, and sources refused."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from clipmerge.errors import DataError
from clipmerge.images import Columns, parquet
from clipmerge.images.dataset import load_images
from clipmerge.images.overlap import Fingerprints, check_overlap, find_overlap
from clipmerge.images.sampling import balanced_sample, candidate_positions
from tests.support.command import clipmerge, refused
from tests.support.image_files import NAMES, png, save_hub_parquet, save_plain_parquet, save_tar

Pair = tuple[Path, Path]


def pixels(content: bytes) -> bytes:
    return Image.open(io.BytesIO(content)).convert("RGB").tobytes()


def assert_images(found: Any, numbers: list[int]) -> None:
    assert [found.image(k).tobytes() for k in range(len(found))] == [pixels(png(number)) for number in numbers]


# --- Parquet ---


def test_parquet_of_datasets_gives_names_labels_and_images(tmp_path: Path) -> None:
    path = save_hub_parquet(tmp_path / "x.parquet", [2, 0, 1, 0, 0], group=2)
    found = load_images(str(path))
    assert found.class_names == ("bird", "red fox", "dog")
    assert found.labels == (2, 0, 1, 0, 0)
    assert_images(found, [0, 1, 2, 3, 4])
    assert found.store.blocks == (0, 0, 1, 1, 2)
    assert found.store.name(4) == f"{path}, row 4"


def test_a_folder_and_a_range_of_parquet_files_are_one_source(tmp_path: Path) -> None:
    for part in range(3):
        save_hub_parquet(tmp_path / f"d/test-0000{part}-of-00003.parquet", [part, 0], first=10 * part)
    for source in (tmp_path / "d", tmp_path / "d/test-0000{0..2}-of-00003.parquet"):
        found = load_images(str(source))
        assert found.labels == (0, 0, 1, 0, 2, 0)
        assert_images(found, [0, 1, 10, 11, 20, 21])
        assert found.store.name(3).endswith("test-00001-of-00003.parquet, row 1")


@pytest.mark.parametrize("kind", ["bytes", "struct"])
@pytest.mark.parametrize("label", ["string", "category", "integer"])
def test_parquet_without_the_metadata_of_datasets(tmp_path: Path, kind: str, label: str) -> None:
    contents = [png(k) for k in range(3)]
    images = contents if kind == "bytes" else [{"bytes": content, "path": None} for content in contents]
    labels: Any = {
        "string": ["dog", "black_cat", "dog"],
        "category": pa.array(["dog", "black_cat", "dog"]).dictionary_encode(),
        "integer": [1, 0, 1],
    }[label]
    path = save_plain_parquet(tmp_path / "x.parquet", {"id": [7, 8, 9], "img": images, "target": labels})
    classes = tmp_path / "names.txt"
    classes.write_text("black cat\ndog\nnever seen\n")
    found = load_images(str(path), classes if label == "integer" else None)
    assert found.labels == (1, 0, 1)
    assert found.class_names[:2] == ("black cat", "dog")
    assert_images(found, [0, 1, 2])


def test_named_columns_win(tmp_path: Path) -> None:
    columns = {"image": [png(0), png(1)], "thumb": [png(2), png(3)], "label": ["a", "b"], "coarse": ["x", "x"]}
    path = save_plain_parquet(tmp_path / "x.parquet", columns)
    found = load_images(str(path), columns=Columns("thumb", "coarse"))
    assert (found.labels, found.class_names) == ((0, 0), ("x",))
    assert_images(found, [2, 3])


def test_labels_beyond_the_names_given(tmp_path: Path) -> None:
    path = save_plain_parquet(tmp_path / "x.parquet", {"image": [png(0), png(1)], "label": [0, 581_928]})
    (tmp_path / "n.txt").write_text("a\nb\nc\n")
    with pytest.raises(DataError, match=r"n\.txt: label 581928 has no name, it has 3; .*--label-column"):
        load_images(str(path), tmp_path / "n.txt")


def test_a_usable_label_column_is_taken_before_one_that_is_not(tmp_path: Path) -> None:
    columns = {"image": [png(0), png(1)], "label": [0.5, 0.1], "category": ["a", "b"]}
    assert load_images(str(save_plain_parquet(tmp_path / "x.parquet", columns))).class_names == ("a", "b")


def test_digits_without_end_are_text(tmp_path: Path) -> None:
    path = save_tar(tmp_path / "x.tar", {"a.png": png(0), "a.cls": b"1" * 5000, "b.png": png(1), "b.cls": b"2"})
    assert load_images(str(path)).labels == (0, 1)


def test_classes_name_the_features_of_a_table(tmp_path: Path) -> None:
    path = save_hub_parquet(tmp_path / "x.parquet", [2, 0])
    (tmp_path / "n.json").write_text(json.dumps({"dog": "a hound", "bird": "a bird", "red_fox": "a fox"}))
    assert load_images(str(path), tmp_path / "n.json").class_names == ("a bird", "a fox", "a hound")


TABLES: dict[str, tuple[dict[str, Any], Columns, str]] = {
    "no such column": (
        {"image": [png(0)], "label": ["a"]},
        Columns(label="lable"),
        r"no column 'lable' for --label-column \(columns: image, label\)\. Did you mean 'label'\?",
    ),
    "no image": ({"text": ["a"], "label": ["a"]}, Columns(), r"no image column found .*--image-column"),
    "no label": ({"image": [png(0)], "caption": ["a"]}, Columns(), r"no label column found .*--label-column"),
    "two images": ({"left": [png(0)], "right": [png(0)], "label": ["a"]}, Columns(), r"several image columns"),
    "not images": ({"image": [png(0)], "label": ["a"]}, Columns(image="label"), r"'label' holds string, not images"),
    "several labels an image": (
        {"image": [png(0)], "label": [["a", "b"]]},
        Columns(label="label"),
        r"'label' holds list<.*one number or one text",
    ),
    "numbers": (
        {"image": [png(0)] * 2, "label": [1, 0]},
        Columns(),
        r"numbers 0 to 1 without names.*--classes, one per line",
    ),
    "perhaps ids": ({"image": [png(0)], "label": [4]}, Columns(), r"numbers 0 to 4 .*if they are ids, name the column"),
    "ids": (
        {"image": [png(0)] * 2, "label": [0, 10**9]},
        Columns(),
        r"a label is 1000000000, but there are 2 images; are the labels ids\? Name the column of the labels with "
        "--label-column",
    ),
    "decimal labels": (
        {"image": [png(0)], "label": [1.5]},
        Columns(),
        r"'label' holds double; .*name another with --label-column",
    ),
    "null labels": ({"image": [png(0)], "label": pa.nulls(1)}, Columns(), r"'label' holds null; a label is one"),
    "unlabelled": ({"image": [png(0)] * 2, "label": [-1, -1]}, Columns(), r"no image has a label; give a labelled"),
    "half labelled": ({"image": [png(0)] * 2, "label": ["a", None]}, Columns(), r"1 of 2 images have no label"),
    "empty": (
        {"image": pa.array([], pa.binary()), "label": pa.array([], pa.string())},
        Columns(),
        r"holds no images",
    ),
}


@pytest.mark.parametrize("how", TABLES)
def test_tables_that_cannot_be_used(tmp_path: Path, how: str) -> None:
    columns, asked, message = TABLES[how]
    path = save_plain_parquet(tmp_path / "x.parquet", columns)
    with pytest.raises(DataError, match=f"^{re.escape(str(path))}: .*{message}"):
        load_images(str(path), columns=asked)


def test_several_class_labels_and_a_label_beyond_the_names(tmp_path: Path) -> None:
    from datasets import ClassLabel, Features, Image

    def save(**labels: int) -> str:
        import datasets

        kinds = {name: ClassLabel(names=["a", "b"]) for name in labels}
        columns = {"image": [{"bytes": png(0), "path": None}], **{name: [value] for name, value in labels.items()}}
        path = tmp_path / "-".join(labels)
        data = datasets.Dataset.from_dict(columns, features=Features({"image": Image(), **kinds}))
        data.to_parquet(path.with_suffix(".parquet"))
        return str(path.with_suffix(".parquet"))

    with pytest.raises(DataError, match=r"several label columns \(fine, coarse\); name the one you mean"):
        load_images(save(fine=0, coarse=1))
    assert load_images(save(coarse=0, label=1)).labels == (1,)


def test_files_that_do_not_belong_together(tmp_path: Path) -> None:
    save_hub_parquet(tmp_path / "a.parquet", [0])
    save_plain_parquet(tmp_path / "b.parquet", {"image": [png(0)], "label": ["a"]})
    with pytest.raises(DataError, match=r"b\.parquet: its columns or class names differ from those of .*a\.parquet"):
        load_images(str(tmp_path))
    (tmp_path / "s").mkdir()
    for split in ("train", "test"):
        save_hub_parquet(tmp_path / f"s/{split}-00000-of-00001.parquet", [0])
    with pytest.raises(DataError, match=r"holds several splits \(test, train\); write .*/s:test"):
        load_images(str(tmp_path / "s"))
    assert len(load_images(f"{tmp_path / 's'}:train")) == 1
    with pytest.raises(DataError, match=r"no split 'trian' \(splits: test, train\)\. Did you mean 'train'"):
        load_images(f"{tmp_path / 's'}:trian")


@pytest.mark.parametrize("cut", [0, 3, 200, -20])
def test_a_damaged_parquet_file(tmp_path: Path, cut: int) -> None:
    path = save_hub_parquet(tmp_path / "x.parquet", [0, 1])
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match=r"x\.parquet: cannot be read as Parquet \(.*\); is it whole\?"):
        load_images(str(path))


def test_an_unreadable_image_is_named_by_its_row(tmp_path: Path) -> None:
    path = save_plain_parquet(tmp_path / "x.parquet", {"image": [png(0), b"x", None], "label": ["a", "b", "a"]})
    found = load_images(str(path))
    with pytest.raises(DataError, match=r"x\.parquet, row 2: holds no image"):
        found.image(2)
    with pytest.raises(DataError, match=r"x\.parquet, row 2: holds no image"):
        found.sample(3, seed=0)
    with pytest.raises(DataError, match=r"x\.parquet, row 1: cannot be read as an image"):
        found.image(1)
    path = save_plain_parquet(tmp_path / "x.parquet", {"image": [png(0), b"x"], "label": ["a", "b"]})
    found = load_images(str(path))
    with pytest.raises(DataError, match=r"x\.parquet, row 1: cannot be read as an image"):
        found.sample(2, seed=0).extent(found.sample(2, seed=0).store.names.index(f"{path}, row 1"))  # type: ignore[attr-defined]


# --- what a sample reads ---


def test_a_sample_reads_few_row_groups_and_each_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.random.default_rng(0).integers(0, 3, 400).tolist()
    path = save_hub_parquet(tmp_path / "x.parquet", labels, group=10)
    opened: list[int] = []
    original = parquet._images

    def counting(files: Any, group: Any) -> Any:
        opened.append(group.number)
        return original(files, group)

    monkeypatch.setattr(parquet, "_images", counting)
    found = load_images(str(path))
    assert not opened
    sample = found.sample(24, seed=1)
    assert len(opened) == len(set(opened)) <= 6
    assert Counter(sample.labels) == {0: 8, 1: 8, 2: 8}
    for place, name in enumerate(sample.store.names):  # type: ignore[attr-defined]
        row = int(name.rpartition(" ")[2])
        assert sample.labels[place] == labels[row]
        assert sample.image(place).tobytes() == pixels(png(row))
    assert sample.labels == found.sample(24, seed=1).labels


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_candidates_allow_the_same_balance_as_everything(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=8))
    blocks = tuple(number for number, size in enumerate(sizes) for _ in range(size))
    labels = tuple(data.draw(st.lists(st.integers(0, 3), min_size=len(blocks), max_size=len(blocks))))
    count, seed = data.draw(st.integers(1, 40)), data.draw(st.integers(0, 99))
    chosen = candidate_positions(labels, blocks, count, seed)
    taken = {blocks[position] for position in chosen}
    assert chosen == [position for position in range(len(labels)) if blocks[position] in taken]
    inside = balanced_sample(tuple(labels[position] for position in chosen), count, seed)
    of_all = balanced_sample(labels, count, seed)
    assert Counter(labels[chosen[position]] for position in inside) == Counter(labels[p] for p in of_all)


# --- WebDataset ---


def members(label: str, texts: list[str], *, ending: str = "png") -> dict[str, bytes]:
    named: dict[str, bytes] = {}
    for k, text in enumerate(texts):
        named |= {f"d/{k:04}.{label}": text.encode(), f"d/{k:04}.{ending}": png(k)}
    return named


@pytest.mark.parametrize(
    ("label", "texts"),
    [
        ("cls", ["1", "0", "1"]),
        ("cls", ["dog\n", "black_cat", "dog"]),
        ("txt", ["dog", "black_cat", "dog"]),
        ("json", ['{"label": "dog"}', '{"label": "black_cat", "x": [1]}', '{"label": "dog"}']),
        ("json", ['{"width": 3, "class": 1}', '{"class": 0}', '{"class": 1}']),
    ],
)
def test_a_tar_gives_labels_and_images(tmp_path: Path, label: str, texts: list[str]) -> None:
    path = save_tar(tmp_path / "x.tar", members(label, texts))
    (tmp_path / "names.txt").write_text("black cat\ndog\n")
    numbered = any(character in texts[0] for character in "1")
    found = load_images(str(path), tmp_path / "names.txt" if numbered else None)
    assert (found.labels, found.class_names) == ((1, 0, 1), ("black cat", "dog"))
    assert_images(found, [0, 1, 2])
    assert found.store.name(1) == f"{path}, d/0001.png"


def test_a_range_and_a_folder_of_tars_are_one_source(tmp_path: Path) -> None:
    for part in range(9, 12):
        save_tar(tmp_path / f"t/{part:02}.tar", {"a.jpg": png(part), "a.cls": b"x", "a.txt": b"ignored"})
    for source in (tmp_path / "t", tmp_path / "t/{09..11}.tar"):
        assert_images(load_images(str(source)), [9, 10, 11])
    sample = load_images(str(tmp_path / "t")).sample(2, seed=3)
    assert len(sample) == 2
    with pytest.raises(DataError, match=r"no such file: .*t/12\.tar"):
        load_images(str(tmp_path / "t/{11..12}.tar"))


def test_named_endings_and_keys_win(tmp_path: Path) -> None:
    sample = {"k.left.png": png(0), "k.right.png": png(1), "k.cls": b"a", "k.json": b'{"label": "b", "kind": "c"}'}
    path = save_tar(tmp_path / "x.tar", sample)
    found = load_images(str(path), columns=Columns("right.png", "json.kind"))
    assert found.class_names == ("c",)
    assert_images(found, [1])


TARS: dict[str, tuple[dict[str, bytes], Columns, str]] = {
    "no image": ({"k.cls": b"a"}, Columns(), r"x\.tar, k: has no image beside it \(endings: cls\)"),
    "two images": ({"k.a.png": b"", "k.b.png": b"", "k.cls": b"a"}, Columns(), r"several images \(a\.png, b\.png\)"),
    "no label": ({"k.png": b""}, Columns(), r"x\.tar, k: has no \.cls, \.json or \.txt with a label"),
    "no such ending": ({"k.png": b"", "k.cls": b"a"}, Columns(label="clss"), r"has no \.clss for --label-column"),
    "no such image": ({"k.png": b"", "k.cls": b"a"}, Columns(image="pngg"), r"no file ending in \.pngg .*'png'\?"),
    "no such key": ({"k.png": b"", "k.json": b"{}"}, Columns(label="json.kind"), r"no \.json\.kind for --label-"),
    "json": ({"k.png": b"", "k.json": b"{"}, Columns(), r"k\.json: cannot be read as JSON"),
    "numbers": ({"k.png": b"", "k.cls": b"3"}, Columns(), r"numbers 0 to 3 without names.*--classes"),
    "ids": ({"k.png": b"", "k.cls": b"123456789"}, Columns(), r"a label is 123456789, .* are the labels ids"),
    "empty": ({}, Columns(), r"holds no images"),
}


@pytest.mark.parametrize("how", TARS)
def test_tars_that_cannot_be_used(tmp_path: Path, how: str) -> None:
    named, asked, message = TARS[how]
    with pytest.raises(DataError, match=message):
        load_images(str(save_tar(tmp_path / "x.tar", named)), columns=asked)


@pytest.mark.parametrize("cut", [0, 700, 1500])
def test_a_damaged_tar(tmp_path: Path, cut: int) -> None:
    path = save_tar(tmp_path / "x.tar", members("cls", ["a", "b"]))
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match=r"x\.tar: cannot be read as a tar archive \(.*\); is it whole\?"):
        load_images(str(path)).image(0)


def test_many_labels_are_asked_about(tmp_path: Path) -> None:
    path = save_tar(tmp_path / "x.tar", {f"{k}.{e}": b"%d!" % k for k in range(120) for e in ("png", "txt")})
    assert "are the labels captions?" in load_images(str(path)).notes[0]


# --- from the command line ---


def test_a_merge_measures_the_same_on_a_folder_a_table_and_a_tar(pair: Pair, tmp_path: Path) -> None:
    for name in ("bird", "dog"):
        (tmp_path / "f" / name).mkdir(parents=True)
    labels = [k % 2 for k in range(12)]
    named: dict[str, bytes] = {}
    for k, label in enumerate(labels):
        name = ("bird", "dog")[label]
        (tmp_path / "f" / name / f"{k:02}.png").write_bytes(png(k))
        named |= {f"{k:02}.png": png(k), f"{k:02}.txt": name.encode()}
    table = {"image": [png(k) for k in range(12)], "label": [("bird", "dog")[label] for label in labels]}
    sources = [tmp_path / "f", save_plain_parquet(tmp_path / "x.parquet", table), save_tar(tmp_path / "x.tar", named)]
    losses = []
    for source in sources:
        ended = clipmerge(
            *("merge", *pair, "-r", "straggler-outlier", "--data", source, "--dry-run", "--format", "json"),
            *("--set", "measure.nodes=2", "--images", "12", "--batch-size", "12", "--no-verdict"),
        )
        assert ended.code == 0, ended.err
        losses.append(ended.json["path"]["losses"])
        assert ended.json["calibration"]["images"] == 12
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert losses[0] == pytest.approx(losses[2], abs=1e-5)


def test_evaluate_takes_named_columns_and_says_what_it_read(pair: Pair, tmp_path: Path) -> None:
    columns = {"image": [png(k) for k in range(6)], "kind": list(NAMES) * 2}
    path = save_plain_parquet(tmp_path / "x.parquet", columns)
    told = clipmerge("evaluate", pair[0], "--data", f"t={path}", "--format", "json", "--label-column", "kind")
    assert told.code == 0, told.err
    assert told.json["images"] == {"t": 6}
    assert told.json["sources"] == {"t": {"source": str(path), "revision": None}}
    assert "no label column" in refused(clipmerge("evaluate", pair[0], "--data", path))


def test_images_shared_between_a_table_and_a_folder_are_seen(tmp_path: Path) -> None:
    table = load_images(str(save_hub_parquet(tmp_path / "x.parquet", [0, 1, 2])))
    tar = load_images(
        str(save_tar(tmp_path / "x.tar", {"a.png": png(1), "a.txt": b"a", "b.png": png(9), "b.txt": b"b"}))
    )
    (tmp_path / "f/a").mkdir(parents=True)
    Image.open(io.BytesIO(png(2))).save(tmp_path / "f/a/saved-anew.bmp")
    folder = load_images(str(tmp_path / "f"))
    shared = find_overlap(Fingerprints(table), Fingerprints(tar))
    assert shared is not None
    assert (shared.count, shared.first) == (1, f"{tmp_path}/x.parquet, row 1 has the pixels of {tmp_path}/x.tar, a.png")
    assert find_overlap(Fingerprints(folder), Fingerprints(tar)) is None
    from clipmerge.errors import UsageError

    with pytest.raises(UsageError, match=r"--ood far: 1 image is also in the calibration source .*saved-anew"):
        check_overlap(table, {}, {"far": folder})
