"""Files on disk: paths as users write them; reading, hashing and writing have their own modules.

Importing it takes no time.
"""

from __future__ import annotations

import os
from glob import glob, has_magic
from pathlib import Path

from clipmerge.errors import UsageError
from clipmerge.types import StrPath

#: Temporary folders have this prefix that hold one model in memory, in a folder of its name.
IN_MEMORY = "clipmerge-in-memory-"


def is_plain_name(name: object) -> bool:
    """Whether a text from a file is a plain file name in the same folder, not a path."""
    if not isinstance(name, str) or name in ("", ".", ".."):
        return False
    return "/" not in name and "\\" not in name


#: The variable that lists the user's folders of plugins.
PLUGINS = "CLIPMERGE_PLUGINS"


def plugin_folders() -> tuple[Path, ...]:
    """The user's folders of plugins: those that the variable ``CLIPMERGE_PLUGINS`` lists."""
    listed = os.environ.get(PLUGINS, "")
    folders = tuple(Path(folder).absolute() for folder in listed.split(os.pathsep) if folder)
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(
                f"CLIPMERGE_PLUGINS: {folder} is not a folder; it lists folders of plugins, with"
                f" '{os.pathsep}' between them"
            )
    return folders


def recipe_files() -> dict[str, Path]:
    """The files of all recipes by name, sorted: the shipped ones, and ``recipes/`` in the user's
    folders of plugins; the shipped one where both have a name.
    """
    shipped = Path(__file__).parents[1] / "recipes"
    if not shipped.is_dir():  # in a checkout they are at its top
        shipped = shipped.parents[1] / "recipes"
    files = {}
    for folder in (*(folder / "recipes" for folder in plugin_folders()[::-1]), shipped):
        for file in folder.glob("*.yaml"):
            files[file.stem] = file
    return dict(sorted(files.items()))


def local_path(source: StrPath) -> Path:
    """A path on disk, with ``~`` and ``~user`` expanded; an unknown home is left unchanged."""
    path = Path(source)
    try:
        return path.expanduser()
    except RuntimeError:
        # no such user, or no home folder, as in containers that run under a numeric user
        return path


def split_part(source: str) -> tuple[str, str | None]:
    """Split a source such as ``last.pt#ema`` into the place and the name of a part of it.

    If a file or folder with ``#`` in its own name exists, it is meant.

    Example:
        >>> split_part("runs/last.pt#ema"), split_part("runs/last.pt")
        (('runs/last.pt', 'ema'), ('runs/last.pt', None))
    """
    file, _, part = source.rpartition("#")
    if not file or not part or local_path(source).exists():
        return source, None
    return file, part


def glob_files(pattern: str) -> list[Path]:
    """The files that a pattern such as ``shards/*.tar`` stands for, sorted."""
    if not has_magic(pattern) or local_path(pattern).exists():
        return []
    return sorted(map(Path, glob(str(local_path(pattern)))))  # noqa: PTH207  # a Path knows no "."


def source_exists(source: str) -> bool:
    """Whether a source exists at its path or in the working folder; the name of a part is
    ignored.
    """
    return local_path(split_part(source)[0]).exists()


def user_cache(name: str) -> Path:
    """Return a folder in the user's cache: on Linux ``clipmerge/NAME`` in ``$XDG_CACHE_HOME`` or
    ``~/.cache``.
    """
    # imported here because it takes 0.01 s, which ``--help`` saves
    from platformdirs import user_cache_path

    return user_cache_path("clipmerge", appauthor=False) / name


def replace_bytes(file: Path, content: bytes) -> None:
    """Write a small file; concurrent readers see either the old or the new one completely."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content)
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)
