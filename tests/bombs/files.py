"""Bombs by name: files that are made to do harm, and the readers that they are meant for."""

from __future__ import annotations

import io
import json
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from tests.support.image_files import chunk, drawn_over, metadata, with_chunk
from tests.support.merged_output import RECORD
from tests.support.raw_safetensors import entry, raw_file

MIB = 1 << 20


@dataclass(frozen=True)
class Bomb:
    """A file that is made to do harm.

    Attributes:
        reader: Target of the fuzzing that reads it.
        name: What the file is called.
        content: Gives its content, or writes it to a path.
        slow: Takes a second or more to write and read: `python -m tests.bombs` has it, the tests have not.
    """

    reader: str
    name: str
    content: Callable[[], bytes | str] | Writer
    slow: bool = False

    def make(self, path: Path) -> None:
        """Write it."""
        if isinstance(self.content, Writer):
            self.content.write(path)
            return
        content = self.content()
        path.write_bytes(content.encode() if isinstance(content, str) else content)


@dataclass(frozen=True)
class Writer:
    """Writes a file that a library makes, or that is too large for memory."""

    write: Callable[[Path], object]


def _headed(text: str | bytes, data: bytes = b"") -> bytes:
    """A safetensors file of this header."""
    raw = text.encode() if isinstance(text, str) else text
    return len(raw).to_bytes(8, "little") + raw + data


def _text_tower(path: Path) -> None:
    names = [f"text_model.encoder.layers.{number}.mlp.fc1.bias" for number in range(10_000)]
    raw_file(path, {name: entry(offsets=[8 * at, 8 * at + 8]) for at, name in enumerate(names)}, bytes(80_000))


def _numbered(name: str, count: int, value: Any) -> dict[str, Any]:
    return {f"{name}{number}": value for number in range(count)}


def _adapter(patterns: dict[str, int]) -> str:
    return json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8, "rank_pattern": patterns})


