"""Images from strangers: only named files are opened, nothing blocks, and small files stay small in memory."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipmerge.errors import DataError
from clipmerge.images import columns, parquet
from clipmerge.images.dataset import load_images
from clipmerge.images.description import SHARDS, TEMPLATES, read_description
from clipmerge.images.prompts import class_prompts
from clipmerge.images.retrieval import load_captions
from tests.support.image_files import png, save_plain_parquet, save_tar


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "private" / "holiday.png"
    path.parent.mkdir()
    path.write_bytes(png(1))
    return path


def folder_of(root: Path, **classes: bytes) -> Path:
    for name, content in classes.items():
        (root / name).mkdir(parents=True)
        (root / name / "1.png").write_bytes(content)
    return root


# --- what is not followed ---


def test_the_place_of_a_text_is_looked_up_once_however_many_lines_it_has(tmp_path: Path) -> None:
    (tmp_path / TEMPLATES).write_text("{c}\n" * 1000)
    (tmp_path / SHARDS).write_text("1\n")
    asked: list[str] = []

    def find(name: str) -> Path | None:
        asked.append(name)
        return tmp_path / name if (tmp_path / name).exists() else None

    found = read_description(find)
    assert (len(found.templates), found.shards) == (1000, 1)
    assert len(asked) == len(set(asked))


def test_a_path_beside_no_bytes_in_parquet_is_not_opened(tmp_path: Path, secret: Path) -> None:
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    rows = [{"bytes": png(0), "path": None}, {"bytes": None, "path": str(secret)}]
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"image": pa.array(rows, kind), "label": ["a", "b"]}), path)
    with pytest.raises(DataError, match=r"x.parquet, row 1: holds no image; a path beside it is not followed"):
        load_images(str(path)).image(1)


def test_a_pipe_that_parquet_names_keeps_nobody_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    rows = pa.array([{"bytes": None, "path": str(tmp_path / "pipe")}], kind)
    pq.write_table(pa.table({"image": rows, "label": ["a"]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match="holds no image"):
        load_images(str(tmp_path / "x.parquet")).sample(1, seed=0)


@pytest.mark.parametrize("place", ["an image", "a class"])
def test_a_link_out_of_a_folder_of_images_is_refused(tmp_path: Path, secret: Path, place: str) -> None:
    root = folder_of(tmp_path / "photos", cat=png(0), dog=png(2))
    if place == "an image":
        (root / "cat" / "2.png").symlink_to(secret)
    else:
        (root / "horse").symlink_to(secret.parent)
    with pytest.raises(DataError, match=r"photos: .*(2.png|horse) are links out of it; put the images themselves"):
        load_images(str(root))


def test_links_that_stay_in_the_folder_are_followed(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "photos", cat=png(0), dog=png(2))
    (root / "cat" / "2.png").symlink_to("../dog/1.png")
    assert len(load_images(str(root))) == 3
    (tmp_path / "link").symlink_to(root)  # what the user names may be a link itself
    assert len(load_images(str(tmp_path / "link"))) == 3


def test_a_link_out_of_a_folder_of_tables_is_refused(tmp_path: Path) -> None:
    save_plain_parquet(tmp_path / "elsewhere.parquet", {"image": [png(0)], "label": ["a"]})
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "x.parquet").symlink_to(tmp_path / "elsewhere.parquet")
    with pytest.raises(DataError, match=r"x.parquet are links out of it"):
        load_images(str(tmp_path / "tables"))


def test_pipes_among_images_are_no_images(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "photos", cat=png(0), dog=png(2))
    os.mkfifo(root / "cat" / "2.png")
    os.mkfifo(tmp_path / "x.tar")
    assert len(load_images(str(root))) == 2
    with pytest.raises(DataError, match="no such file"):
        load_images(str(tmp_path / "x.tar"))


def test_a_caption_that_is_a_link_out_of_its_folder_is_refused(tmp_path: Path, secret: Path) -> None:
    root = tmp_path / "photos"
    root.mkdir()
    (root / "1.png").write_bytes(png(0))
    (root / "1.txt").symlink_to(secret)
    with pytest.raises(DataError, match=r"photos: 1.txt are links out of it; put the files themselves there"):
        load_captions(str(root))


@pytest.mark.parametrize("name", ["classnames.txt", "zeroshot_classification_templates.txt", "nshards.txt"])
def test_a_text_of_a_set_that_is_a_link_out_of_its_folder_is_refused(tmp_path: Path, secret: Path, name: str) -> None:
    root = tmp_path / "set"
    root.mkdir()
    save_tar(root / "0.tar", {"a.png": png(0), "a.cls": b"0", "b.png": png(1), "b.cls": b"1"})
    (root / name).symlink_to(secret)
    with pytest.raises(DataError, match=rf"{name}: is a link out of its folder, to .*holiday.png"):
        load_images(str(root))


def test_class_names_in_a_table_come_from_no_other_file(tmp_path: Path, secret: Path) -> None:
    said = {"label": {"_type": "ClassLabel", "names_file": str(secret)}, "image": {"_type": "Image"}}
    schema = pa.schema({"image": pa.binary(), "label": pa.int64()})
    text = f'{{"info": {{"features": {str(said).replace(chr(39), chr(34))}}}}}'
    found = columns.find_columns("x", schema.with_metadata({"huggingface": text}), columns.Columns())
    assert found.names is None


# --- what stays small ---


def zeros(path: Path, size: int) -> Path:
    """One row of many zeros, which are few bytes in the file."""
    table = pa.table({"image": pa.array([bytes(size), png(0)], pa.binary()), "label": ["a", "b"]})
    pq.write_table(table, path, compression="zstd", use_dictionary=False)
    return path


def test_a_row_group_that_would_become_much_larger_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "LARGEST_HELD", 100_000)
    path = zeros(tmp_path / "x.parquet", 1 << 20)
    assert path.stat().st_size < 20_000
    with pytest.raises(DataError, match=r"x.parquet: cannot be read as Parquet \(a row group would become 1 MiB"):
        load_images(str(path))
    assert load_images(str(zeros(path, 50_000))).image(1).size == (32, 32)


def test_a_footer_of_very_many_parts_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_plain_parquet(tmp_path / "x.parquet", {"image": [png(0)], "label": ["a"]})
    monkeypatch.setattr(parquet, "MOST_FOOTER_PARTS", 2)
    with pytest.raises(DataError, match=r"x.parquet: cannot be read as Parquet \(.*limit"):
        load_images(str(path))


def test_one_image_in_many_rows_is_held_once_at_most_so_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    monkeypatch.setattr(parquet, "LARGEST_HELD", 1 << 20)
    image = png(0) + bytes(100_000)
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"image": [image] * 40, "label": ["a", "b"] * 20}), path)
    found = load_images(str(path))
    assert found.image(39).size == (32, 32)
    with pytest.raises(DataError, match=r" of the file became 1 MiB of images"):
        found.sample(40, seed=0)


def test_a_column_whose_description_contradicts_itself_is_refused(tmp_path: Path) -> None:
    """Asked for such a column, pyarrow ends the process."""
    found = Path(__file__).parents[1] / "fuzz" / "corpus" / "parquet" / "0fe99ed0904c767a"
    file = Path(shutil.copy(found, tmp_path / "x.parquet"))
    with pytest.raises(DataError, match=r"x.parquet: cannot be read as Parquet \(Definition level histogram size"):
        load_images(str(file)).image(0)


def test_a_structure_in_the_place_of_bytes_is_refused(tmp_path: Path) -> None:
    kind = pa.struct({"bytes": pa.struct({"bytes": pa.binary()})})
    rows = pa.array([{"bytes": {"bytes": png(0)}}], kind)
    pq.write_table(pa.table({"image": rows, "label": ["a"]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match="no image column found"):
        load_images(str(tmp_path / "x.parquet"))


def test_labels_that_are_whole_texts_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    monkeypatch.setattr(parquet, "LARGEST_TEXT", 1000)
    path = save_plain_parquet(tmp_path / "x.parquet", {"image": [png(0)] * 2, "label": ["a" * 2000, "b"]})
    with pytest.raises(DataError, match="the labels in column 'label' are longer than class names"):
        load_images(str(path))


def tar_with(path: Path, kind: bytes, content: bytes) -> Path:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        info = tarfile.TarInfo("x")
        info.type, info.size = kind, len(content)
        archive.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_large_header_about_the_next_member_is_refused(tmp_path: Path, kind: bytes) -> None:
    path = tar_with(tmp_path / "x.tar", kind, b"1" * 2_000_000)
    with pytest.raises(DataError, match=r"x.tar: cannot be read as a tar archive \(a header is larger than 1 MiB"):
        load_images(str(path))


@pytest.mark.parametrize(
    ("label", "told"),
    [
        ({"a.cls": b"x" * (2 << 20)}, "a.cls: is larger than 1 MiB"),
        ({"a.json": b"[" * 100_000}, "a.json: cannot be read as JSON .nested too deeply"),
        ({"a.json": b'{"label": ' + b"1" * 5000 + b"}"}, "a.json: cannot be read as JSON .a number of 5000 digits"),
    ],
)
def test_labels_in_a_tar_within_limits(tmp_path: Path, label: dict[str, bytes], told: str) -> None:
    path = save_tar(tmp_path / "x.tar", {"a.png": png(0), **label})
    with pytest.raises(DataError, match=told):
        load_images(str(path))


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clipmerge.images import decoding

    root = folder_of(tmp_path / "photos", cat=png(0), dog=png(2))
    monkeypatch.setattr(decoding, "MOST_PIXELS", 1000)
    found: Any = load_images(str(root))
    for ask in (found.image, found.extent):
        with pytest.raises(DataError, match=r"1.png: cannot be read as an image \(32 x 32 pixels, more than 1000\)"):
            ask(0)
    monkeypatch.setattr(decoding, "LARGEST_IMAGE", 10)
    with pytest.raises(DataError, match=r"1.png: cannot be read as an image \(larger than"):
        found.image(0)


@pytest.mark.parametrize("kind", ["folder", "parquet", "tar"])
def test_more_images_than_any_source_has_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    from clipmerge.images import folder, webdataset

    if kind == "folder":
        source = folder_of(tmp_path / "photos", cat=png(0), dog=png(1), fox=png(2))
    elif kind == "parquet":
        source = save_plain_parquet(tmp_path / "x.parquet", {"image": [png(0)] * 3, "label": ["a", "b", "a"]})
    else:
        members = {f"{number}.{ending}": data for number in "123" for ending, data in (("png", png(0)), ("cls", b"a"))}
        source = save_tar(tmp_path / "x.tar", members)
    assert len(load_images(str(source))) == 3
    for module in (folder, parquet, webdataset):
        monkeypatch.setattr(module, "MOST_IMAGES", 2)
    with pytest.raises(DataError, match=r"has (3 images, )?more than 2( images)?"):
        load_images(str(source))


@pytest.mark.parametrize(
    ("names", "templates", "told"),
    [
        (("a" * 300, "b"), ("{}" * 100,), "the prompt of 'a{40}' in '{}{}.*' is longer than 2000 characters"),
        (("a",) * 3000, ("{}.",) * 1000, "3000 classes in 1000 templates make more than 2000000 prompts"),
    ],
)
def test_prompts_are_bounded_before_they_are_written(
    names: tuple[str, ...], templates: tuple[str, ...], told: str
) -> None:
    with pytest.raises(DataError, match=told):
        class_prompts(names, templates)


def test_folders_and_links_in_a_tar_are_no_images(tmp_path: Path) -> None:
    tar = save_tar(tmp_path / "x.tar", {"a.png": png(0), "a.cls": b"0", "b.png": png(1), "b.cls": b"1"})
    with tarfile.open(tar, "a") as archive:
        for name, kind in (("c.png", tarfile.DIRTYPE), ("d.png", tarfile.SYMTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    classes = tmp_path / "classes.txt"
    classes.write_text("cat\ndog\n")
    assert load_images(str(tar), classes).labels == (0, 1)


@pytest.mark.parametrize("label", [b"[3]", b'"cat"', b'{"label": true}'])
def test_a_label_in_json_is_a_number_or_a_text_under_a_name(tmp_path: Path, label: bytes) -> None:
    tar = save_tar(tmp_path / "x.tar", {"a.png": png(0), "a.json": label})
    with pytest.raises(DataError, match=r"has no \.cls, \.json or \.txt with a label"):
        load_images(str(tar))
