"""Paths as users write them, and the user's folders of plugins, recipes and cached files."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

from clipmerge.errors import UsageError
from clipmerge.types import StrPath

#: Prefix of temporary folders for a model in memory.
IN_MEMORY = "clipmerge-in-memory-"


def plugin_folders() -> tuple[Path, ...]:
    """List the folders in the environment variable ``CLIPMERGE_PLUGINS``."""
    listed = os.environ.get("CLIPMERGE_PLUGINS", "")
    folders = tuple(Path(folder).absolute() for folder in listed.split(os.pathsep) if folder)
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(
                f"CLIPMERGE_PLUGINS: {folder} is not a folder; list folders of plugins, with"
                f" '{os.pathsep}' between them"
            )
    return folders


def recipe_files() -> dict[str, Path]:
    """List clipmerge's recipe files and those in the user's folders, by name, sorted."""
    shipped = Path(__file__).parents[1] / "recipes"
    if not shipped.is_dir():  # in a git checkout
        shipped = shipped.parents[1] / "recipes"
    files = {}
    for folder in (*(folder / "recipes" for folder in plugin_folders()[::-1]), shipped):
        for file in folder.glob("*.yaml"):
            files[file.stem] = file
    return dict(sorted(files.items()))


def local_path(source: StrPath) -> Path:
    """Expand ``~`` and ``~user`` in a path, unless the home folder is unknown.

    Raises:
        UsageError: If the system allows no path like this.
    """
    path = Path(source)
    # no such user, or no home folder, as for numeric users in containers
    with suppress(RuntimeError):
        path = path.expanduser()
    try:
        path.lstat()
    except (OSError, ValueError) as error:
        # ValueError: a null character
        if isinstance(error, ValueError) or error.errno == errno.ENAMETOOLONG:
            raise UsageError(f"{path}: cannot be a path ({error.args[-1]}); give another") from None
    return path


def split_part(source: str) -> tuple[str, str | None]:
    """Split a source such as ``last.pt#ema`` into its path and the part that it names in the file.

    The part is ``None`` if there is no ``#``, or if a file or folder of the whole name exists.

    Example:
        >>> split_part("runs/last.pt#ema"), split_part("runs/last.pt")
        (('runs/last.pt', 'ema'), ('runs/last.pt', None))
    """
    file, _, part = source.rpartition("#")
    if not file or not part or local_path(source).exists():
        return source, None
    return file, part


def source_exists(source: str) -> bool:
    """Whether a source exists on disk; it may name a part, as in ``last.pt#ema``."""
    return local_path(split_part(source)[0]).exists()


def user_cache(name: str) -> Path:
    """Return a folder in the user's cache: ``clipmerge/NAME`` in ``$XDG_CACHE_HOME`` on Linux."""
    # the import takes 0.01 s, which `--help` does not need
    from platformdirs import user_cache_path

    return user_cache_path("clipmerge", appauthor=False) / name


def replace_bytes(file: Path, content: bytes) -> None:
    """Write a small file so that other processes read either the old or the new content."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content)
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)
