"""`clipmerge push`: publish an output folder on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipmerge.files.paths import local_path
from clipmerge.options import MergeOptions, PushOptions
from clipmerge.progress import Journal, Progress
from clipmerge.types import StrPath

if TYPE_CHECKING:
    from clipmerge.publish.push import Published


def push(
    folder: StrPath, repo_id: str, *, progress: Progress | None = None, **options: Any
) -> Published:
    """Check an output folder and publish it on the Hugging Face Hub, in one commit or none.

    Args:
        folder: Folder written by `merge` or `apply`; it is not changed.
        repo_id: ``org/name``; created if it does not exist.
        progress: See `merge`.
        **options: The fields of `clipmerge.options.PushOptions`.

    Returns:
        The page and the commit.

    Raises:
        OutputError: If the folder is not a complete output.
        UsageError: If the name cannot be used.
        HubError: If the Hub refuses or fails.
    """
    return push_output(local_path(folder), repo_id, PushOptions.of(options), Journal(progress))


def push_output(
    folder: Path, repo_id: str, options: PushOptions | MergeOptions, journal: Journal
) -> Published:
    """Publish the output of this run."""
    from clipmerge.publish.push import push

    journal.stage("publish")
    return push(folder, repo_id, private=options.private, license=options.license, say=journal.warn)


def check_push(repo_id: str) -> None:
    """Refuse a push that will fail, before measuring, which takes minutes."""
    from clipmerge.publish.push import check_access

    check_access(repo_id)
