"""Images with captions: found in every kind of source, said in one line, and refused in one."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from clipmerge.errors import DataError
from clipmerge.images import Columns
from clipmerge.images.dataset import load_images, open_images
from clipmerge.images.image_set import CaptionedImages, LabelledImages
from clipmerge.report.text import texts_of
from tests.support.benchmark_sets import retrieval_set, save_files
from tests.support.hub_double import FakeHub, upload
from tests.support.image_files import decoded, png, save_plain_parquet, save_tar

FLICKR = "hf://datasets/clip-benchmark/wds_flickr8k"
CAPTIONS = [[["a dog", "a brown dog"], ["two cats"]], [["a tree", "an oak", "a big tree"]]]
#: One caption for each of a few images; the first and the last are equal.
TEXTS = (
    "a dog sleeps on a bed",
    "two cats look at a bird",
    "an old oak, in winter",
    "Ein roter Würfel auf Glas",
    "a dog sleeps on a bed",
)


def save_images(folder: Path, ending: str = "png") -> Path:
    folder.mkdir(parents=True)
    for number in range(len(TEXTS)):
        (folder / f"{number}.{ending}").write_bytes(png(number))
    return folder


def beside(at: Path) -> Any:
    for number, text in enumerate(TEXTS):
        (save_images(at / "x") if number == 0 else at / "x").joinpath(f"{number}.txt").write_text(
            f"{text}\n", encoding="utf-8"
        )
    return str(at / "x")


def below(at: Path) -> Any:
    """Any depth, if it is asked for."""
    for number, text in enumerate(TEXTS):
        folder = at / "x" / f"part-{number // 2}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.png").write_bytes(png(number))
        (folder / f"{number}.txt").write_text(text, encoding="utf-8")
    return str(at / "x")


def metadata_jsonl(at: Path) -> Any:
    rows = [{"file_name": f"{k}.png", "text": text} for k, text in enumerate(TEXTS)]
    text = "\n".join(map(json.dumps, rows))
    (save_images(at / "x") / "metadata.jsonl").write_text(text)
    return str(at / "x")


def table(at: Path, name: str, header: tuple[str, str], delimiter: str = ",") -> Path:
    with (at / name).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(header)
        writer.writerows((f"{k}.png", text) for k, text in enumerate(TEXTS))
    return at / name


def jsonl(at: Path) -> Any:
    folder = Path(metadata_jsonl(at))
    return str((folder / "metadata.jsonl").rename(folder / "pairs.jsonl"))


def metadata_csv(at: Path) -> Any:
    table(save_images(at / "x"), "metadata.csv", ("file_name", "text"))
    return str(at / "x")


def open_clip_csv(at: Path) -> Any:
    return str(table(save_images(at / "x"), "train.csv", ("filepath", "title"), "\t"))


def open_clip_tsv(at: Path) -> Any:
    return str(table(save_images(at / "x"), "train.tsv", ("filepath", "title"), "\t"))


def tar(at: Path) -> Any:
    files = {
        f"{k}.{ending}": content
        for k, text in enumerate(TEXTS)
        for ending, content in (
            ("png", png(k)),
            ("txt", text.encode()),
            ("json", json.dumps({"key": str(k), "status": "success"}).encode()),
        )
    }
    return str(save_tar(at / "x.tar", files))


def tar_with_json(at: Path) -> Any:
    files = {
        f"{k}.{ending}": content
        for k, text in enumerate(TEXTS)
        for ending, content in (
            ("png", png(k)),
            ("json", json.dumps({"caption": text}).encode()),
        )
    }
    return str(save_tar(at / "x.tar", files))


def columns_of() -> dict[str, Any]:
    return {"image": [png(k) for k in range(len(TEXTS))], "caption": list(TEXTS)}


def parquet(at: Path) -> Any:
    return str(save_plain_parquet(at / "x.parquet", columns_of()))


def parquet_of_lists(at: Path) -> Any:
    columns = columns_of() | {"caption": pa.array([[text] for text in TEXTS])}
    return str(save_plain_parquet(at / "x.parquet", columns))


def table_in_memory(_: Path) -> Any:
    return datasets.Dataset.from_dict(columns_of())


def pairs() -> list[tuple[Image.Image, str]]:
    return [(Image.open(io.BytesIO(png(k))), text) for k, text in enumerate(TEXTS)]


class Captioned(Dataset[Any]):
    """Like torchvision's CocoCaptions: a picture, and a list of captions."""

    def __len__(self) -> int:
        return len(TEXTS)

    def __getitem__(self, index: int) -> Any:
        image, text = pairs()[index]
        return image, [text]


