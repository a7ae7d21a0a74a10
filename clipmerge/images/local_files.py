"""Files that a source on this machine names: folders, ranges of numbers, splits."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, TypeAlias

from clipmerge.errors import ClipmergeError, DataError, did_you_mean, shorten
from clipmerge.files.limits import MAX_FILES
from clipmerge.files.paths import local_path, split_part
from clipmerge.files.reading import open_regular
from clipmerge.files.side_files import lies_in
from clipmerge.images.shard_texts import SHARDS, describe_folder

_RANGE = re.compile(r"\{(\d{1,18})\.\.(\d{1,18})\}")
_SHARD = re.compile(r"-\d+-of-\d+$")

#: Opens a file of a source by its name.
Opener: TypeAlias = Callable[[str], AbstractContextManager[IO[bytes]]]


@contextmanager
def open_local(name: str) -> Iterator[IO[bytes]]:
    """Open a file on this machine for reading anywhere in it; an error while it is read becomes one
    line.
    """
    try:
        with open_regular(Path(name)) as file:
            yield file
    except ClipmergeError:
        raise
    except Exception as error:  # pyarrow and tarfile raise their own for damaged files
        raise damaged_error(name, error) from None


def damaged_error(name: str, error: Exception) -> DataError:
    """The error that says why a file of images cannot be read."""
    reason = " ".join(str(error).split())[:160].rstrip(".") or type(error).__name__
    kind = "a tar archive" if name.endswith(".tar") else "Parquet"
    return DataError(f"{name}: cannot be read as {kind} ({reason}); is it whole?")


def local_split(source: str) -> tuple[Path, str | None]:
    """The path of a source on this machine, and the split of ``DIR:SPLIT``, unless the whole is the
    name of a path.

    A folder inside DIR with the split's name is the path; so is, without a split, the only one with
    ``nshards.txt``, as in the sets of CLIP_benchmark.
    """
    path = local_path(source)
    split = None
    before, colon, after = source.rpartition(":")
    if colon and after and not path.exists() and local_path(before).is_dir():
        path = local_path(before)
        split = after
        return (path / split, None) if (path / split).is_dir() else (path, split)
    splits = sorted(file.parent.name for file in path.glob(f"*/{SHARDS}"))
    if len(splits) > 1:
        raise _several_splits(source, splits)
    return (path / splits[0] if splits else path), split


def expand_files(source: str, suffix: str) -> list[str]:
    """Paths of the files named by a source: one file, ``{00..11}`` ranges, or a folder of files;
    empty if none.
    """
    path, split = local_split(source)
    if path.is_dir():
        return _in_folder(source, path, suffix, split)
    if path.suffix != suffix:
        return []
    files = [str(path)] if path.exists() else expand_ranges(str(path))
    if missing := [file for file in files if not Path(file).is_file()]:
        raise DataError(
            f"{source}: no such file" + (f": {shorten(missing)}" if len(files) > 1 else "")
        )
    return files


def expand_ranges(text: str) -> list[str]:
    """Expand numeric ranges in a path or address, with the leading zeros of their first number.

    Example:
        >>> expand_ranges("val-{08..10}.tar")
        ['val-08.tar', 'val-09.tar', 'val-10.tar']
    """
    pieces = _RANGE.split(text)  # text, first, last, text, first, last, ..., text
    ranges: list[range] = []
    for begin, end in zip(pieces[1::3], pieces[2::3], strict=True):
        if int(end) < int(begin):
            raise DataError(f"{text}: {{{begin}..{end}}} runs backwards; write {{{end}..{begin}}}")
        ranges.append(range(int(begin), int(end) + 1))
    if (count := math.prod(map(len, ranges))) > MAX_FILES:
        raise DataError(
            f"{text}: names {count} files, more than {MAX_FILES}; give the range of those there are"
        )
    files = pieces[:1]
    for numbers, begin, after in zip(ranges, pieces[1::3], pieces[3::3], strict=True):
        files = [f"{file}{number:0{len(begin)}}{after}" for file in files for number in numbers]
    return files


def _in_folder(source: str, folder: Path, suffix: str, split: str | None) -> list[str]:
    files = sorted(
        file
        for file in folder.glob(f"*{suffix}")
        if file.is_file() and not file.name.startswith(".")
    )
    refuse_links(source, folder, files)
    if suffix == ".tar" and (folder / SHARDS).is_file():
        names = {file.name for file in files}
        shards = describe_folder(folder).shard_names(source, folder, names)
        files = [folder / name for name in shards]
    splits: dict[str, list[str]] = {}
    for file in files:
        splits.setdefault(_SHARD.sub("", file.stem), []).append(str(file))
    if split is not None and files:
        if split not in splits:
            hint = did_you_mean(split, splits)
            raise DataError(f"{source}: no split '{split}' (splits: {shorten(splits)}).{hint}")
        return splits[split]
    sharded = sorted(name for name, (first, *_) in splits.items() if Path(first).stem != name)
    if len(sharded) > 1:
        raise _several_splits(source, sharded)
    return list(map(str, files))


def _several_splits(source: str, splits: list[str]) -> DataError:
    return DataError(
        f"{source}: holds several splits ({shorten(splits)}); write {source}:{splits[0]}"
    )


def refuse_links(source: str, folder: Path, files: Iterable[Path]) -> None:
    """Refuse files of a source that are links out of its folder, because they may lead to
    anything.
    """
    if leading_out := [
        str(file) for file in files if file.is_symlink() and not lies_in(folder, file)
    ]:
        raise DataError(
            f"{source}: {shorten(leading_out, 3)} are links out of it; put the files themselves"
            " there, or give the folder that holds them"
        )


def local_inputs(*named: str | Path | None) -> list[Path]:
    """Local files and folders named by flags, with or without ``{00..11}`` ranges; an output must
    not contain them.
    """
    paths: list[Path] = []
    for text in [str(name) for name in named if name]:
        # braces may also be part of a name
        folder = local_path(text.rpartition(":")[0])  # of DIR:SPLIT
        texts = [text] if local_path(text).exists() else expand_ranges(split_part(text)[0])
        paths += [folder] if ":" in text and folder.is_dir() else []
        paths += map(local_path, texts)
    return [path for path in paths if path.exists()]
