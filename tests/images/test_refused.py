"""Sources that are refused in one line: faults, and what a stranger's files must not do.

Only files inside a source are opened, nothing blocks, and small files stay small in memory.
"""

import io
import os
import re
import tarfile
from collections.abc import Callable
from operator import methodcaller
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clipmerge.errors import DataError
from clipmerge.files.reading import Unreadable
from clipmerge.images import (
    Columns,
    columns,
    decoding,
    folder,
    hub_splits,
    parquet,
    store,
    webdataset,
)
from clipmerge.images.dataset import load_images, load_unlabelled, open_images
from clipmerge.images.hub_splits import front_matter
from clipmerge.images.prompts import class_prompts
from tests.support.command import one_line
from tests.support.image_files import png, save_hub_parquet, save_plain_parquet, save_tar

P, Q, R = png(0), png(1), png(2)
Make = Callable[[Path], Path]
Change = Callable[[Path], object]
MODULES = (decoding, parquet, store, webdataset)


def parquet_of(**values: Any) -> Make:
    return lambda at: save_plain_parquet(at / "x.parquet", values)


def rows(*images: dict[str, Any], bytes_: Any = None) -> Make:
    kind = pa.struct({"bytes": bytes_ or pa.binary(), "path": pa.string()})
    return parquet_of(image=pa.array(images, kind), label=["a", "b"][: len(images)])


def tar_of(**members: bytes) -> Make:
    """Members by their names, in which ``__`` stands for the dot."""
    return lambda at: save_tar(
        at / "x.tar", {name.replace("__", "."): data for name, data in members.items()}
    )


def empty_retrieval_tar(at: Path) -> Path:
    (at / "dataset_type.txt").write_text("retrieval")
    return save_tar(at / "x.tar", {})


def captions_of(source: str, columns: object) -> object:
    return open_images(source)


