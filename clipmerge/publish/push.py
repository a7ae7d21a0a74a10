"""Publish an output folder on the Hugging Face Hub, in one commit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clipmerge.errors import OutputError, UsageError, shorten
from clipmerge.files import local_path
from clipmerge.files.hashes import sha256_of
from clipmerge.files.staging import RECORD
from clipmerge.hub import as_hub_errors
from clipmerge.planning import Frozen
from clipmerge.planning.record import read_output
from clipmerge.progress import Progress, default_progress
from clipmerge.report.pages import CARD, REPORT, model_card
from clipmerge.types import StrPath

if TYPE_CHECKING:
    from huggingface_hub import HfApi

# Files that the Hub itself writes into a new repository.
_FRESH = {".gitattributes", CARD}
# Older weights in the repository, which would be loaded too. They are deleted unless the folder has
# files of the same name.
_STALE = ["*.safetensors", "*.safetensors.index.json"]


class PushResult(Frozen):
    """A published model: its page, ``org/name`` and the commit."""

    url: str
    repo_id: str
    commit: str


def push(
    folder: StrPath,
    repo_id: str,
    *,
    private: bool = False,
    license: str | None = None,
    progress: Progress | None = None,
) -> PushResult:
    """Check an output folder, and publish its files in one commit.

    The model card gets the repository's name, unless somebody has edited the card.

    Args:
        folder: Folder written by `merge` or `apply`.
        repo_id: ``org/name``; created if it does not exist.
        private: Whether to create a private repository.
        license: Licence to publish under, such as ``mit``.
        progress: See `merge`.

    Returns:
        The page and the commit.

    Raises:
        OutputError: If the folder is not a complete output.
        UsageError: If the name cannot be used.
        HubError: If the Hub denies access or fails.
    """
    folder = local_path(folder)
    progress = progress or default_progress()
    progress.stage("publish")
    record = read_output(folder)
    changed = [
        name for name, sha in record.files.items() if sha and sha256_of(folder / name) != sha
    ]
    if changed:
        raise OutputError(f"{folder}: {shorten(changed)} changed since the merge. Merge again.")
    api = check_access(repo_id)
    if record.verdict and record.verdict.recommendation != "use":
        progress.warn(f"the verdict on this merge is: {record.verdict.sentence}")
    card = folder / CARD
    if not card.exists() or card.read_text(encoding="utf-8") == model_card(record):
        card.write_text(model_card(record, repo_id=repo_id, license=license), encoding="utf-8")
    with as_hub_errors(f"push to {repo_id}"):
        api.create_repo(repo_id, private=private or None, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            allow_patterns=[*record.files, CARD, REPORT, RECORD],
            delete_patterns=_STALE,
            commit_message="Upload a model merged with clipmerge",
        )
    return PushResult(url=f"{api.endpoint}/{repo_id}", repo_id=repo_id, commit=commit.oid)


def check_access(repo_id: str) -> HfApi:
    """Check before a merge that a push may write, and that it would not replace another model."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    if repo_id.count("/") != 1 or not all(repo_id.split("/")):
        raise UsageError(f"{repo_id}: not a name on the Hub; write it as ORG/NAME")
    api = HfApi()
    with as_hub_errors(f"push to {repo_id}"):
        api.whoami()
        try:
            files = set(api.list_repo_files(repo_id))
        except RepositoryNotFoundError:
            return api
    if RECORD not in files and (others := sorted(files - _FRESH)):
        raise UsageError(
            f"{repo_id} exists and holds something else ({shorten(others)}). Nothing was"
            " published. Choose another name."
        )
    return api
