"""Every reader against files that were found to do harm, and against some dozens of damaged ones."""

import random
import tempfile
from pathlib import Path

import pytest

from tests.fuzz.readers import READERS, TRIALS, apart, verdict

#: What was found, by reader.
CORPUS = Path(__file__).parent / "corpus"
_NUMBERS = (
    0,
    1,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0xFFFF,
    0x7FFFFFFF,
    0xFFFFFFFF,
    (1 << 63) - 1,
    (1 << 64) - 1,
)
#: Pieces that readers are known to trip over.
PIECES = (
    *(
        (number % 256**width).to_bytes(width, "little")
        for number in _NUMBERS
        for width in (1, 2, 4, 8)
    ),
    *(number.to_bytes(8, "big") for number in _NUMBERS),
    *(b"null true [] {} -1 1e999 NaN Infinity 0.5 0 1 2 9".split()),
    b'""',
    b'"a"',
    b"9" * 30,
    b"9" * 5000,
    b"[" * 2000,
    b'{"a":' * 2000,
    b"!!int ''",
    b"!!timestamp x",
    b"&a [*a]",
    b"\x00",
    b"\xff\xfe",
    b"\x1b[31m",
    b"../",
    b"\xed\xa0\x80",
    "²".encode(),
    "\u202e".encode(),
    b"\\ud800",
    b"(a|a)*",
    b"*",
    b":",
    b"\n",
    b"\t",
    b",",
    b"{0..99}",
)


def damaged(known: list[bytes], chance: random.Random) -> bytes:
    """A file with one to six places where bytes are changed, cut out or put in, some from another
    file."""
    data = bytearray(chance.choice(known))
    for _ in range(chance.choice((1, 1, 1, 2, 3, 6))):
        begin = chance.randrange(len(data) + 1)
        end = begin + chance.choice((0, 0, 1, 1, 2, 4, 8, 12, 64, len(data)))
        other = chance.choice(known)
        at = chance.randrange(len(other) + 1)
        piece = other[at : at + chance.choice((1, 8, 64, 512))] * chance.choice((0, 1, 1, 2, 50))
        data[begin:end] = chance.choice(
            (piece, chance.choice(PIECES), chance.randbytes(chance.choice((1, 2))))
        )
    return bytes(data[: 1 << 20])


def fuzz(name: str) -> str:
    """Run known and damaged files through a reader until one does harm; its number, and what is
    wrong."""
    known = [
        *READERS[name].seeds(),
        *(file.read_bytes() for file in sorted((CORPUS / name).glob("*"))),
    ]
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(prefix=f"fuzz-{name}-", dir=memory) as made:
        folder = Path(made, "read")
        folder.mkdir()
        for number in range(len(known) + TRIALS * (10 if READERS[name].slow else 80)):
            data = (
                known[number]
                if number < len(known)
                else damaged(known, random.Random(f"{name} {number}"))
            )
            Path(made, "last").write_bytes(data)  # stays there if it ends the process
            if wrong := verdict(name, data, folder):
                return f"file {number}: {wrong}"
    return ""


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_found_and_damaged_files_are_read_or_refused_in_one_line(name: str) -> None:
    assert apart(fuzz, name) == ""
