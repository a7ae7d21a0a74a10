"""Files made to fill memory or to take for ever, at full size: one line or an answer, in seconds
and below 1 GiB."""

import io
import json
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from tests.fuzz.readers import PUBLISHED, TRIALS, apart, verdict
from tests.support.image_files import chunk, drawn_over, with_chunk
from tests.support.raw_safetensors import entry

MIB = 1 << 20


def _headed(header: bytes, data: bytes = b"") -> bytes:
    """A safetensors file of this header."""
    return len(header).to_bytes(8, "little") + header + data


def _text_tower() -> bytes:
    names = [f"text_model.encoder.layers.{number}.mlp.fc1.bias" for number in range(10_000)]
    entries = {name: entry(offsets=[8 * at, 8 * at + 8]) for at, name in enumerate(names)}
    return _headed(json.dumps(entries).encode(), bytes(80_000))


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _numbered(name: str, count: int, value: Any) -> dict[str, Any]:
    return {f"{name}{number}": value for number in range(count)}


def _report_of_1000_layers() -> bytes:
    layers = {f"t{number // 2}.{number}.mlp": {"alpha": number / 999} for number in range(999)}
    values = {name: {f"s{at}": float(at * len(name) % 7) for at in range(10)} for name in layers}
    counts = _numbered("t", 5000, [1] * 40)
    return _json(PUBLISHED | {"layers": layers, "measurements": values, "coefficients": counts})


def _blank_png() -> bytes:
    """A square grey image of 16 bits, all zero."""
    side, packer = 8192, zlib.compressobj(1)
    rows = b"".join(packer.compress(bytes(2 * side + 1)) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 16, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


def _parquet(columns: dict[str, Any], **options: Any) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file, **options)
    return file.getvalue()


def _zeros() -> bytes:
    zeros = pa.array([bytes(1 << 30)], pa.large_binary())
    return _parquet(
        {"image": zeros, "label": ["a"]},
        compression="zstd",
        use_dictionary=False,
        write_statistics=False,
    )


def _one_in_a_million_rows(column: str) -> bytes:
    value = (
        pa.array([bytes(100_000)], pa.binary()) if column == "image" else pa.array(["x" * 100_000])
    )
    rows = pa.DictionaryArray.from_arrays(pa.array([0] * 1_000_000, pa.int32()), value)
    plain = {"label": pa.array([0] * 1_000_000), "image": pa.array([b"x"] * 1_000_000, pa.binary())}
    return _parquet(plain | {column: rows}, store_schema=False)


def _footer() -> bytes:
    content = b"\x15\x02\x19\xfc\xff\xff\x7f" + bytes(2_000_000) + b"\0"
    return b"PAR1" + content + len(content).to_bytes(4, "little") + b"PAR1"


def _member(
    name: str, content: bytes, kind: bytes = tarfile.REGTYPE, size: int | None = None
) -> bytes:
    """A member of a tar; its header may say another size."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(content) if size is None else size
    return info.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512)


def _pickle(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x/data.pkl", content)
        archive.writestr("x/version", "3\n")
    return file.getvalue()


def _torch_saved(content: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def _storage_of_a_terabyte() -> bytes:
    content = _torch_saved({"a": torch.zeros(3, 5)}, _use_new_zipfile_serialization=False)
    return content.replace(b"K\x0f", b"\x8a\x06" + (1 << 38).to_bytes(6, "little"))


#: Bombs by name: their reader, and what makes them.
BOMBS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "header of 9 exabytes": (
        "header",
        lambda: ((1 << 63) - 1).to_bytes(8, "little") + b"{}" + bytes(100),
    ),
    "tensors of a text tower 10 000": ("checkpoint", _text_tower),
    "class names of 17 MB": ("class_names", lambda: b"a\n" * (17 * MIB // 2)),
    "defaults of dots": ("defaults", lambda: b".".join([b"a"] * 30_000) + b" = 1"),
    "templates of 8 million classes": (
        "texts_of_a_set",
        lambda: b"cat\ndog\n\0" + b"{c}" * (5 * MIB),
    ),
    "zeros in one page": ("parquet", _zeros),
    "one image in a million rows": ("parquet", lambda: _one_in_a_million_rows("image")),
    "one label in a million rows": ("parquet", lambda: _one_in_a_million_rows("label")),
    "footer of empty structures": ("parquet", _footer),
    "tar member of an exabyte": ("tar", lambda: _member("a.png", bytes(2048), size=1 << 60)),
    "tensors of one number": (
        "pickle",
        lambda: _torch_saved(
            {f"a{number}.weight": torch.zeros(1).expand(1 << 24) for number in range(100)}
        ),
    ),
    "pickle of doubling tuples": (
        "pickle",
        lambda: _pickle(b"\x80\x02)q\x00" + b"h\x00h\x00\x86q\x00" * 100 + b"."),
    ),
    "storage of a terabyte": ("old_pickle", _storage_of_a_terabyte),
}
#: Bombs that take a second or more to make and read.
SLOW: dict[str, tuple[str, Callable[[], bytes]]] = {
    "header of lists within its limit": (
        "header",
        lambda: _headed(b'{"a":[' + b"[]," * 1_240_000 + b"[]]}"),
    ),
    "brackets of 60 MB": ("configuration", lambda: b"[" * (60 * MIB)),
    "index of a million tensors": (
        "index",
        lambda: _json({"weight_map": _numbered("a.", 1_000_000, "x.safetensors")}),
    ),
    "tokenizer of 250 MB": (
        "side_file",
        lambda: b'{"_name_or_path": "' + b"a" * (250 * MIB) + b'"}',
    ),
    "png of 16 bits at the limit": ("image", _blank_png),
    "png with a text of 1 GB": (
        "image",
        lambda: with_chunk(
            Image.new("L", (8, 8), 128), chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 30), 9))
        ),
    ),
    "jpeg of 45 scans": ("image", lambda: drawn_over(39, 8192)),
    "tar of headers of headers": (
        "tar",
        lambda: _member("././@LongLink", b"a", tarfile.GNUTYPE_LONGNAME) * 50_000,
    ),
}


def make(name: str, path: Path) -> None:
    path.write_bytes((BOMBS | SLOW)[name][1]())


def read(name: str, path: Path) -> str:
    return verdict((BOMBS | SLOW)[name][0], path.read_bytes(), path.parent)


@pytest.mark.slow
@pytest.mark.parametrize("name", BOMBS if TRIALS == 1 else BOMBS | SLOW)
def test_a_bomb_is_read_or_refused_in_little_memory_and_time(name: str, tmp_path: Path) -> None:
    apart(make, name, tmp_path / "bomb")
    wrong = apart(read, name, tmp_path / "bomb")
    (tmp_path / "bomb").unlink()
    assert wrong == ""
