"""Check a file written by torch.save before torch reads it: how much would its pickle create besides the tensors?

No code in it can run, but torch follows the pickle: it inflates a compressed one, makes a ``bytearray`` of any size,
and repeats memorised values.
"""

from __future__ import annotations

import io
import pickletools
import re
import struct
import zipfile
from pathlib import Path
from typing import IO

from clipmerge.errors import CheckpointError
from clipmerge.files.limits import (
    LARGEST_DIRECTORY,
    LARGEST_PICKLE,
    LONGEST_NAME,
    MOST_DIGITS,
    MOST_LARGE_NUMBERS,
    MOST_OPERATIONS,
)
from clipmerge.files.reading import open_regular, told_size

ZIP_START = b"PK\x03\x04"
_END, _END64, _LOCATOR = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
# The operations GLOBAL and INST, which are followed by a name.
_CALLS = (b"c", b"i")
# Torch searches such names for hours.
_ODD_NAME = f"calls something whose name has more than {LONGEST_NAME} characters, or characters outside ASCII"
# Sizes of a zip's end records: the end of the central directory and, before it in large files, the zip64 locator and
# end.
_END_BYTES, _LOCATOR_BYTES, _END64_BYTES = 22, 20, 56
# Other functions that torch would call, which turn a few bytes into gigabytes, or into equal hashes.
_REFUSED = {
    "bytearray": "makes a bytearray, which weights do not need",
    "complex": "makes complex numbers, which weights do not need",
}
# Codecs with which `_codecs.encode` makes texts larger or takes long; names without punctuation.
_CODECS = re.compile(r"(hex|base64|uu|quopri|quotedprintable|zlib|zip|bz2|punycode|idna|(raw)?unicodeescape)(codec)?")


def check_pickle(file: Path) -> None:
    """Refuse a file whose pickle would fill memory or take very long.

    Raises:
        CheckpointError: With the reason.
        OSError: If it cannot be read.
    """
    with open_regular(file) as content:
        is_zip = content.read(4) == ZIP_START
        content.seek(0)
        if is_zip:
            _check_archive(file, content)
        else:
            for _ in range(5):  # before torch 1.6, five pickles preceded the tensors
                if not _check_calls(file, content):
                    break


def _check_archive(file: Path, content: IO[bytes]) -> None:
    _check_directory(file, content)
    try:
        archive = zipfile.ZipFile(content)
        for member in archive.infolist():
            if member.filename.split("/")[1:2] == [
                "code"
            ]:  # part of TorchScript, which torch refuses before reading it
                continue
            _check_stored(file, member)
            if not member.filename.lower().endswith(".pkl"):  # torch finds it in capitals too
                continue
            if member.file_size > LARGEST_PICKLE:
                raise CheckpointError(f"{file}: its pickle is larger than {told_size(LARGEST_PICKLE)}; save it again")
            _check_calls(file, io.BytesIO(archive.read(member)))
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError, struct.error) as error:
        # torch checks less, and would read what was not looked at
        raise CheckpointError(
            f"{file}: is damaged or not a PyTorch file; download or copy it again ({error})"
        ) from None


def _check_stored(file: Path, member: zipfile.ZipInfo) -> None:
    if member.compress_type != zipfile.ZIP_STORED:
        raise CheckpointError(f"{file}: is compressed inside, which torch.save does not do; save it again")
    if member.file_size != member.compress_size:  # torch allocates as much as is stated
        raise CheckpointError(f"{file}: a member is not as large as its list of members states; copy it again")


def _check_directory(file: Path, content: IO[bytes]) -> None:
    """Refuse a zip whose list of members is large, or lies elsewhere than right before its end.

    There, torch and Python find the same list. A file could hold two, of which only one is checked here.
    """
    size = content.seek(0, io.SEEK_END)
    begin = max(0, size - _END_BYTES - _LOCATOR_BYTES - _END64_BYTES)
    content.seek(begin)
    tail = content.read()
    content.seek(0)
    at = len(tail) - _END_BYTES
    length, start = struct.unpack_from("<LL", tail.ljust(_END_BYTES, b"\0"), max(0, at) + 12)
    if tail[at - _LOCATOR_BYTES : at - _LOCATOR_BYTES + 4] == _LOCATOR:
        at -= _LOCATOR_BYTES + _END64_BYTES
        (located,) = struct.unpack_from("<Q", tail, at + _END64_BYTES + 8)
        length, start = struct.unpack_from("<QQ", tail, max(0, at) + 40)
        whole = tail[at : at + 4] == _END64 and located == begin + at
    else:
        whole = tail[at : at + 4] == _END
    if not whole or start + length != begin + at:
        raise CheckpointError(
            f"{file}: is damaged or not a PyTorch file; download or copy it again (no list of members at its end)"
        )
    if length > LARGEST_DIRECTORY:
        raise CheckpointError(f"{file}: its list of members is larger than {told_size(LARGEST_DIRECTORY)}")


def _check_calls(file: Path, content: IO[bytes]) -> bool:
    """Walk one pickle; returns False if it is not one."""
    texts: list[str] = ["", ""]
    seen = _Seen()
    after = content.tell()
    try:
        for count, (operation, argument, position) in enumerate(pickletools.genops(content)):
            if isinstance(argument, str) and "UNICODE" in operation.name:
                texts = [texts[1], argument]
            reason = _objection(operation.name, argument, position or 0, texts) or seen.objection(argument)
            if count >= MOST_OPERATIONS:
                reason = f"makes its objects by more than {MOST_OPERATIONS} operations"
            if reason:
                break
            after = content.tell()
        else:
            return True
    except Exception:  # a damaged pickle can raise anything; torch explains the fault
        content.seek(after)
        if content.read(1) not in _CALLS:
            return False
        reason = _ODD_NAME  # before Python 3.13; torch would continue reading
    raise CheckpointError(
        f"{file}: its pickle {reason}; save the state_dict alone: torch.save(model.state_dict(), FILE)"
    )


def _objection(operation: str, argument: object, position: int, texts: list[str]) -> str:
    """Objection to an operation of a pickle; empty if it is allowed."""
    if position > LARGEST_PICKLE:
        return f"is larger than {told_size(LARGEST_PICKLE)}"
    if operation in ("GLOBAL", "INST") and not (str(argument).isascii() and len(str(argument)) <= LONGEST_NAME):
        return _ODD_NAME
    called = str(argument).rpartition(" ")[2] if operation == "GLOBAL" else texts[1]
    if operation in ("GLOBAL", "STACK_GLOBAL") and called in _REFUSED:
        return _REFUSED[called]
    if isinstance(argument, int) and argument.bit_length() > 4 * MOST_DIGITS:
        return "holds a number of very many digits"
    return ""


class _Seen:
    """What a pickle has held so far, for objections to many things together."""

    def __init__(self) -> None:
        self._large, self._encodes, self._codec = 0, False, ""

    def objection(self, argument: object) -> str:
        """Objection to one more argument; empty if there is none."""
        if isinstance(argument, int) and argument.bit_length() > 32:
            self._large += 1
        elif isinstance(argument, str) and len(argument) <= LONGEST_NAME:
            self._encodes |= argument in ("_codecs encode", "_codecs")
            if _CODECS.fullmatch(re.sub(r"[\W_]", "", argument).lower()):
                self._codec = argument
        if self._large > MOST_LARGE_NUMBERS:  # chosen ones have equal hashes: a dict takes quadratic time
            return f"holds more than {MOST_LARGE_NUMBERS} numbers of more than 32 bits"
        return f"calls the codec {self._codec}, which weights do not need" if self._encodes and self._codec else ""