def loader(_: Path) -> Any:
    return DataLoader(
        Captioned(), batch_size=2, collate_fn=lambda items: list(zip(*items, strict=True))
    )


KINDS: dict[str, Callable[[Path], Any]] = {
    made.__name__: made
    for made in (
        beside,
        metadata_jsonl,
        jsonl,
        metadata_csv,
        open_clip_csv,
        open_clip_tsv,
        tar,
        tar_with_json,
        parquet,
        parquet_of_lists,
        table_in_memory,
        loader,
    )
} | {
    "list of pairs": lambda _: pairs(),
    "list of mappings": lambda _: [{"image": x, "text": text} for x, text in pairs()],
    "torch Dataset": lambda _: Captioned(),
}


@pytest.mark.parametrize("kind", KINDS)
def test_captions_are_found_without_flags(kind: str, tmp_path: Path) -> None:
    found = open_images(KINDS[kind](tmp_path))
    assert isinstance(found, CaptionedImages)
    assert found.captions == tuple((text,) for text in TEXTS)
    assert found.labels == (0, 1, 2, 3, 0)  # equal captions are one
    assert [found.image(at).tobytes() for at in range(len(TEXTS))] == [
        decoded(png(at)) for at in range(len(TEXTS))
    ]
    (note,) = texts_of(found.notes)
    assert "images with captions" in note


LINES = "a dog,\u2028asleep\nand a second line"


def in_jsonl(at: Path) -> Any:
    rows = [{"file_name": f"{k}.png", "text": LINES} for k in range(2)]
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (save_images(at / "x") / "metadata.jsonl").write_text(text, encoding="utf-8")
    return str(at / "x")


def in_csv(at: Path) -> Any:
    save_images(at / "x")
    with (at / "x" / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("file_name", "text"), ("0.png", LINES), ("1.png", LINES)])
    return str(at / "x")


def in_parquet(at: Path) -> Any:
    columns = {"image": [png(0), png(1)], "caption": [LINES] * 2}
    return str(save_plain_parquet(at / "x.parquet", columns))


def in_memory(_: Path) -> Any:
    return [(pairs()[0][0], LINES), (pairs()[1][0], "a cat and a bird")]


@pytest.mark.parametrize("make", [in_jsonl, in_csv, in_parquet, in_memory])
def test_a_caption_of_several_lines_is_one_unless_it_is_a_text_file(
    make: Callable[[Path], Any], tmp_path: Path
) -> None:
    found = open_images(make(tmp_path))
    assert isinstance(found, CaptionedImages)
    assert found.captions[0] == (LINES,)
    assert list(map(len, found.captions)) == [1, 1]


def test_rows_of_one_image_are_its_captions(tmp_path: Path) -> None:
    save_images(tmp_path / "x")
    lines = ["filepath,title", "0.png,a dog", "1.png,two cats", "0.png,a brown dog"]
    (tmp_path / "x" / "train.csv").write_text("\n".join(lines))
    found = open_images(str(tmp_path / "x" / "train.csv"))
    assert isinstance(found, CaptionedImages)
    assert found.captions == (("a dog", "a brown dog"), ("two cats",))
    assert [Path(path).name for path in found.store.paths] == ["0.png", "1.png"]


def test_class_names_that_captions_leave_unused_are_noted(tmp_path: Path) -> None:
    found = open_images(open_clip_csv(tmp_path), ("a", "b"))
    assert any("the names of `classes` are not used" in note for note in texts_of(found.notes))


def test_captions_of_json_are_said_to_come_from_there(tmp_path: Path) -> None:
    (note,) = texts_of(open_images(tar_with_json(tmp_path)).notes)
    assert note.endswith("images with captions, from .json")


