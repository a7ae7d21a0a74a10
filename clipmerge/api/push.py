"""`clipmerge push`: publish an output folder on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from clipmerge.config import PushOptions, complete_options, with_options
from clipmerge.errors import UsageError, shorten
from clipmerge.files.paths import local_path
from clipmerge.request import command_line
from clipmerge.types import Json, StrPath

if TYPE_CHECKING:
    from clipmerge.output.record import Published


@with_options(PushOptions)
def push(
    folder: StrPath,
    repo_id: str,
    **options: Unpack[PushOptions],
) -> Published:
    """Check an output folder and publish it on the Hugging Face Hub, in one commit or none.

    Args:
        folder: Folder written by `merge` or `apply`; it is not changed.
        repo_id: ``org/name``; created if it does not exist.
        **options: See `PushOptions`.

    Returns:
        The page, the commit, and whether anything was created or changed.

    Raises:
        OutputError: If the folder is not a complete output.
        UsageError: If the name cannot be used, or the licences differ.
        HubError: If the Hub refuses or fails; the message says what was published and how to go on.
    """
    from clipmerge.publish import push as publishing

    settings: Json = {**complete_options(PushOptions, options)}
    settings["evaluations"] = tuple(map(local_path, settings["evaluations"] or ()))
    command = command_line()
    reports = settings.pop("progress")
    reports.stage("publish")
    published = publishing.push(local_path(folder), repo_id, **settings, command=command)
    if published.not_published:
        reports.say(
            f"{shorten(published.not_published)} not pushed from {folder}: not written by the merge"
        )
    return published


def check_push(repo_id: str, output: Path | None, *, private: bool, command: str) -> None:
    """Refuse a push that will fail, before measuring, which takes minutes; ``command`` repeats all
    of it.
    """
    from clipmerge.publish.push import check_access

    if output is None:
        raise UsageError("`push` needs `output`: a dry run writes nothing to push")
    check_access(output, repo_id, private=private, command=command)
