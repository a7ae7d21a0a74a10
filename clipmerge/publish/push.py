"""Publish an output folder on the Hugging Face Hub, in one commit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from clipmerge.errors import ClipmergeError, HubError, OutputError, UsageError, shorten
from clipmerge.files import local_path
from clipmerge.files.hashes import sha256_of
from clipmerge.files.staging import RECORD
from clipmerge.planning import Frozen
from clipmerge.planning.record import read_output
from clipmerge.progress import Progress
from clipmerge.report.pages import CARD, REPORT, model_card
from clipmerge.types import StrPath

if TYPE_CHECKING:
    from huggingface_hub import HfApi

# Files that the Hub itself writes into a new repository.
_FRESH = {".gitattributes", CARD}
# Weights in the repository that are not in the folder would be loaded in their place.
_STALE = ["*.safetensors", "*.safetensors.index.json"]


class PushResult(Frozen):
    """The place of a published model: its page, ``org/name`` and the commit."""

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
    """Check an output folder and publish its files, in one commit or none; others stay where they
    are.

    Its model card gets the repository's name, unless it was edited by hand.

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
        HubError: If the Hub refuses or fails.
    """
    folder = local_path(folder)
    progress = progress or Progress()
    progress.stage("publish")
    record = read_output(folder)
    changed = [
        name for name, sha in record.files.items() if sha and sha256_of(folder / name) != sha
    ]
    if changed:
        raise OutputError(f"{folder}: {shorten(changed)} changed since the merge. Merge again.")
    api = check_access(repo_id)
    if record.verdict and record.verdict.recommendation != "use":
        progress.warn(f"publishing a merge of which the verdict says: {record.verdict.sentence}")
    card = folder / CARD
    if not card.exists() or card.read_text(encoding="utf-8") == model_card(record):
        card.write_text(model_card(record, repo_id=repo_id, license=license), encoding="utf-8")
    with _as_hub_errors(repo_id):
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
    """Refuse a push that would fail, or overwrite another model, before anything is learned."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    if repo_id.count("/") != 1 or not all(repo_id.split("/")):
        raise UsageError(f"{repo_id}: not a name on the Hub; write it as ORG/NAME")
    api = HfApi()
    with _as_hub_errors(repo_id):
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


@contextmanager
def _as_hub_errors(repo_id: str) -> Iterator[None]:
    """Say what the Hub's client says in one line, and what to do next."""
    from huggingface_hub.errors import LocalTokenNotFoundError

    try:
        yield
    except ClipmergeError:
        raise
    except Exception as error:  # of the client, of its HTTP library, or of the network
        response = getattr(error, "response", None)
        refused = response is not None and response.status_code in (401, 403)
        hint = "the same command tries again"
        if refused or isinstance(error, LocalTokenNotFoundError):
            hint = f"log in by `hf auth login` with a token that may write to {repo_id}"
        line = str(error).strip().partition("\n")[0].rstrip(".")
        raise HubError(f"push to {repo_id}: {line or type(error).__name__}; {hint}") from error