def test_a_sample_is_seeded_and_keeps_images_with_their_captions(tmp_path: Path) -> None:
    found = open_images(parquet(tmp_path))
    sample = found.sample(3, seed=1)
    assert sample.captions == found.sample(3, seed=1).captions
    for at, (text,) in enumerate(sample.captions):
        assert sample.image(at).tobytes() in [
            decoded(png(k)) for k, other in enumerate(TEXTS) if other == text
        ]


def test_captions_in_folders_of_folders_are_asked_for(tmp_path: Path) -> None:
    source = below(tmp_path)
    found = open_images(source)
    assert isinstance(found, LabelledImages)
    assert found.class_names == ("part-0", "part-1", "part-2")
    assert "the classes are taken (captions with `caption_column` txt)" in texts_of(found.notes)[-1]
    asked = open_images(source, columns=Columns(caption="txt"))
    assert isinstance(asked, CaptionedImages)
    assert asked.captions == tuple((text,) for text in TEXTS)


def test_labels_and_captions_in_one_table(tmp_path: Path) -> None:
    columns = columns_of() | {"label": ["a", "b", "a", "b", "a"]}
    path = str(save_plain_parquet(tmp_path / "x.parquet", columns))
    assert isinstance(open_images(path), LabelledImages)
    asked = open_images(path, columns=Columns(caption="caption"))
    assert isinstance(asked, CaptionedImages)
    rows = [{"file_name": f"{k}.png", "text": t, "label": k % 2} for k, t in enumerate(TEXTS)]
    folder = save_images(tmp_path / "x")
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = open_images(str(folder), ("a", "b"))
    assert isinstance(found, LabelledImages)
    assert found.labels == (0, 1, 0, 1, 0)
    assert "the classes are taken (captions with `caption_column` text)" in texts_of(found.notes)[0]


def test_short_texts_of_few_kinds_are_classes(tmp_path: Path) -> None:
    files = {
        f"{k}.{ending}": content
        for k in range(6)
        for ending, content in (("png", png(k)), ("txt", b"a big dog" if k % 2 else b"a cat"))
    }
    path = str(save_tar(tmp_path / "x.tar", files))
    assert load_images(path).class_names == ("a big dog", "a cat")
    asked = open_images(path, columns=Columns(caption="txt"))
    assert isinstance(asked, CaptionedImages)


def test_images_with_captions_are_refused_where_classes_are_needed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="have captions and no classes"):
        load_images(parquet(tmp_path))


def rewritten(kind: str, old: str, new: str) -> Callable[[Path], Any]:
    def make(at: Path) -> Any:
        source = Path(KINDS[kind](at))
        file = source if source.is_file() else next(source.glob("metadata.*"))
        file.write_bytes(file.read_bytes().replace(old.encode(), new.encode("latin-1")))
        return str(source)

    return make


def parquet_with(change: Any) -> Callable[[Path], Any]:
    columns = columns_of()
    columns["caption"][1] = change
    return lambda at: str(save_plain_parquet(at / "x.parquet", columns))


def _written(file: Path, text: str) -> str:
    (file.parent / "0.png").write_bytes(png(0))
    if file.suffix:
        file.write_text(text)
    return str(file)


def numbered(at: Path) -> Any:
    for number in range(2):
        (at / "x" / f"{number:05d}").mkdir(parents=True)
        (at / "x" / f"{number:05d}" / "0.png").write_bytes(png(number))
        (at / "x" / f"{number:05d}" / "0.txt").write_text("a dog")
    return str(at / "x")