def _aliases() -> str:
    return "\n".join(["a0: &a0 [x, x]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 40))])


def _plan() -> str:
    source = {"source": "a", "revision": None, "files": {}}
    plan = {"format": "clipmerge-plan/1", "recipe": {"name": "x", "method": {"name": "wise-ft"}}, "zeroshot": source}
    layers = _numbered("v.", 500_000, {"alpha": 0.5})
    return json.dumps({**plan, "finetuned": [source], "weights": [1.0], "layers": layers})


def _record(**fields: Any) -> str:
    return json.dumps(RECORD | {"files": {"model.safetensors": "ab"}} | fields)


def _report_of_1000_layers() -> str:
    layers = {f"t{number // 2}.{number}.mlp": {"alpha": number / 999} for number in range(999)}
    values = {name: {f"s{at}": float(at * len(name) % 7) for at in range(10)} for name in layers}
    return _record(layers=layers, measurements=values, coefficients=_numbered("t", 5000, [1] * 40))


# --- pictures ---


def _blank_png() -> bytes:
    """A square grey image of 16 bits, all zero."""
    side, packer = 8192, zlib.compressobj(1)
    row = bytes(2 * side + 1)
    rows = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 16, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


# --- Parquet ---


def _zeros(path: Path) -> None:
    zeros = pa.array([bytes(1 << 30)], pa.large_binary())
    options = {"compression": "zstd", "use_dictionary": False, "write_statistics": False}
    pq.write_table(pa.table({"image": zeros, "label": ["a"]}), path, **options)


def _one_in_a_million_rows(path: Path, column: str) -> None:
    value = pa.array([bytes(100_000)], pa.binary()) if column == "image" else pa.array(["x" * 100_000])
    rows = pa.DictionaryArray.from_arrays(pa.array([0] * 1_000_000, pa.int32()), value)
    plain = {"label": pa.array([0] * 1_000_000), "image": pa.array([b"x"] * 1_000_000, pa.binary())}
    pq.write_table(pa.table(plain | {column: rows}), path, store_schema=False)


def _footer(content: bytes) -> bytes:
    return b"PAR1" + content + len(content).to_bytes(4, "little") + b"PAR1"


# --- archives ---


def _tar(kind: bytes, name: str, content: bytes) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(content)
    picture = tarfile.TarInfo("a.png").tobuf(tarfile.GNU_FORMAT)
    return info.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512) + picture + bytes(1024)


def _tar_of_headers() -> bytes:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1
    return (info.tobuf(tarfile.GNU_FORMAT) + b"a".ljust(512, b"\0")) * 50_000


def _tar_label(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in {"a.png": b"x", "a.json": b"[" * (50 * MIB)}.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def _tar_of_an_exabyte() -> bytes:
    info = tarfile.TarInfo("a.png")
    info.size = 1 << 60
    return info.tobuf(tarfile.GNU_FORMAT) + bytes(2048)


# --- PyTorch's own format ---


def _pickle(pieces: Iterable[bytes], compression: int = zipfile.ZIP_STORED) -> Writer:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w", compression) as archive:
            with archive.open("x/data.pkl", "w") as member:
                member.writelines(pieces)
            archive.writestr("x/version", "3\n")

    return Writer(write)


def _expanded(path: Path) -> None:
    torch.save({f"a{number}.weight": torch.zeros(1).expand(1 << 24) for number in range(100)}, path)


def _storage_of_a_terabyte() -> bytes:
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(3, 5)}, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue().replace(b"K\x0f", b"\x8a\x06" + (1 << 38).to_bytes(6, "little"))


WEIGHTS, RECIPE, TOKENIZER = ("x.safetensors", "x.yaml", "tokenizer_config.json")
SLOW = True
BOMBS = {
    "header of lists within its limit": Bomb(
        "header", WEIGHTS, lambda: _headed(b'{"a":[' + b"[]," * 1_240_000 + b"[]]}"), SLOW
    ),
    "header of 9 exabytes": Bomb("header", WEIGHTS, lambda: ((1 << 63) - 1).to_bytes(8, "little") + b"{}" + bytes(100)),
    "tensors of a text tower 10 000": Bomb("checkpoint", WEIGHTS, Writer(_text_tower)),
    # JSON, YAML, TOML and texts
    "brackets of 60 MB": Bomb("configuration", "config.json", lambda: b"[" * (60 * MIB), SLOW),
    "index of a million tensors": Bomb(
        *("index", "model.safetensors.index.json"),
        lambda: json.dumps({"weight_map": _numbered("a.", 1_000_000, "x.safetensors")}),
        SLOW,
    ),
    "tokenizer of 250 MB": Bomb(
        "side_file", TOKENIZER, lambda: b'{"_name_or_path": "' + b"a" * (250 * MIB) + b'"}', SLOW
    ),
    "patterns that backtrack": Bomb(
        *("adapter", "adapter_config.json"),
        lambda: _adapter({"(a+)+" * 20 + "$": 4, "(.*)*" * 20 + "b": 4, "a?" * 30 + "a" * 30: 4}),
    ),
    "aliases of aliases": Bomb("recipe", RECIPE, _aliases),
    "plan of half a million layers": Bomb("plan", "plan.json", _plan),
    "record of 80 000 layers": Bomb(
        "record", "clipmerge.json", lambda: _record(layers=_numbered("v.", 80_000, {"alpha": 0.5}))
    ),
    "class names of 17 MB": Bomb("class_names", "names.txt", lambda: "a\n" * (17 * MIB // 2)),
    "defaults of dots": Bomb("defaults", "clipmerge.toml", lambda: ".".join(["a"] * 30_000) + " = 1"),
    "templates of 8 million classes": Bomb("texts_of_a_set", "texts", lambda: b"cat\ndog\n\0" + b"{c}" * (5 * MIB)),
    "report of 1000 layers": Bomb("report", "clipmerge.json", _report_of_1000_layers, SLOW),
    "report of 5000 statistics": Bomb(
        *("report", "clipmerge.json"),
        lambda: _record(measurements={name: _numbered("s", 4999, 0.5) for name in RECORD["layers"]}),
    ),
    # images
    "line of 65 000 pixels": Bomb("image", "x.png", Writer(lambda path: Image.new("RGB", (65_000, 1)).save(path))),
    "png of 16 bits at the limit": Bomb("image", "x.png", _blank_png, SLOW),
    "png with a text of 1 GB": Bomb(
        *("image", "x.png"),
        lambda: with_chunk(Image.new("L", (8, 8), 128), chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 30), 9))),
        SLOW,
    ),
    "jpeg of 1000 scans": Bomb("image", "x.jpg", lambda: drawn_over(1000, 8192)),
    "jpeg of 45 scans": Bomb("image", "x.jpg", lambda: drawn_over(39, 8192), SLOW),
    "tiff whose tags are the same megabyte": Bomb("image", "x.tif", lambda: metadata(60_000, MIB)),
    "zeros in one page": Bomb("parquet", "x.parquet", Writer(_zeros)),
    "one image in a million rows": Bomb("parquet", "x.parquet", Writer(lambda p: _one_in_a_million_rows(p, "image"))),
    "one label in a million rows": Bomb("parquet", "x.parquet", Writer(lambda p: _one_in_a_million_rows(p, "label"))),
    "footer of empty structures": Bomb(
        "parquet", "x.parquet", lambda: _footer(b"\x15\x02\x19\xfc\xff\xff\x7f" + bytes(2_000_000) + b"\0")
    ),
    "tar header of digits": Bomb("tar", "x.tar", lambda: _tar(tarfile.XHDTYPE, "x", b"9" * (50 * MIB))),
    "tar of headers of headers": Bomb("tar", "x.tar", _tar_of_headers, SLOW),
    "tar label of 50 MB": Bomb("tar", "x.tar", Writer(_tar_label)),
    "tar member of an exabyte": Bomb("tar", "x.tar", _tar_of_an_exabyte),
    # PyTorch's own format
    "tensors of one number": Bomb("pickle", "x.pt", Writer(_expanded)),
    "pickle of 1 GB deflated": Bomb(
        "pickle", "x.pt", _pickle([b"\x80\x02", *[b"]" * MIB] * 1024], zipfile.ZIP_DEFLATED), SLOW
    ),
    "pickle of doubling tuples": Bomb(
        "pickle", "x.pt", _pickle([b"\x80\x02)q\x00", *[b"h\x00h\x00\x86q\x00"] * 100, b"."])
    ),
    "storage of a terabyte": Bomb("old_pickle", "x.pt", _storage_of_a_terabyte),
}
