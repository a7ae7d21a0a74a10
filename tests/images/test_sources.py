"""Sources on this machine: images found, named and sampled, from folders, Parquet and WebDataset
files."""

import io
import json
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from clipmerge.errors import DataError, NoLabelsError, UsageError
from clipmerge.images import Columns, parquet
from clipmerge.images.classes import plain_names, read_class_names
from clipmerge.images.dataset import load_images
from clipmerge.images.local_files import expand_files, expand_ranges, local_inputs
from clipmerge.images.prompts import check_templates, class_prompts
from clipmerge.images.sampling import balanced_sample, candidate_positions, holds_a_balanced_sample
from clipmerge.report.text import texts_of
from tests.support.command import clipmerge, done, refused
from tests.support.image_files import (
    NAMES,
    assert_images,
    decoded,
    png,
    save_hub_parquet,
    save_plain_parquet,
    save_tar,
)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.txt", "red\n\n green \nblue\n"),
        ("x.json", '["red", "green", "blue"]'),
        ("x.json", '{"n02": "green", "n01": "red", "n03": "blue", "n04": "black"}'),
    ],
)
def test_class_names_in_every_form(tmp_path: Path, name: str, text: str) -> None:
    for encoding in ("utf-8", "utf-8-sig"):  # the latter as editors on Windows save it
        (tmp_path / name).write_text(text, encoding=encoding)
        assert read_class_names(tmp_path / name, ["n01", "n02", "n03"]) == ("red", "green", "blue")


def test_prompts_are_class_by_class() -> None:
    assert class_prompts(("a", "b"), ("x {}", "{} {}")) == ["x a", "a a", "x b", "b b"]
    assert check_templates([]) == ()
    with pytest.raises(UsageError, match=r"`template` 'x': has no \{\}"):
        check_templates(["x {}", "x"])
    with pytest.raises(UsageError, match="is not UTF-8"):
        check_templates(["x {} \udcff"])


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 80), st.integers(0, 2**63))
def test_a_sample_is_balanced_seeded_and_without_repetition(
    data: st.DataObject, count: int, seed: int
) -> None:
    """Candidates from a few blocks allow the same balance as everything."""
    sizes = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=10))
    blocks = tuple(number for number, size in enumerate(sizes) for _ in range(size))
    labels = tuple(
        data.draw(st.lists(st.integers(0, 4), min_size=len(blocks), max_size=len(blocks)))
    )
    picked = balanced_sample(labels, count, seed)
    assert picked == balanced_sample(labels, count, seed)
    assert len(picked) == len(set(picked)) == min(count, len(labels))
    taken, there = Counter(labels[at] for at in picked), Counter(labels)
    assert all(taken[label] >= min(there[label], max(taken.values()) - 1) for label in there)
    chosen = candidate_positions(labels, blocks, count, seed)
    opened = {blocks[position] for position in chosen}
    assert chosen == [position for position in range(len(labels)) if blocks[position] in opened]
    inside = balanced_sample(tuple(labels[position] for position in chosen), count, seed)
    assert Counter(labels[chosen[position]] for position in inside) == taken
    assert holds_a_balanced_sample([0, 1, 2, 2], 3, classes=1000)
    assert not holds_a_balanced_sample([0, 0, 0, 0], 4, classes=2)


def test_several_ranges_are_every_combination_and_an_input_may_have_braces_in_its_name(
    tmp_path: Path,
) -> None:
    assert expand_ranges("{1..2}/{09..10}.tar") == ["1/09.tar", "1/10.tar", "2/09.tar", "2/10.tar"]
    assert len(expand_ranges("{1..100000}.tar")) == 100_000
    named = tmp_path / "model-{3..1}"
    named.mkdir()
    (tmp_path / "2.tar").touch()
    assert local_inputs(named, None, tmp_path / "{1..3}.tar") == [named, tmp_path / "2.tar"]
    (named / "x{1..2}.tar").touch()
    assert expand_files(str(named / "x{1..2}.tar"), ".tar") == [str(named / "x{1..2}.tar")]


def save_folder(folder: Path, *files: str) -> Path:
    """A folder with an image of each name; JPEG is called .jfif."""
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        kind = "JPEG" if file.endswith("jfif") else None
        Image.new("RGB", (4, 4), (200, 30, 30)).save(folder / file, kind)
    return folder