def photos(change: Change = lambda _: None, below: str = ".") -> Make:
    """A folder with three images in two classes, changed; and the part of it that is given."""

    def make(at: Path) -> Path:
        for name, content in (("cat/0.png", P), ("cat/1.png", Q), ("dog/2.png", R)):
            (at / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
            (at / "photos" / name).write_bytes(content)
        change(at / "photos")
        return (at / "photos" / below).resolve()

    return make


def captioned(change: Change) -> Make:
    def make(at: Path) -> Path:
        (at / "x").mkdir()
        for name in "ab":
            (at / "x" / f"{name}.png").write_bytes(P)
            (at / "x" / f"{name}.txt").write_text(f"a {name}\n")
        change(at / "x")
        return at / "x"

    return make


def write(name: str, content: bytes) -> Change:
    def apply(root: Path) -> None:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(content)

    return apply


def link(name: str) -> Change:
    """Replace a file by a link to an image outside."""

    def apply(root: Path) -> None:
        secret = root.parent / "private" / "holiday.png"
        secret.parent.mkdir()
        secret.write_bytes(Q)
        (root / name).unlink(missing_ok=True)
        (root / name).symlink_to(secret)

    return apply


def pipe(at: Path) -> Path:
    os.mkfifo(at / "x.tar")
    return at / "x.tar"


def zeros(at: Path) -> Path:
    """One row of many zeros, which are few bytes in the file."""
    image = pa.array([bytes(1 << 20), P], pa.binary())
    path = at / "x.parquet"
    pq.write_table(
        pa.table({"image": image, "label": ["a", "b"]}),
        path,
        compression="zstd",
        use_dictionary=False,
    )
    assert path.stat().st_size < 20_000
    return path


def long_header(at: Path) -> Path:
    with tarfile.open(at / "x.tar", "w", format=tarfile.USTAR_FORMAT) as archive:
        info = tarfile.TarInfo("x")
        info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2_000_000
        archive.addfile(info, io.BytesIO(b"1" * 2_000_000))
    return at / "x.tar"


def cut(make: Make, size: int) -> Make:
    def shortened(at: Path) -> Path:
        path = make(at)
        path.write_bytes(path.read_bytes()[:size])
        return path

    return shortened


def shards_with_linked_names(at: Path) -> Path:
    save_tar(at / "set" / "0.tar", {"a.png": P, "a.cls": b"0", "b.png": Q, "b.cls": b"1"})
    link("classnames.txt")(at / "set")
    return at / "set"


def linked_table(at: Path) -> Path:
    save_plain_parquet(at / "elsewhere.parquet", {"image": [P], "label": ["a"]})
    (at / "tables").mkdir()
    (at / "tables" / "x.parquet").symlink_to(at / "elsewhere.parquet")
    return at / "tables"


def two_kinds_of_tables(at: Path) -> Path:
    save_hub_parquet(at / "both" / "a.parquet", [0])
    save_plain_parquet(at / "both" / "b.parquet", {"image": [P], "label": ["a"]})
    return at / "both"


first, second = (methodcaller("image", at) for at in (0, 1))


class Case(NamedTuple):
    """A source that is refused, the message, and what else is asked for, read, or limited."""

    make: Make
    told: str
    columns: Columns = Columns()
    read: Callable[[Any], object] = len
    limits: dict[str, int] = {}  # noqa: RUF012
    load: Callable[..., Any] = load_images


NOT_AN_IMAGE = r"cannot be read as an image \(.*\); repair or remove it, or leave"
ENTRIES = {"a__cls": b"a", "a__png": P, "b__cls": b"b", "b__png": Q, "c__cls": b"a", "c__png": R}
CASES = {
    # columns of a table
    "no such column": Case(
        parquet_of(image=[P], label=["a"]),
        r"no column 'lable' for `label_column` \(columns: image, label\)\. Did you mean 'label'\?",
        Columns(label="lable"),
    ),
    "no image": Case(parquet_of(text=["a"], label=["a"]), "no image column found .*`image_column`"),
    "two images": Case(parquet_of(left=[P], right=[P], label=["a"]), "several image columns"),
    "not images": Case(
        parquet_of(image=[P], label=["a"]),
        "'label' holds string, not images",
        Columns(image="label"),
    ),
    "numbers": Case(
        parquet_of(image=[P, Q], label=[1, 0]),
        "numbers 0 to 1 without names.*`classes`, one per line",
    ),
    "perhaps ids": Case(
        parquet_of(image=[P], label=[4]), "numbers 0 to 4 .*if they are ids, name the column"
    ),
    "ids": Case(
        parquet_of(image=[P, Q], label=[0, 10**9]),
        "a label is 1000000000, but there are 2 images; are the labels ids.*`label_column`",
    ),
    "decimal labels": Case(
        parquet_of(image=[P], label=[1.5]),
        "'label' holds double; .*name another with `label_column`",
    ),
    "half labelled": Case(
        parquet_of(image=[P, Q], label=["a", None]), "1 of 2 images has no label"
    ),
    "empty table": Case(
        parquet_of(image=pa.array([], pa.binary()), label=pa.array([], pa.string())),
        "holds no images",
    ),
    "tables of two kinds": Case(
        two_kinds_of_tables, r"b\.parquet: its columns or class names differ from those of .*"
    ),
    # members of an archive
    "no image in a tar": Case(
        tar_of(k__cls=b"a"), r"x\.tar, k: has no image beside it \(endings: cls\)"
    ),
    "two images in a tar": Case(
        tar_of(k__a__png=b"", k__b__png=b"", k__cls=b"a"), r"several images \(a\.png, b\.png\)"
    ),
    "no label in a tar": Case(
        tar_of(k__png=b"", k__json=b"[3]"), r"x\.tar, k: has no \.cls, \.json or \.txt with a"
    ),
    "no such ending": Case(
        tar_of(k__png=b"", k__cls=b"a"), "has no .clss for `label_column`", Columns(label="clss")
    ),
    "no such image": Case(
        tar_of(k__png=b"", k__cls=b"a"),
        r"no file ending in \.pngg .*'png'\?",
        Columns(image="pngg"),
    ),
    "no JSON": Case(tar_of(k__png=b"", k__json=b"{"), r"k\.json: cannot be read as JSON"),
    # folders
    "empty class": Case(
        photos(lambda f: (f / "empty").mkdir()),
        "empty: this class folder holds no images; add some",
    ),
    "too high": Case(
        photos(below=".."),
        r"photos: is not a class folder: it holds cat, dog; give the folder right",
    ),
    "tables in a folder": Case(
        photos(write("data/test.parquet", P)),
        r"data: is not a class folder: it holds test\.parquet; .* such as .*photos/data$",
    ),
    "saved to disk": Case(
        photos(write("state.json", b"{}")), r"save_to_disk; write .*to_parquet\(FILE\)$"
    ),
    "too low": Case(photos(below="cat"), "cat: has no subfolders; expected one per class"),
    "not there": Case(photos(below="nothing"), "nothing: no such folder; give a folder"),
    "a table": Case(
        photos(write("x.xls", b"cat"), below="x.xls"), r"x\.xls: is not a kind of file that is read"
    ),
    # damage
    "truncated": Case(photos(write("cat/0.png", P[:200])), rf"0\.png: {NOT_AN_IMAGE}", read=first),
    "a damaged row": Case(
        parquet_of(image=[P, b"x"], label=["a", "b"]),
        r"x\.parquet, row 1: cannot be read",
        read=second,
    ),
    "a cut table": Case(
        cut(parquet_of(image=[P], label=["a"]), -20),
        r"cannot be read as Parquet \(.*\); is it whole\?",
    ),
    **{
        f"a tar cut at {n}": Case(cut(tar_of(**ENTRIES), n), "cannot be read as a tar archive")
        for n in (700, 1500)
    },
    # what is not followed
    "a path beside no bytes": Case(
        rows({"bytes": P}, {"path": "/etc/hostname"}),
        r"row 1: cannot be read as an image \(no bytes; a path beside it is not",
        read=second,
    ),
    "a pipe": Case(pipe, "no such file"),
    "a link to an image": Case(
        photos(link("cat/2.png")), r"photos: .*2\.png are links out of it; put the files"
    ),
    "a link to a table": Case(linked_table, r"x\.parquet are links out of it"),
    "a link to names": Case(
        shards_with_linked_names, r"names\.txt: is a link out of its folder, to .*holiday\.png"
    ),
    # what stays small
    "many zeros": Case(zeros, "a row group would become 1 MiB", limits={"MAX_HELD_BYTES": 100_000}),
    "a large footer": Case(
        parquet_of(image=[P], label=["a"]), "Parquet .*limit", limits={"MAX_FOOTER_PARTS": 2}
    ),
    "one image in many rows": Case(
        parquet_of(image=[P + bytes(100_000)] * 40, label=["a", "b"] * 20),
        " of the file became 1 MiB of images",
        read=lambda found: (found.image(39), found.sample(40, seed=0)),
        limits={"MAX_HELD_BYTES": 1 << 20},
    ),
    "labels that are texts": Case(
        parquet_of(image=[P, Q], label=["a" * 2000, "b"]),
        "the texts in column 'label' are too long for labels or captions",
        limits={"MAX_TEXT_BYTES": 1000},
    ),
    "a long header": Case(long_header, "a tar archive .a header is larger than 1 MiB"),
    "a large label": Case(tar_of(a__png=P, a__cls=b"x" * (2 << 20)), "a.cls: is larger than 1 MiB"),
    "many pixels": Case(
        photos(), r"32 x 32 pixels, more than 1000", read=first, limits={"MAX_PIXELS": 1000}
    ),
    "many bytes": Case(
        photos(), r"0\.png: .*\(larger than", read=first, limits={"MAX_IMAGE_BYTES": 10}
    ),
    "many bytes in a row": Case(
        parquet_of(image=[P], label=["a"]),
        "row 0: its image is larger than 1 KiB",
        read=first,
        limits={"MAX_IMAGE_BYTES": 1024},
    ),
    "many bytes in a tar": Case(
        tar_of(**ENTRIES),
        r"a\.png: is larger than 1 KiB",
        read=first,
        limits={"MAX_IMAGE_BYTES": 1024},
    ),
    **{
        f"many images in {kind}": Case(make, "has more than 2 images", limits={"MAX_IMAGES": 2})
        for kind, make in (
            ("a folder", photos()),
            ("a table", parquet_of(image=[P, Q, R], label=["a", "b", "a"])),
            ("a tar", tar_of(**ENTRIES)),
        )
    },
    # with captions
    **{
        f"captions: {name}": Case(captioned(change), told, load=captions_of)
        for name, (change, told) in {
            "alone": (
                lambda f: (f / "a.txt").unlink(),
                r"1 image has no text with captions .a\.png",
            ),
            "empty": (
                write("a.txt", b" \n"),
                r"1 image has no caption .of 2.: .*/a\.png; write one, or leave these images out",
            ),
            "not a text": (write("a.txt", b"\xff\xfe\xff"), r"a\.txt cannot be read"),
            "out of it": (
                link("a.txt"),
                r"a\.txt are links out of it; put the files themselves there",
            ),
        }.items()
    },
    "an empty tar of captions": Case(empty_retrieval_tar, "holds no images", load=captions_of),
}


@pytest.mark.parametrize("name", CASES)
def test_a_source_is_refused_in_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[name]
    source = str(case.make(tmp_path))
    for limit, value in case.limits.items():
        for module in MODULES:
            monkeypatch.setattr(module, limit, value, raising=False)
    with one_line(DataError, f"^(?={re.escape(source)}).*{case.told}"):
        case.read(case.load(source, columns=case.columns))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (" ", "names no images; give a folder"),
        (
            "x-{0..99999999}.tar",
            r"names 100000000 files, more than 100000; give the range of those there are",
        ),
        ("x-{3..1}.tar", r"\{3\.\.1\} runs backwards; write \{1\.\.3\}"),
    ],
)
def test_a_name_of_no_source_is_an_error_of_one_line(source: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_images(source)


def test_a_class_folder_whose_name_is_not_utf8(tmp_path: Path) -> None:
    root = photos()(tmp_path)
    (root / "dog").rename(os.fsdecode(os.fsencode(root) + b"/bad\xff"))
    with pytest.raises(
        DataError,
        match=r"class 'bad\\+udcff' has a name that is not UTF-8; rename it, or pass names",
    ):
        load_images(str(root))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "names.txt",
            "bird\ncat\n",
            "has 2 class names, there are 3 classes; give one name per class",
        ),
        ("names.json", '{"bird": "a bird"}', "has no name for 2 classes: cat, dog"),
        ("names.json", "{", "cannot be read as class names"),
        (
            "names.json",
            '["a", null, "b"]',
            r"names\.json: null is not a class name; write a text for each class",
        ),
        ("names.json", r'["a", "\ud800", "b"]', "a string with half of a surrogate pair"),
    ],
)
def test_unfitting_class_names_are_errors_of_one_line(
    images: Path, tmp_path: Path, name: str, text: str, message: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        load_images(str(images), tmp_path / name)


def test_labels_beyond_the_names_given(tmp_path: Path) -> None:
    source = parquet_of(image=[P, Q], label=[0, 581_928])(tmp_path)
    (tmp_path / "n.txt").write_text("a\nb\nc\n")
    with pytest.raises(
        DataError, match=r"n\.txt: has 3 class names, there are 581929 classes; .*`label_column`"
    ):
        load_images(str(source), tmp_path / "n.txt")


@pytest.mark.parametrize(
    ("names", "templates", "told"),
    [
        (
            ("a" * 300, "b"),
            ("{}" * 100,),
            "the prompt of 'a{40}' in '{}{}.*' is longer than 2000 characters",
        ),
        (
            ("a",) * 3000,
            ("{}.",) * 1000,
            "3000 classes in 1000 templates make more than 2000000 prompts",
        ),
    ],
)
def test_prompts_are_bounded_before_writing(
    names: tuple[str, ...], templates: tuple[str, ...], told: str
) -> None:
    with pytest.raises(DataError, match=told):
        class_prompts(names, templates)


def test_links_inside_a_folder_are_followed_and_pipes_are_left_out(tmp_path: Path) -> None:
    root = photos(lambda f: (f / "cat" / "2.png").symlink_to("../dog/2.png"))(tmp_path)
    os.mkfifo(root / "cat" / "3.png")
    assert len(load_images(str(root))) == 4
    (tmp_path / "link").symlink_to(root)  # what the user names may be a link itself
    assert len(load_images(str(tmp_path / "link"))) == 4


def test_class_names_in_a_table_come_from_no_other_file() -> None:
    schema = pa.schema({"image": pa.binary(), "label": pa.int64()})
    text = (
        '{"info": {"features": {"label": {"_type": "ClassLabel", "names_file": "x"}, "image":'
        ' {"_type": "Image"}}}}'
    )
    assert (
        columns.find_columns("x", schema.with_metadata({"huggingface": text}), Columns()).names
        is None
    )


# in the footer: 9 rows of the file (i64, before the list of row groups), and of its row group (i64,
# before a place)
ROWS, MORE_ROWS = b"\x16\x12\x19", b"\x16\x14\x19"
GROUP, LARGER_GROUP = b"\x16\x12\x26", b"\x16\x14\x26"


def with_footer(path: Path, before: bytes, after: bytes) -> str:
    data = path.read_bytes()
    begin = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    assert before in data[begin:]
    path.write_bytes(data[:begin] + data[begin:].replace(before, after, 1))
    return str(path)


def test_a_footer_that_tells_of_more_rows_than_there_are(table: Path) -> None:
    with pytest.raises(DataError, match=r"its row groups do not add up to its number of rows"):
        load_images(with_footer(table, ROWS, MORE_ROWS))
    file = with_footer(table, GROUP, LARGER_GROUP)
    with pytest.raises(DataError, match=r"it has fewer labels than its footer says"):
        load_images(file)
    found = load_unlabelled(file, max_images=99)
    assert found.image(8).tobytes() == Image.open(io.BytesIO(png(8))).tobytes()
    with pytest.raises(DataError, match=r"it has fewer rows than its footer says"):
        found.image(9)


def test_a_source_that_changes_while_it_is_read(tar: Path, tmp_path: Path) -> None:
    found = load_images(str(tar))
    tar.write_bytes(tar.read_bytes()[:4200])
    with pytest.raises(DataError, match=r"x\.tar"):
        found.image(1)
    with pytest.raises(DataError, match=r"gone: cannot be read \(No such file or directory\)"):
        folder._list_visible("x", tmp_path, tmp_path / "gone")


def test_cards_that_are_too_large_or_refer_to_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_splits, "MAX_FRONT_MATTER_BYTES", 100)
    with pytest.raises(Unreadable, match=r"its metadata are larger than"):
        front_matter("---\n" + "a: b\n" * 30 + "---\n")
    with pytest.raises(Unreadable, match=r"an alias \(\*name\) in it"):
        front_matter("---\na: &a [1]\nb: *a\n---\n")
