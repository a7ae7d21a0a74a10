"""Images of every depth: their conversion to eight bits, and the refusal of those with an unknown range."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clipmerge.errors import DataError
from clipmerge.images.dataset import load_images
from clipmerge.images.decoding import decode
from clipmerge.images.store import Encoded
from tests.support.command import clipmerge
from tests.support.image_files import save_plain_parquet

SHADES = np.random.default_rng(0).integers(0, 65536, (6, 5)).astype(np.uint16)
SHADES.flat[:4] = (0, 65535, 128, 129)  # both ends, and where rounding turns


def eight_bits(values: np.ndarray, white: int = 65535) -> list[list[int]]:
    """Pixel by pixel, in whole numbers: the nearest of 256 shades."""
    return [[(2 * 255 * int(value) + white) // (2 * white) for value in row] for row in values]


def decoded(folder: Path, name: str, content: Image.Image | bytes, **options: Any) -> list[list[int]]:
    """The decoded file, which is grey."""
    path = folder / "class" / name
    path.parent.mkdir()
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content.save(path, **options)
    image = load_images(str(folder)).image(0)
    assert image.mode == "RGB"
    red, green, blue = np.moveaxis(np.asarray(image), 2, 0)
    assert (red == green).all()
    assert (red == blue).all()
    values: list[list[int]] = red.tolist()
    return values


def big_endian_tiff() -> Image.Image:
    image = Image.frombytes("I;16B", SHADES.shape[::-1], SHADES.astype(">u2").tobytes())
    assert image.mode == "I;16B"
    return image


@pytest.mark.parametrize("name", ["x.png", "x.tif", "x.ppm"])
def test_sixteen_bits_become_eight(tmp_path: Path, name: str) -> None:
    assert decoded(tmp_path, name, Image.fromarray(SHADES)) == eight_bits(SHADES)


def test_a_tiff_of_the_other_byte_order(tmp_path: Path) -> None:
    assert decoded(tmp_path, "x.tif", big_endian_tiff()) == eight_bits(SHADES)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) run\n%%EOF\n"),
        ("xpm", b'/* XPM */\nstatic char *x[] = {\n"1 1 1 1",\n"a c #000000",\n"a"\n};\n'),
    ],
)
def test_only_formats_that_run_no_program_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes
) -> None:
    (tmp_path / "x.png").write_bytes(content)
    Image.open(tmp_path / "x.png").close()  # Pillow would, whatever the file is called
    monkeypatch.setattr(subprocess, "Popen", lambda *_args, **_options: pytest.fail("a program was started"))
    for encoded in ({"bytes": content, "path": None}, {"bytes": None, "path": str(tmp_path / "x.png")}):
        with pytest.raises(DataError, match=r"x.png: cannot be read as an image \(cannot identify image file\)"):
            decode("x.png", Encoded(**encoded))


def test_a_pipe_by_the_name_of_an_image_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.png")
    with pytest.raises(DataError, match=r"x.png: cannot be read as an image \(.*not a regular file"):
        decode("x.png", {"bytes": None, "path": str(tmp_path / "x.png")})


def test_a_png_that_older_pillow_opens_as_32_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import PngImagePlugin

    monkeypatch.setitem(PngImagePlugin._MODES, (16, 0), ("I", "I;16B"))
    assert decoded(tmp_path, "x.png", Image.fromarray(SHADES)) == eight_bits(SHADES)


def test_twelve_bits_are_scaled_by_twelve(tmp_path: Path) -> None:
    values = SHADES[:, :4] >> 4
    rows = [(int(a) << 12 | int(b)).to_bytes(3, "big") for row in values for a, b in row.reshape(-1, 2)]
    tags = {256: 4, 257: 6, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 6, 279: 36}
    directory = b"".join(
        tag.to_bytes(2, "little") + b"\x04\x00\x01\x00\x00\x00" + value.to_bytes(4, "little")
        for tag, value in tags.items()
    )
    content = b"II*\x00" + (44).to_bytes(4, "little") + b"".join(rows) + len(tags).to_bytes(2, "little") + directory
    assert decoded(tmp_path, "x.tif", content + bytes(4)) == eight_bits(values, white=4095)


def test_where_zero_is_white_it_stays_white(tmp_path: Path) -> None:
    assert decoded(tmp_path, "x.tif", Image.fromarray(SHADES), tiffinfo={262: 0}) == eight_bits(65535 - SHADES)


def test_decimal_numbers_from_0_to_1_become_eight_bits(tmp_path: Path) -> None:
    shades = np.arange(256, dtype=np.float32).reshape(16, 16)
    assert decoded(tmp_path, "x.tif", Image.fromarray(shades / 255)) == shades.astype(int).tolist()


def test_an_image_that_is_turned_upright_is_scaled_too(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    turned = np.rot90(np.asarray(eight_bits(SHADES)), 2).tolist()
    assert decoded(tmp_path, "x.png", Image.fromarray(SHADES), exif=exif) == turned


UNKNOWN = {
    "32 bits": np.array([[0, 255], [70_000, 9]], np.int32),
    "decimal beyond 1": np.array([[0.0, 1.5]], np.float32),
    "negative": np.array([[-0.5, 0.5]], np.float32),
    "not a number": np.array([[np.nan, 0.5]], np.float32),
}


@pytest.mark.parametrize("values", UNKNOWN.values(), ids=UNKNOWN)
def test_numbers_of_unknown_range_are_one_line(tmp_path: Path, values: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"class/x\.tif: holds 32-bit .* range is not known; save it as 8 or 16 bit"):
        decoded(tmp_path, "x.tif", Image.fromarray(values))


def test_an_image_in_a_table_is_scaled_and_named_by_its_row(tmp_path: Path) -> None:
    contents = []
    for values, ending in ((SHADES, "PNG"), (UNKNOWN["32 bits"], "TIFF")):
        buffer = io.BytesIO()
        Image.fromarray(values).save(buffer, ending)
        contents.append(buffer.getvalue())
    found = load_images(str(save_plain_parquet(tmp_path / "x.parquet", {"image": contents, "label": ["a", "b"]})))
    assert np.asarray(found.image(0))[..., 0].tolist() == eight_bits(SHADES)
    with pytest.raises(DataError, match=r"x\.parquet, row 1: holds 32-bit"):
        found.image(1)


def test_accuracy_is_the_same_at_either_depth(pair: tuple[Path, Path], tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for number, name in enumerate(("bird", "cat", "dog")):
        for depth in ("8", "16"):
            (tmp_path / depth / name).mkdir(parents=True)
        for index in range(6):
            grey = (rng.integers(0, 100, (40, 36)) + 70 * number).astype(np.uint8)
            Image.fromarray(grey).save(tmp_path / "8" / name / f"{index}.png")
            Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "16" / name / f"{index}.png")
    accuracy = []
    for depth in ("8", "16"):
        ended = clipmerge("evaluate", pair[1], "--data", f"x={tmp_path / depth}", "--format", "json")
        assert ended.code == 0, ended.err
        accuracy.append(ended.json["accuracy"]["x"])
        pixels = [load_images(str(tmp_path / depth)).image(k).tobytes() for k in range(18)]
        accuracy.append(hash(tuple(pixels)))
    assert accuracy[:2] == accuracy[2:]


def test_a_photo_is_turned_as_its_camera_says(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[Image.ExifTags.Base.Orientation] = 6  # the first row of the file is the right side of the picture
    picture = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3))
    assert decoded(tmp_path, "x.png", picture, exif=turned) == [[3, 0], [4, 1], [5, 2]]


def test_an_image_of_no_bytes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"x\.png: cannot be read as an image"):
        decoded(tmp_path, "x.png", b"")


def test_images_in_folders_do_without_the_datasets_library(tmp_path: Path) -> None:
    (tmp_path / "class").mkdir()
    Image.fromarray(SHADES).save(tmp_path / "class" / "x.png")
    code = (
        "import sys; from clipmerge.images.dataset import load_images\n"
        "load_images(sys.argv[1]).image(0)\n"
        "heavy = {'datasets', 'pandas', 'pyarrow'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True)


def test_what_a_palette_hides_is_shown_in_its_own_colour() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    held = io.BytesIO()
    image.save(held, "PNG", transparency=1)
    decoded = decode("x", {"bytes": held.getvalue(), "path": None})
    assert (decoded.mode, decoded.getpixel((0, 0)), decoded.getpixel((1, 0))) == ("RGB", (255, 0, 0), (0, 0, 255))