def test_files_that_are_left_out_are_counted_and_hidden_ones_are_not(tmp_path: Path) -> None:
    endings = ("jfif", "avif", "ppm", "png")
    save_folder(
        tmp_path, *(f"{name}/1.{ending}" for name in ("black_cat", "dog") for ending in endings)
    )
    found = load_images(str(tmp_path))
    assert (len(found), found.notes, found.class_names) == (8, (), ("black cat", "dog"))
    assert all(
        np.abs(np.asarray(found.image(at), int) - (200, 30, 30)).max() < 12 for at in range(8)
    )
    save_folder(tmp_path, ".cache/1.png", "dog/._1.png")
    (tmp_path / "dog" / "more" / "deep").mkdir(parents=True)
    for file in (
        "dog/1.heic",
        "dog/2.heic",
        "dog/labels.txt",
        "dog/more/2.png",
        "dog/more/deep/3.png",
        "readme.txt",
    ):
        (tmp_path / file).write_bytes(b"x")
    assert texts_of(load_images(str(tmp_path)).notes) == [
        f"{tmp_path}: left out files that are not images (2 .heic, 1 .txt) and images in folders"
        " inside class folders (2)"
    ]


def test_a_split_of_a_folder_is_read(tmp_path: Path) -> None:
    save_folder(tmp_path, *(f"train/{name}/{n}.png" for name in ("cat", "dog") for n in range(3)))
    save_folder(tmp_path, *(f"val/{name}/{n}.png" for name in ("cat", "dog") for n in range(2)))
    assert len(load_images(f"{tmp_path}:val")) == 4
    assert len(load_images(str(tmp_path / "train"))) == 6
    with pytest.raises(
        DataError, match=r"no folder 'vall' .* \(folders: train, val\)\. Did you mean 'val'\?"
    ):
        load_images(f"{tmp_path}:vall")


def test_class_folders_with_doubtful_names_are_noted(tmp_path: Path) -> None:
    folder = save_folder(tmp_path / "photos", "a b/1.png", "a_b/1.png", "bird/1.png")
    assert texts_of(load_images(str(folder)).notes) == [
        f"{folder}: gives several classes the same name 'a b'; a model always predicts the first of"
        " them"
    ]
    (tmp_path / "same.txt").write_text("crane\ncrane\nbird\n")
    (note,) = texts_of(load_images(str(folder), tmp_path / "same.txt").notes)
    assert note.startswith(f"{tmp_path / 'same.txt'}: gives several classes the same name 'crane'")
    cases = save_folder(tmp_path / "cases", "Cat/1.png", "cat/1.png", "bird/1.png")
    (note,) = texts_of(load_images(str(cases)).notes)
    assert "the same name 'Cat' or 'cat'; a model always predicts the first" in note


def test_one_class_measures_nothing_unless_others_are_named(tmp_path: Path) -> None:
    folder = save_folder(tmp_path / "photos", "bird/1.png")
    assert len(load_images(str(folder))) == 1
    with pytest.raises(DataError, match=r"photos: has one class; measuring needs at least two"):
        load_images(str(folder), whole=True)
    source = save_plain_parquet(
        tmp_path / "x.parquet", {"image": [png(0), png(1)], "label": [0, 0]}
    )
    (tmp_path / "names.txt").write_text("bird\ncat\n")
    assert load_images(str(source), tmp_path / "names.txt", whole=True).class_names == (
        "bird",
        "cat",
    )


