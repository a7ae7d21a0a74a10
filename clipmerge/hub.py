"""The Hugging Face Hub: names of models, downloads of one commit, and errors in one line.

A revision is resolved to a commit first, and then only the commit is used: the client's own
download silently uses an old copy when the Hub does not answer.
"""

from __future__ import annotations

import contextlib
import glob
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from clipmerge.errors import ClipmergeError, HubError
from clipmerge.types import Names

_TIMEOUT = 60.0  # seconds for the answer that names the commit
_NAME = r"[A-Za-z0-9_](?:[\w.-]{0,94}[\w])?"
_ID = re.compile(rf"(?:hf://)?(?P<repo>{_NAME}/{_NAME})(?:@(?P<revision>[^\s@]+))?", re.ASCII)
_DATASET = re.compile(rf"hf://datasets/(?P<repo>{_NAME}/{_NAME})(?:@[^:\s]+)?(?::\S+)?", re.ASCII)
_FILE_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".json", ".yaml", ".git")
_LOG_IN = "Log in with `hf auth login`, or set HF_TOKEN, with a token that permits this."
# The next step by class of the error, looked up along the method resolution order. Classes are
# named by text, so that none need be imported: the client has changed its HTTP library.
_REMEDIES = {
    "GatedRepoError": "Accept its conditions on its page on the Hub, then `hf auth login`.",
    "RevisionNotFoundError": "Check the name after the @.",
    "RepositoryNotFoundError": "Check the name; if it is private, `hf auth login` or set HF_TOKEN.",
    "OfflineModeIsEnabled": "Unset HF_HUB_OFFLINE to reach the Hub.",
    "LocalEntryNotFoundError": "It is not in the cache: go online and run again.",
    "LocalTokenNotFoundError": _LOG_IN,
    "TransportError": "Check the connection and HF_ENDPOINT; HF_HUB_OFFLINE=1 uses the cache.",
}
_TRY_AGAIN = "Try again later; HF_HUB_OFFLINE=1 reads from the cache."


@dataclass(frozen=True)
class HubId:
    """The id of a model on the Hub, and a revision: a branch, a tag or a commit."""

    repo_id: str
    revision: str | None = None  # ``None`` is the default branch

    def __str__(self) -> str:
        return self.repo_id if self.revision is None else f"{self.repo_id}@{self.revision}"


def parse_hub_id(source: str) -> HubId | None:
    """Parse ``org/name`` or ``org/name@revision``, perhaps after ``hf://``; ``None`` for other
    texts.

    Example:
        >>> parse_hub_id("hf://openai/clip-vit-base-patch32@refs/pr/3")
        HubId(repo_id='openai/clip-vit-base-patch32', revision='refs/pr/3')
        >>> parse_hub_id("./models/clip") is None
        True
    """
    match = _ID.fullmatch(source)
    if match is None:
        return None
    repo_id = match["repo"]
    if "--" in repo_id or ".." in repo_id or repo_id.endswith(_FILE_SUFFIXES):
        return None
    return HubId(repo_id, match["revision"])


@dataclass(frozen=True)
class Snapshot:
    """A model on the Hub at one commit, and the names of its files."""

    hub_id: HubId  # its revision is the commit
    files: Names = field(default=(), repr=False)
    notes: Names = ()  # offline: the files are those in the cache, and the Hub was not asked

    @property
    def revision(self) -> str:
        """The commit."""
        return str(self.hub_id.revision)

    def download(self, names: Iterable[str]) -> Path:
        """Download files into the cache, and return their folder."""
        import huggingface_hub

        with as_hub_errors(f"downloading {self.hub_id}"):
            folder = huggingface_hub.snapshot_download(
                self.hub_id.repo_id,
                revision=self.revision,
                allow_patterns=[glob.escape(name) for name in names],
            )
        return Path(folder)


def resolve_revision(hub_id: HubId) -> Snapshot:
    """Ask the Hub for the commit of a revision; with ``HF_HUB_OFFLINE`` set, look in the cache."""
    from huggingface_hub import HfApi, constants, snapshot_download

    with as_hub_errors(f"reading {hub_id}"):
        if constants.HF_HUB_OFFLINE:
            # no file is asked for, so only the folder has to exist
            cached = snapshot_download(hub_id.repo_id, revision=hub_id.revision, allow_patterns=[])
            folder = Path(cached)
            sha = folder.name
            cached_names = [file.relative_to(folder).as_posix() for file in folder.rglob("*")]
            note = f"HF_HUB_OFFLINE is set: {hub_id} is the cached commit {sha}, not checked"
            return Snapshot(replace(hub_id, revision=sha), tuple(sorted(cached_names)), (note,))
        info: Any = HfApi(library_name="clipmerge").model_info(
            hub_id.repo_id, revision=hub_id.revision, timeout=_TIMEOUT
        )
    _remember_commit(hub_id, info.sha)
    names = tuple(item.rfilename for item in info.siblings or ())
    return Snapshot(replace(hub_id, revision=info.sha), names)


def _remember_commit(hub_id: HubId, sha: str) -> None:
    """Store in the cache which commit the revision is, as the client does, for offline use."""
    from huggingface_hub import constants

    folder = f"models--{hub_id.repo_id.replace('/', '--')}"
    ref = Path(constants.HF_HUB_CACHE, folder, "refs", hub_id.revision or "main")
    if hub_id.revision != sha:
        with contextlib.suppress(OSError):  # a read-only cache must not stop the download
            ref.parent.mkdir(parents=True, exist_ok=True)
            ref.write_text(sha, encoding="ascii")


@contextlib.contextmanager
def as_hub_errors(action: str) -> Iterator[None]:
    """Turn an error of the Hub's client into one line: the action, the reason and a remedy."""
    try:
        yield
    except ClipmergeError:
        raise
    except Exception as error:
        names = [cls.__name__ for cls in type(error).__mro__]
        status = getattr(getattr(error, "response", None), "status_code", None)
        otherwise = _LOG_IN if status in (401, 403) else _TRY_AGAIN
        remedy = next((_REMEDIES[name] for name in names if name in _REMEDIES), otherwise)
        lines = [line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()]
        # the client's first line may hold only the status, such as "404 Client Error"
        reasons = [line for line in lines if not re.match(r"\d+ \w+ Error", line)]
        raise HubError(f"{action}: {[*reasons, *lines, names[0]][0]}. {remedy}") from error


def dataset_repo(source: str | None) -> str | None:
    """Return the id in ``hf://datasets/org/name...``; ``None`` for any other source.

    Example:
        >>> dataset_repo("hf://datasets/acme/cars@main:test"), dataset_repo("cars")
        ('acme/cars', None)
    """
    match = _DATASET.fullmatch(source or "")
    return match["repo"] if match else None
