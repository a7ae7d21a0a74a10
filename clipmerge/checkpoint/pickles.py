"""Check a file written by torch.save before torch reads it: how much would its pickle create beside the tensors?

No code in it can run, but torch follows the pickle: it inflates a compressed one, makes a ``bytearray`` of any size,
and repeats memorised values.
"""

from __future__ import annotations

import io
import pickletools
import struct
import zipfile
from pathlib import Path
from typing import IO

from clipmerge.errors import CheckpointError
from clipmerge.files.limits import LARGEST_DIRECTORY, LARGEST_PICKLE, LONGEST_NAME, MOST_DIGITS, MOST_OPERATIONS
from clipmerge.files.reading import open_regular, told_size

ZIP_START = b"PK\x03\x04"
_END, _END64 = b"PK\x05\x06", b"PK\x06\x06"
# The operations GLOBAL and INST, which have a name behind them.
_CALLS = (b"c", b"i")
_LONGEST_END = 22 + 65535 + 20 + 56


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
    if _directory_size(content) > LARGEST_DIRECTORY:
        raise CheckpointError(f"{file}: its list of members is larger than {told_size(LARGEST_DIRECTORY)}")
    try:
        archive = zipfile.ZipFile(content)
        for member in archive.infolist():
            if member.filename.split("/")[1:2] == [
                "code"
            ]:  # part of TorchScript, which torch refuses before reading it
                continue
            _check_stored(file, member)
            if not member.filename.endswith(".pkl"):
                continue
            if member.file_size > LARGEST_PICKLE:
                raise CheckpointError(f"{file}: its pickle is larger than {told_size(LARGEST_PICKLE)}; save it again")
            _check_calls(file, io.BytesIO(archive.read(member)))
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError, struct.error):
        return  # torch explains the fault


def _check_stored(file: Path, member: zipfile.ZipInfo) -> None:
    if member.compress_type != zipfile.ZIP_STORED:
        raise CheckpointError(f"{file}: is compressed inside, which torch.save does not do; save it again")
    if member.file_size != member.compress_size:  # torch makes room for as much as is stated
        raise CheckpointError(f"{file}: a member is not as large as its list of members states; copy it again")


def _directory_size(content: IO[bytes]) -> int:
    """Size in bytes of a zip's list of members, as stated at its end; zipfile reads the whole list."""
    size = content.seek(0, io.SEEK_END)
    content.seek(max(0, size - _LONGEST_END))
    tail = content.read(_LONGEST_END)
    content.seek(0)
    at, at64 = tail.rfind(_END), tail.rfind(_END64)
    found = int.from_bytes(tail[at + 12 : at + 16], "little") if at >= 0 else 0
    if found == 0xFFFFFFFF and at64 >= 0:
        found = int.from_bytes(tail[at64 + 40 : at64 + 48], "little")
    return found


def _check_calls(file: Path, content: IO[bytes]) -> bool:
    """Walk one pickle; returns False if it is not one."""
    texts: list[str] = ["", ""]
    after = content.tell()
    try:
        for count, (operation, argument, position) in enumerate(pickletools.genops(content)):
            if isinstance(argument, str) and "UNICODE" in operation.name:
                texts = [texts[1], argument]
            reason = _objection(operation.name, argument, position or 0, texts)
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
        reason = "calls something whose name is not ASCII"  # torch would read on
    raise CheckpointError(
        f"{file}: its pickle {reason}; save the state_dict alone: torch.save(model.state_dict(), FILE)"
    )


def _objection(operation: str, argument: object, position: int, texts: list[str]) -> str:
    """Objection to an operation of a pickle; empty if it is allowed."""
    if position > LARGEST_PICKLE:
        return f"is larger than {told_size(LARGEST_PICKLE)}"
    if operation in ("GLOBAL", "INST") and len(str(argument)) > LONGEST_NAME:  # torch searches such names for hours
        return f"calls something whose name has more than {LONGEST_NAME} characters"
    called = str(argument).rpartition(" ")[2] if operation == "GLOBAL" else texts[1]
    if operation in ("GLOBAL", "STACK_GLOBAL") and called == "bytearray":
        return "makes a bytearray, which weights do not need"
    if isinstance(argument, int) and argument.bit_length() > 4 * MOST_DIGITS:
        return "holds a number of very many digits"
    return ""