def test_files_of_datasets_give_names_labels_and_images(tmp_path: Path) -> None:
    for part in range(3):
        save_hub_parquet(
            tmp_path / f"d/test-0000{part}-of-00003.parquet", [part, 0, 0], first=10 * part, group=2
        )
    for source in (tmp_path / "d", tmp_path / "d/test-0000{0..2}-of-00003.parquet"):
        found = load_images(str(source))
        assert (found.class_names, found.labels) == (
            ("bird", "red fox", "dog"),
            (0, 0, 0, 1, 0, 0, 2, 0, 0),
        )
        assert_images(found, [0, 1, 2, 10, 11, 12, 20, 21, 22])
        assert found.store.blocks == (0, 0, 1, 2, 2, 3, 4, 4, 5)
        assert found.store.name(5).endswith("test-00001-of-00003.parquet, row 2")
    (tmp_path / "n.json").write_text(
        json.dumps({"dog": "a hound", "bird": "a bird", "red_fox": "a fox"})
    )
    assert load_images(str(tmp_path / "d"), tmp_path / "n.json").class_names == (
        "a bird",
        "a fox",
        "a hound",
    )
    save_hub_parquet(tmp_path / "d/train-00000-of-00001.parquet", [0])
    with pytest.raises(DataError, match=r"holds several splits \(test, train\); write .*/d:test"):
        load_images(str(tmp_path / "d"))
    assert len(load_images(f"{tmp_path / 'd'}:train")) == 1
    with pytest.raises(
        DataError, match=r"no split 'trian' \(splits: test, train\)\. Did you mean 'train'"
    ):
        load_images(f"{tmp_path / 'd'}:trian")


@pytest.mark.parametrize(
    ("kind", "label"), [("bytes", "string"), ("struct", "integer"), ("bytes", "category")]
)
def test_parquet_without_the_metadata_of_datasets(tmp_path: Path, kind: str, label: str) -> None:
    contents = [png(k) for k in range(3)]
    images = (
        contents if kind == "bytes" else [{"bytes": content, "path": None} for content in contents]
    )
    labels: Any = {
        "string": ["dog", "black_cat", "dog"],
        "category": pa.array(["dog", "black_cat", "dog"]).dictionary_encode(),
        "integer": [1, 0, 1],
    }[label]
    path = save_plain_parquet(
        tmp_path / "x.parquet", {"id": [7, 8, 9], "img": images, "target": labels}
    )
    classes = tmp_path / "names.txt"
    classes.write_text("black cat\ndog\nnever seen\n")
    found = load_images(str(path), classes if label == "integer" else None)
    assert found.labels == (1, 0, 1)
    assert found.class_names[:2] == ("black cat", "dog")
    assert_images(found, [0, 1, 2])


def test_columns_are_named_or_the_usable_ones(tmp_path: Path) -> None:
    pictures = {"image": [png(0), png(1)], "thumb": [png(2), png(3)]}
    path = str(
        save_plain_parquet(
            tmp_path / "x.parquet", {**pictures, "label": ["a", "b"], "coarse": ["x", "x"]}
        )
    )
    found = load_images(path, columns=Columns("thumb", "coarse"))
    assert (found.labels, found.class_names) == ((0, 0), ("x",))
    assert_images(found, [2, 3])
    path = str(
        save_plain_parquet(
            tmp_path / "x.parquet", {**pictures, "label": [0.5, 0.1], "category": ["a", "b"]}
        )
    )
    assert load_images(path).class_names == ("a", "b")


def test_a_sample_reads_few_row_groups_and_each_once(tmp_path: Path, spied: Any) -> None:
    labels = np.random.default_rng(0).integers(0, 3, 400).tolist()
    path = save_hub_parquet(tmp_path / "x.parquet", labels, group=10)
    read = spied(parquet, "_iter_images")
    found = load_images(str(path))
    assert not read.called
    sample = found.sample(24, seed=1)
    opened = [call.args[1].number for call in read.call_args_list]
    assert len(opened) == len(set(opened)) <= 6
    assert Counter(sample.labels) == {0: 8, 1: 8, 2: 8}
    for place, name in enumerate(sample.store.names):  # type: ignore[attr-defined]
        row = int(name.rpartition(" ")[2])
        assert sample.labels[place] == labels[row]
        assert sample.image(place).tobytes() == decoded(png(row))
    assert sample.labels == found.sample(24, seed=1).labels


