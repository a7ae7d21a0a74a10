"""One function for each bomb, from a folder to a file in it; ``BOMBS`` has the reader that it is meant for."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
from pathlib import Path
from typing import Any

from tests.bombs import pickles
from tests.bombs.registry import BOMBS, MIB, bomb
from tests.support.image_files import chunk, drawn_over, metadata, with_chunk
from tests.support.merged_output import RECORD
from tests.support.raw_safetensors import entry, raw_file

__all__ = ["BOMBS", "pickles"]


# --- safetensors ---


@bomb("header", "x.safetensors", slow=True)
def header_of_lists(path: Path) -> None:
    text = b'{"a":[' + b"[]," * (23 * MIB) + b"[]]}"
    path.write_bytes(len(text).to_bytes(8, "little") + text)


@bomb("header", "x.safetensors", slow=True)
def header_of_lists_within_its_limit(path: Path) -> None:
    text = b'{"a":[' + b"[]," * 1_240_000 + b"[]]}"
    path.write_bytes(len(text).to_bytes(8, "little") + text)


@bomb("header", "x.safetensors")
def header_of_brackets(path: Path) -> None:
    text = b"[" * (15 * MIB)
    path.write_bytes(len(text).to_bytes(8, "little") + text)


@bomb("header", "x.safetensors")
def header_of_9_exabytes(path: Path) -> None:
    path.write_bytes(((1 << 63) - 1).to_bytes(8, "little") + b"{}" + bytes(100))


@bomb("header", "x.safetensors")
def dimensions_of_4200_digits(path: Path) -> None:
    text = '{"a":{"dtype":"F32","shape":[' + ",".join(["9" * 4200] * 1200) + '],"data_offsets":[0,8]}}'
    path.write_bytes(len(text).to_bytes(8, "little") + text.encode() + bytes(8))


@bomb("checkpoint", "x.safetensors")
def tensors_of_a_text_tower_10_000(path: Path) -> None:
    names = [f"text_model.encoder.layers.{number}.mlp.fc1.bias" for number in range(10_000)]
    header = {name: entry(offsets=[8 * at, 8 * at + 8]) for at, name in enumerate(names)}
    raw_file(path, header, bytes(80_000))


@bomb("checkpoint", "x.safetensors", slow=True)
def keys_unknown_150_000(path: Path) -> None:
    header = {f"unknown.{number}": entry(shape=[0], offsets=[0, 0]) for number in range(150_000)}
    raw_file(path, header)


# --- JSON and YAML ---


@bomb("configuration", "config.json", slow=True)
def brackets_of_60_MB(path: Path) -> None:
    path.write_bytes(b"[" * (60 * MIB))


@bomb("index", "model.safetensors.index.json", slow=True)
def index_of_a_million_tensors(path: Path) -> None:
    path.write_text(json.dumps({"weight_map": {f"a.{number}": "x.safetensors" for number in range(1_000_000)}}))


@bomb("side_file", "tokenizer_config.json", slow=True)
def tokenizer_of_250_MB(path: Path) -> None:
    path.write_bytes(b'{"_name_or_path": "' + b"a" * (250 * MIB) + b'"}')


@bomb("side_file", "tokenizer_config.json", slow=True)
def tokenizer_of_empty_lists(path: Path) -> None:
    path.write_bytes(b'{"_name_or_path": [' + b"[]," * 1_240_000 + b"[]]}")


@bomb("adapter", "adapter_config.json")
def patterns_that_backtrack(path: Path) -> None:
    patterns = {"(a+)+" * 20 + "$": 4, "(.*)*" * 20 + "b": 4, "a?" * 30 + "a" * 30: 4}
    path.write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8, "rank_pattern": patterns}))


@bomb("adapter", "adapter_config.json")
def patterns_50_000(path: Path) -> None:
    patterns = {f"layers.{number}.q_proj": 4 for number in range(50_000)}
    path.write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8, "rank_pattern": patterns}))


@bomb("recipe", "x.yaml")
def aliases_of_aliases(path: Path) -> None:
    lines = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 40))]
    path.write_text("\n".join(lines))


@bomb("recipe", "x.yaml")
def keys_of_a_recipe_40_000(path: Path) -> None:
    path.write_text("method:\n" + "".join(f"  a{number}: 1\n" for number in range(40_000)))


@bomb("recipe", "x.yaml")
def recipe_of_brackets(path: Path) -> None:
    path.write_text("a: " + "[" * 60_000)


@bomb("recipe", "x.yaml")
def recipe_of_small_keys(path: Path) -> None:
    path.write_text("{" + ",".join(f"a{number}" for number in range(9000)) + "}")


@bomb("plan", "plan.json")
def plan_of_half_a_million_layers(path: Path) -> None:
    layers = {f"v.{number}": {"alpha": 0.5} for number in range(500_000)}
    source = {"source": "a", "revision": None, "files": {}}
    recipe = {"name": "x", "method": {"name": "wise-ft"}}
    plan = {"format": "clipmerge-plan/1", "recipe": recipe, "zeroshot": source, "finetuned": [source]}
    path.write_text(json.dumps({**plan, "weights": [1.0], "layers": layers}))


@bomb("record", "clipmerge.json")
def record_of_80_000_layers(path: Path) -> None:
    layers = {f"v.{number}": {"alpha": 0.5} for number in range(80_000)}
    path.write_text(json.dumps(RECORD | {"files": {"model.safetensors": "ab"}, "layers": layers}))


@bomb("evaluation", "e.json", slow=True)
def evaluation_of_a_million_results(path: Path) -> None:
    shares = {f"a{number}": 0.5 for number in range(1_000_000)}
    held = {"checkpoint": {"files": {"model.safetensors": "ab"}, "source": "x"}, "images": {}, "sources": {}}
    path.write_text(json.dumps({**held, "accuracy": shares}))


@bomb("class_names", "names.json")
def class_names_of_brackets(path: Path) -> None:
    path.write_text("[" * 100_000)


@bomb("class_names", "names.txt")
def class_names_of_17_MB(path: Path) -> None:
    path.write_text("a\n" * (17 * MIB // 2))


@bomb("card", "README.md")
def card_of_aliases(path: Path) -> None:
    lines = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 40))]
    path.write_text("---\n" + "\n".join(lines) + "\n---\n")


@bomb("vocabularies", "vocab.txt", slow=True)
def vocabularies_of_40_million_words(path: Path) -> None:
    path.write_bytes(b"ab\n" * (20 * MIB) + b"\0" + b"cd\n" * (20 * MIB))


@bomb("defaults", "clipmerge.toml")
def defaults_of_brackets(path: Path) -> None:
    path.write_text("images = " + "[" * 60_000)


@bomb("defaults", "clipmerge.toml")
def defaults_of_dots(path: Path) -> None:
    path.write_text(".".join(["a"] * 30_000) + " = 1")


@bomb("texts_of_a_set", "texts")
def templates_of_8_million_classes(path: Path) -> None:
    path.write_bytes(b"cat\ndog\n\0" + b"{c}" * (5 * MIB))


@bomb("report", "clipmerge.json", slow=True)
def report_of_1000_layers(path: Path) -> None:
    layers = {f"t{number // 2}.{number}.mlp": {"alpha": number / 999} for number in range(999)}
    values = {name: {f"s{at}": float(at * len(name) % 7) for at in range(10)} for name in layers}
    counts = {f"t{number}": [1] * 40 for number in range(5000)}
    path.write_text(json.dumps(RECORD | {"layers": layers, "measurements": values, "coefficients": counts}))


@bomb("report", "clipmerge.json")
def report_of_5000_statistics(path: Path) -> None:
    values = {name: {f"s{at}": float(at % 7) for at in range(4999)} for name in RECORD["layers"]}
    path.write_text(json.dumps(RECORD | {"measurements": values}))


@bomb("image", "x.png")
def line_of_65_000_pixels(path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (65_000, 1)).save(path)


@bomb("names_of_places", "name")
def range_of_18_digits(path: Path) -> None:
    path.write_text("x-{0..999999999999999999}-{0..999999999999999999}.tar")


# --- images ---


def _parquet(path: Path, columns: dict[str, Any], **options: Any) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), path, **options)


@bomb("parquet", "x.parquet")
def zeros_in_one_page(path: Path) -> None:
    import pyarrow as pa

    zeros = pa.array([bytes(1 << 30)], pa.large_binary())
    _parquet(path, {"image": zeros, "label": ["a"]}, compression="zstd", use_dictionary=False, write_statistics=False)


@bomb("parquet", "x.parquet")
def one_image_in_a_million_rows(path: Path) -> None:
    image = bytes(100_000)
    import pyarrow as pa

    rows = pa.DictionaryArray.from_arrays(pa.array([0] * 1_000_000, pa.int32()), pa.array([image], pa.binary()))
    _parquet(path, {"image": rows, "label": pa.array([0] * 1_000_000)}, store_schema=False)


@bomb("parquet", "x.parquet")
def one_label_in_a_million_rows(path: Path) -> None:
    import pyarrow as pa

    rows = pa.DictionaryArray.from_arrays(pa.array([0] * 1_000_000, pa.int32()), pa.array(["x" * 100_000]))
    images = pa.array([b"x"] * 1_000_000, pa.binary())
    _parquet(path, {"image": images, "label": rows}, store_schema=False)


@bomb("parquet", "x.parquet")
def footer_of_empty_structures(path: Path) -> None:
    footer = b"\x15\x02\x19\xfc" + b"\xff\xff\x7f" + bytes(2_000_000) + b"\0"
    path.write_bytes(b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1")


@bomb("parquet", "x.parquet")
def footer_of_2_GB(path: Path) -> None:
    path.write_bytes(b"PAR1" + bytes(100) + (0x7FFFFFFF).to_bytes(4, "little") + b"PAR1")


def blank_png(path: Path, side: int, level: int) -> None:
    """Write a square grey image of 16 bits, all zero."""
    import zlib

    packer = zlib.compressobj(level)
    row = bytes(2 * side + 1)
    rows = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 16, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))


@bomb("image", "x.png")
def png_of_16_bits_and_20_000_pixels_square(path: Path) -> None:
    blank_png(path, 20_000, 9)


@bomb("image", "x.png", slow=True)
def png_of_16_bits_at_the_limit(path: Path) -> None:
    blank_png(path, 8192, 1)


@bomb("image", "x.png", slow=True)
def png_with_a_text_of_1_GB(path: Path) -> None:
    import zlib

    from PIL import Image

    text = b"a\0\0" + zlib.compress(bytes(1 << 30), 9)
    path.write_bytes(with_chunk(Image.new("L", (8, 8), 128), chunk(b"zTXt", text)))


@bomb("image", "x.jpg")
def jpeg_of_1000_scans(path: Path) -> None:
    path.write_bytes(drawn_over(1000, 8192))


@bomb("image", "x.jpg", slow=True)
def jpeg_of_45_scans(path: Path) -> None:
    path.write_bytes(drawn_over(39, 8192))


@bomb("image", "x.tif")
def tiff_whose_tags_are_the_same_megabyte(path: Path) -> None:
    path.write_bytes(metadata(60_000, MIB))


@bomb("image", "x.gif")
def gif_of_65_535_pixels_square(path: Path) -> None:
    path.write_bytes(b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b"," + bytes(4) + b"\xff" * 4 + b"\0;")


@bomb("tar", "x.tar")
def tar_header_of_digits(path: Path) -> None:
    _tar(path, tarfile.XHDTYPE, "x", b"9" * (50 * MIB))


@bomb("tar", "x.tar")
def tar_name_of_50_MB(path: Path) -> None:
    _tar(path, tarfile.GNUTYPE_LONGNAME, "././@LongLink", b"a" * (50 * MIB))


@bomb("tar", "x.tar", slow=True)
def tar_of_headers_of_headers(path: Path) -> None:
    with path.open("wb") as file:
        for _ in range(50_000):
            info = tarfile.TarInfo("././@LongLink")
            info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1
            file.write(info.tobuf(tarfile.GNU_FORMAT) + b"a".ljust(512, b"\0"))


@bomb("tar", "x.tar")
def tar_label_of_50_MB(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in {"a.png": b"x", "a.json": b"[" * (50 * MIB)}.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


@bomb("tar", "x.tar")
def tar_member_of_an_exabyte(path: Path) -> None:
    info = tarfile.TarInfo("a.png")
    info.size = 1 << 60
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(2048))


@bomb("tar", "x.tar")
def tar_that_is_compressed(path: Path) -> None:
    with gzip.open(path, "wb") as file:
        for _ in range(1024):
            file.write(bytes(MIB))


def _tar(path: Path, kind: bytes, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(content)
    padding = bytes(-len(content) % 512)
    with path.open("wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT) + content + padding)
        picture = tarfile.TarInfo("a.png")
        file.write(picture.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
