"""`clipmerge push`: publish an output folder on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from clipmerge.config import PushOptions, complete_options, with_options
from clipmerge.errors import UsageError
from clipmerge.files.paths import local_path
from clipmerge.types import StrPath

if TYPE_CHECKING:
    from clipmerge.publish.push import Published


@with_options(PushOptions)
def push(
    folder: StrPath,
    repo_id: str,
    **options: Unpack[PushOptions],
) -> Published:
    """Publish an output folder on the Hugging Face Hub, in one commit.

    Args:
        folder: Folder written by `merge` or `apply`; its model card gets the repository's name.
        repo_id: ``org/name``; created if it does not exist.
        **options: See `PushOptions`.

    Returns:
        The page and the commit.

    Raises:
        OutputError: If the folder is not a complete output.
        UsageError: If the name cannot be used, or is that of something else.
        HubError: If the Hub refuses or fails.
    """
    from clipmerge.publish import push as publishing

    settings = complete_options(PushOptions, options)
    reports = settings["progress"]
    reports.stage("publish")
    return publishing.push(
        local_path(folder),
        repo_id,
        private=settings["private"],
        license=settings["license"],
        say=reports.say,
    )


def check_push(repo_id: str, output: Path | None) -> None:
    """Refuse a push that would fail, before anything is learned."""
    from clipmerge.publish.push import check_access

    if output is None:
        raise UsageError("`push` needs `output`: without it nothing is written to push")
    check_access(repo_id)