@pytest.mark.parametrize(
    ("label", "texts"),
    [
        ("cls", ["1", "0", "1"]),
        ("txt", ["dog\n", "black_cat", "dog"]),
        ("json", ['{"width": 3, "class": 1}', '{"class": 0}', '{"class": 1}']),
    ],
)
def test_a_tar_gives_labels_and_images(tmp_path: Path, label: str, texts: list[str]) -> None:
    named = {f"d/{k:04}.{label}": text.encode() for k, text in enumerate(texts)}
    named |= {f"d/{k:04}.png": png(k) for k in range(3)}
    path = save_tar(tmp_path / "x.tar", dict(sorted(named.items())))
    (tmp_path / "names.txt").write_text("black cat\ndog\n")
    found = load_images(str(path), tmp_path / "names.txt" if "1" in texts[0] else None)
    assert (found.labels, found.class_names) == ((1, 0, 1), ("black cat", "dog"))
    assert_images(found, [0, 1, 2])
    assert found.store.name(1) == f"{path}, d/0001.png"


def test_class_folders_of_a_tar_are_its_labels(tmp_path: Path) -> None:
    """As in a folder, unless there are labels, or a single folder."""
    members = {f"./val/{name}/{n}.png": png(n) for n, name in enumerate(["cat", "big_dog", "cat"])}
    path = save_tar(tmp_path / "x.tar", members)
    images = load_images(str(path))
    assert images.class_names == ("big dog", "cat")
    assert images.labels == (1, 0, 1)
    assert np.array_equal(images.image(2), Image.open(io.BytesIO(png(2))).convert("RGB"))
    labels = {name.replace(".png", ".cls"): b"%d" % n for n, name in enumerate(members)}
    labelled = save_tar(tmp_path / "y.tar", dict(sorted({**members, **labels}.items())))
    with pytest.raises(DataError, match="the numbers 0 to 2 without names"):
        load_images(str(labelled))
    one = save_tar(tmp_path / "z.tar", {f"images/{n}.png": png(n) for n in range(3)})
    with pytest.raises(NoLabelsError, match="and is not in one of several class folders"):
        load_images(str(one))


@pytest.mark.parametrize(
    ("lines", "names"),
    [
        (["cat,", "big dog,"], ["cat", "big dog"]),
        (['"cat",', '"dog"'], ["cat", "dog"]),
        (["0 cat", "1 dog"], ["cat", "dog"]),
        (["1. cat", "2. dog"], ["cat", "dog"]),
        (["class\tname", "0\tcat", "1\tdog"], ["cat", "dog"]),
        (["tench, Tinca tinca", "goldfish"], None),
        (["7 up", "8 ball"], None),
        (["1 person", "2 persons", "3 persons"], None),
        (["zero", "1 cat", "2 dog"], None),
        (["'s-Hertogenbosch", "o'clock'"], None),
    ],
)
def test_names_are_read_from_lists_as_people_write_them(
    lines: list[str], names: list[str] | None
) -> None:
    assert plain_names(lines) == (names or lines)


SYNSETS = (
    "n01440764 tench, Tinca tinca\n"
    "n01484850 great white shark, white shark, man-eater\n"
    "n02012849 crane\n"
)
CLASS_INDEX = (
    '{"0": ["n01440764", "tench"], "1": ["n01484850", "great_white_shark"],'
    ' "2": ["n02012849", "crane"]}'
)


@pytest.mark.parametrize(("file", "text"), [("map.txt", SYNSETS), ("index.json", CLASS_INDEX)])
def test_imagenets_lists_name_folders_of_wordnet_ids(tmp_path: Path, file: str, text: str) -> None:
    """Of the folders that there are; labels that are numbers take the names in order."""
    (tmp_path / file).write_text(text)
    for name in ("n02012849", "n01484850"):
        (tmp_path / "val" / name).mkdir(parents=True)
        (tmp_path / "val" / name / "0.png").write_bytes(png(0))
    unnamed = load_images(str(tmp_path / "val"))
    assert unnamed.class_names == ("great white shark", "crane bird")
    assert texts_of(unnamed.notes)[0].endswith(
        "'n01484850'; prompts have ImageNet's names, 'great white shark'"
    )
    images = load_images(str(tmp_path / "val"), tmp_path / file)
    assert images.class_names == ("great white shark", "crane")
    assert images.labels == (0, 1)
    assert read_class_names(tmp_path / file) == ("tench", "great white shark", "crane")
    numbers = {
        f"{k}.{end}": b for k in range(3) for end, b in (("cls", b"%d" % k), ("png", png(k)))
    }
    tar = save_tar(tmp_path / "x.tar", dict(sorted(numbers.items())))
    assert load_images(str(tar), tmp_path / file).class_names == read_class_names(tmp_path / file)
    (tmp_path / "val" / "n09999999").mkdir()
    (tmp_path / "val" / "n09999999" / "0.png").write_bytes(png(0))
    with pytest.raises(DataError, match="has no name for 1 class: n09999999"):
        load_images(str(tmp_path / "val"), tmp_path / file)
    assert load_images(str(tmp_path / "val")).class_names[0] == "n01484850"