REFUSED: dict[str, tuple[Callable[[Path], Any], str, Columns]] = {
    "a file that is missing": (
        rewritten("open_clip_csv", "2.png", "7.png"),
        r"train\.csv: 1 file is missing .of 5.: line 4, 7\.png",
        Columns(),
    ),
    "a column twice": (
        rewritten("metadata_csv", "file_name,text", "text,text"),
        r"metadata\.csv: cannot be read \(its first line names text twice; rename one of them",
        Columns(),
    ),
    "where names of files start": (
        rewritten("open_clip_tsv", "2.png", "7.png"),
        r"line 4, 7\.png; names start from .*/x or the working folder\. Add the files",
        Columns(),
    ),
    "numbered folders with captions beside their images": (
        numbered,
        "or take the captions with `caption_column` txt",
        Columns(),
    ),
    "names of files in Parquet": (
        lambda at: str(
            save_plain_parquet(at / "x.parquet", {"file_name": ["0.png"], "text": ["a dog"]})
        ),
        r"x\.parquet: has names of files \(column 'file_name'\) and no images; write it as CSV",
        Columns(),
    ),
    "a file outside": (
        rewritten("metadata_jsonl", "2.png", "../y.png"),
        r"metadata\.jsonl, line 3: \.\./y\.png lies outside of the folder",
        Columns(),
    ),
    "a cell too many": (
        rewritten("metadata_csv", "1.png", "1.png,x"),
        r"metadata\.csv: cannot be read \(line 3 does not have 2 cells",
        Columns(),
    ),
    "a quote inside a quoted text": (
        rewritten("open_clip_tsv", "two cats", '"two" cats'),
        r"line 3: .* expected after .*; end a quoted text with a quote, and write quotes inside it twice",
        Columns(),
    ),
    "a table that is not UTF-8": (
        rewritten("open_clip_csv", "two cats", "zwei \xfc"),
        "not UTF-8",
        Columns(),
    ),
    "a line that is a list": (
        lambda at: _written(at / "x.jsonl", '\n["0.png", "a dog"]\n'),
        r"x\.jsonl: cannot be read \(line 2 is not an object",
        Columns(),
    ),
    "no rows": (lambda at: _written(at / "x.csv", "file,text\n"), "x.csv has no rows", Columns()),
    "no such table": (lambda at: str(at / "x.csv"), r"x\.csv: no such file", Columns()),
    "a row without its image": (
        lambda at: _written(at / "x.jsonl", '{"file": 1, "text": "a dog"}\n'),
        r"x\.jsonl, line 1: names no image file",
        Columns(),
    ),
    "a label that is a list": (
        lambda at: _written(at / "x.jsonl", '{"file": "0.png", "label": ["a dog"]}\n'),
        r"x\.jsonl, line 1: a label is a number or a text",
        Columns(label="label"),
    ),
    "a caption that is a number": (
        lambda at: _written(at / "x.jsonl", '{"file": "0.png", "text": ["a dog", 1]}\n'),
        "has a caption that is not a text",
        Columns(caption="text"),
    ),
    "a caption that is not UTF-8": (
        lambda at: str(
            save_tar(at / "x.tar", {"0.png": png(0), "0.txt": b"\xff a dog on a \xff bed"})
        ),
        "the caption of .* is not UTF-8",
        Columns(caption="txt"),
    ),
    "an empty caption": (
        parquet_with("  "),
        r"1 image has no caption .of 5.: .*x\.parquet, row 1",
        Columns(),
    ),
    "no caption": (parquet_with(None), "1 image has no caption", Columns()),
    "no such column": (
        parquet,
        r"no column 'captoin' for `caption_column` .*Did you mean 'caption'",
        Columns(caption="captoin"),
    ),
    "not texts": (
        lambda at: str(save_plain_parquet(at / "x.parquet", columns_of() | {"n": [1] * 5})),
        "column 'n' holds int64; a caption is a text, or a list of texts",
        Columns(caption="n"),
    ),
    "both": (
        parquet,
        "`label_column` asks for classes and `caption_column` for captions",
        Columns(label="caption", caption="caption"),
    ),
    "neither in a table": (
        rewritten("metadata_csv", "text", "note"),
        r"metadata\.csv: no label or caption column found \(columns: file_name, note\)",
        Columns(),
    ),
    "no such ending": (tar, r"has no \.cap for `caption_column`", Columns(caption="cap")),
    "of a folder": (below, "a folder has its captions in KEY.txt", Columns(caption="title")),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_captions_are_refused_in_one_line(name: str, tmp_path: Path) -> None:
    make, message, columns = REFUSED[name]
    if name == "a file outside":
        (tmp_path / "y.png").write_bytes(png(9))
    source = make(tmp_path)
    with pytest.raises(DataError, match=message) as refusal:
        open_images(source, columns=columns)
    assert "\n" not in str(refusal.value)


def test_each_line_of_a_text_is_a_caption_of_the_image_beside_it(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(png(0))
        (tmp_path / f"{name}.txt").write_text(f"a {name}\n\n an image of {name} \n")
    found = open_images(str(tmp_path))
    assert isinstance(found, CaptionedImages)
    assert [Path(path).name for path in found.store.paths] == ["a.png", "b.png"]
    assert found.captions == (("a a", "an image of a"), ("a b", "an image of b"))
    for name in "cd":
        (tmp_path / f"{name}.heic").write_bytes(b"x")
        (tmp_path / f"{name}.txt").write_text("a caption")
    assert texts_of(open_images(str(tmp_path)).notes)[:-1] == [
        f"{tmp_path}: left out 2 texts without their images (c.txt, d.txt)"
    ]


def test_captions_in_tars_of_a_set_for_retrieval_are_lines(hub: FakeHub, tmp_path: Path) -> None:
    files = retrieval_set(tmp_path / "tars", CAPTIONS)
    sha = upload(hub, "clip-benchmark/wds_flickr8k", files, kind="dataset")
    found = open_images(f"{FLICKR}:test")
    assert isinstance(found, CaptionedImages)
    assert found.captions == (
        ("a dog", "a brown dog"),
        ("two cats",),
        ("a tree", "an oak", "a big tree"),
    )
    assert (found.revision, len(found)) == (sha, 3)
    assert found.image(2).size == (32, 32)
    local = open_images(str(save_files(tmp_path / "copy", files)))
    split = open_images(f"{tmp_path / 'copy'}:test")
    assert isinstance(local, CaptionedImages)
    assert isinstance(split, CaptionedImages)
    assert local.captions == found.captions == split.captions
    assert local.image(1).tobytes() == found.image(1).tobytes()


def test_a_sample_of_a_set_on_the_hub_downloads_few_tars(hub: FakeHub, tmp_path: Path) -> None:
    shards = [[[f"caption {2 * shard + k}"] for k in range(2)] for shard in range(6)]
    upload(
        hub, "clip-benchmark/wds_flickr8k", retrieval_set(tmp_path / "tars", shards), kind="dataset"
    )
    found = open_images(f"{FLICKR}:test", max_images=3, seed=1)
    assert len(hub.requests("GET", r"/resolve/.*\.tar")) == 2
    sample = found.sample(3, seed=1)
    whole = open_images(f"{FLICKR}:test")
    assert isinstance(sample, CaptionedImages)
    assert isinstance(whole, CaptionedImages)
    for at, captions in enumerate(sample.captions):
        assert sample.image(at).tobytes() == whole.image(whole.captions.index(captions)).tobytes()
    assert np.array_equal(sorted(sample.sample(99, seed=0).captions), sorted(sample.captions))


def test_parquet_on_the_hub_has_captions_too(hub: FakeHub, tmp_path: Path) -> None:
    content = Path(parquet(tmp_path)).read_bytes()
    upload(hub, "acme/products", {"train.parquet": content}, kind="dataset")
    found = open_images("hf://datasets/acme/products:train", max_images=3)
    assert isinstance(found, CaptionedImages)
    assert found.captions == tuple((text,) for text in TEXTS)


def skipping(**columns: Any) -> Columns:
    return Columns(skip_unreadable=True, **columns)


def test_unreadable_images_are_left_out_and_counted(tmp_path: Path) -> None:
    """A row whose file is missing, and a file that is no image."""
    source = rewritten("open_clip_csv", "2.png", "7.png")(tmp_path)
    (tmp_path / "x" / "3.png").write_bytes(b"no image")
    found = open_images(source, columns=skipping())
    assert isinstance(found, CaptionedImages)
    assert found.captions == tuple((TEXTS[at],) for at in (0, 1, 4))
    assert [found.image(at).tobytes() for at in range(3)] == [decoded(png(at)) for at in (0, 1, 4)]
    assert "left out 2 images (of 5) that cannot be read" in texts_of(found.notes)[-1]
    assert "7.png" in texts_of(found.notes)[-1]
    assert len(found.store) == 3
    assert len(open_images(KINDS["open_clip_csv"](tmp_path / "fine"), columns=skipping())) == 5
    with pytest.raises(DataError, match=r"or leave them out with `skip_unreadable=True`"):
        open_images(source)
    floats = [(torch.randn(3, 4, 4), text) for text in TEXTS]
    assert len(open_images(floats, columns=skipping())) == len(TEXTS)  # nothing to decode


@pytest.mark.parametrize("missing", [None, b""])
def test_rows_without_an_image_are_left_out_too(missing: bytes | None, tmp_path: Path) -> None:
    columns = {"image": [png(0), missing, png(2)], "caption": list(TEXTS[:3])}
    source = str(save_plain_parquet(tmp_path / "x.parquet", columns))
    found = open_images(source, columns=skipping())
    assert isinstance(found, CaptionedImages)
    assert found.captions == ((TEXTS[0],), (TEXTS[2],))


def test_empty_captions_among_several_are_counted(tmp_path: Path) -> None:
    columns = {"image": [png(0), png(1)], "caption": [["a cat", " ", ""], ["a dog", "a pup"]]}
    found = open_images(str(save_plain_parquet(tmp_path / "x.parquet", columns)))
    assert isinstance(found, CaptionedImages)
    assert found.captions == (("a cat",), ("a dog", "a pup"))
    assert any("left out 2 empty captions" in note for note in texts_of(found.notes))


def test_spaces_after_the_commas_of_a_csv_are_not_part_of_names(tmp_path: Path) -> None:
    folder = save_images(tmp_path / "x")
    files = sorted(path.name for path in folder.glob("*.png"))
    rows = [f"{file}, {kind} " for file, kind in zip(files, "ababa", strict=True)]
    (folder / "labels.csv").write_text("\n".join(["file, label ", *rows]))
    found = open_images(str(folder / "labels.csv"))
    assert isinstance(found, LabelledImages)
    assert found.class_names == ("a", "b")


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"image": "a.png", "text": "a"}\n\n{"image": "a.png" "t"}\n')
    with pytest.raises(DataError, match=r"line 3: Expecting ',' delimiter: column 19"):
        open_images(str(tmp_path / "x.jsonl"))


@pytest.mark.parametrize("kind", ["tar", "parquet", "list of mappings"])
def test_unreadable_images_of_other_sources_too(kind: str, tmp_path: Path) -> None:
    def broken(number: int) -> bytes:
        return b"no image" if number == 1 else png(number)

    if kind == "tar":
        files = {f"{k}.txt": text.encode() for k, text in enumerate(TEXTS)}
        files |= {f"{k}.png": broken(k) for k in range(len(TEXTS))}
        source: Any = str(save_tar(tmp_path / "x.tar", dict(sorted(files.items()))))
    elif kind == "parquet":
        columns = {"image": [broken(k) for k in range(5)], "caption": list(TEXTS)}
        source = str(save_plain_parquet(tmp_path / "x.parquet", columns))
    else:
        source = datasets.Dataset.from_dict(
            {"image": [broken(k) for k in range(5)], "caption": list(TEXTS)}
        )
    found = open_images(source, columns=skipping())
    assert isinstance(found, CaptionedImages)
    assert found.captions == tuple((TEXTS[at],) for at in (0, 2, 3, 4))
    assert [found.image(at).tobytes() for at in range(4)] == [
        decoded(png(at)) for at in (0, 2, 3, 4)
    ]
    assert found.sample(4, seed=0).store.name(0)


def test_nothing_but_unreadable_images_is_an_error(tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / f"{number}.png").write_bytes(b"no image")
        (tmp_path / f"{number}.txt").write_text("a caption")
    with pytest.raises(DataError, match="none of its 2 images can be read"):
        open_images(str(tmp_path), columns=skipping())


def test_a_caption_of_json_is_whole_whatever_its_lines(tmp_path: Path) -> None:
    text = "a dog\non a bed"
    files = {"0.png": png(0), "0.json": json.dumps({"title": text}).encode()}
    source = str(save_tar(tmp_path / "x.tar", files))
    found = open_images(source, columns=Columns(caption="json.title"))
    assert isinstance(found, CaptionedImages)
    assert found.captions == ((text,),)