def test_tars_of_one_class_folder_each_are_one_source(tmp_path: Path) -> None:
    """As a folder of classes is when it is packed in order."""
    for part, name in enumerate(("cat", "dog")):
        save_tar(tmp_path / f"t/{part}.tar", {f"{name}/{k}.png": png(2 * part + k) for k in (0, 1)})
    found = load_images(str(tmp_path / "t"))
    assert (found.class_names, found.labels) == (("cat", "dog"), (0, 0, 1, 1))
    # neither alone nor beside an archive with labels does one folder name a class
    save_tar(tmp_path / "t/1.tar", {"9.png": png(9), "9.cls": b"dog"})
    for _ in range(2):
        with pytest.raises(NoLabelsError, match=r"0\.tar, cat/0: has no \.cls"):
            load_images(str(tmp_path / "t"))
        (tmp_path / "t/1.tar").unlink(missing_ok=True)


def test_a_range_and_a_folder_of_tars_are_one_source(tmp_path: Path) -> None:
    for part in range(9, 12):
        save_tar(
            tmp_path / f"t/{part:02}.tar", {"a.jpg": png(part), "a.cls": b"x", "a.txt": b"ignored"}
        )
    for source in (tmp_path / "t", tmp_path / "t/{09..11}.tar"):
        assert_images(load_images(str(source)), [9, 10, 11])
    assert len(load_images(str(tmp_path / "t")).sample(2, seed=3)) == 2
    with pytest.raises(DataError, match=r"no such file: .*t/12\.tar"):
        load_images(str(tmp_path / "t/{11..12}.tar"))


def test_named_endings_and_keys_win(tmp_path: Path) -> None:
    sample = {
        "k.left.png": png(0),
        "k.right.png": png(1),
        "k.cls": b"a",
        "k.json": b'{"label": "b", "kind": "c"}',
    }
    path = save_tar(tmp_path / "x.tar", sample)
    found = load_images(str(path), columns=Columns("right.png", "json.kind"))
    assert found.class_names == ("c",)
    assert_images(found, [1])


def test_labels_that_look_like_captions_are_noted(tmp_path: Path) -> None:
    path = save_tar(
        tmp_path / "x.tar", {f"{k}.{e}": b"%d!" % k for k in range(30) for e in ("png", "txt")}
    )
    said = "30 classes for 30 images; are the labels captions? Then give `caption_column`"
    assert f"{said} txt" in texts_of(load_images(str(path)).notes)[0]
    pairs = [(np.zeros((8, 8, 3), np.uint8), f"item {k}") for k in range(30)]
    assert said in texts_of(load_images(pairs).notes)[0]


def test_folders_and_links_in_a_tar_are_no_images_and_a_long_name_is_read(tmp_path: Path) -> None:
    """In POSIX's own format a long name stands in a header of its own before the file."""
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        for name, kind in (("c.png", tarfile.DIRTYPE), ("d.png", tarfile.SYMTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        for ending, data in (("png", png(0)), ("cls", b"cat")):
            info = tarfile.TarInfo(f"{'folder/' * 30}é.{ending}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    found = load_images(str(tmp_path / "x.tar"))
    assert found.class_names == ("cat",)
    assert_images(found, [0])


def test_evaluate_takes_named_columns_and_says_what_it_read(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    columns = {"image": [png(k) for k in range(6)], "kind": list(NAMES) * 2}
    path = save_plain_parquet(tmp_path / "x.parquet", columns)
    told = done("evaluate", pair[0], "--data", f"t={path}", "--json", "--label-column", "kind")
    assert told.json["images"] == {"t": 6}
    source = told.json["sources"]["t"]
    assert (source["source"], source["revision"]) == (str(path), None)
    assert "no label or caption column" in refused(clipmerge("evaluate", pair[0], "--data", path))
