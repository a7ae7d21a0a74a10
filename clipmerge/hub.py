"""The Hugging Face Hub: names of models, downloads of one commit, and errors in one line.

A revision is resolved to a commit first, and then only the commit is used: the client's own
download silently uses an old copy when the Hub does not answer.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipmerge.errors import ClipmergeError, HubError
from clipmerge.types import Names

_TIMEOUT = 60.0  # seconds for the answer that names the commit
_ID = re.compile(r"(?:hf://)?(\w[\w.-]*/\w[\w.-]*)(?:@([^\s@]+))?", re.ASCII)
# Names that the Hub refuses, and names of files: these are paths that do not exist.
_NO_MODEL = re.compile(r"--|\.\.|\.(?:safetensors|bin|pt|pth|ckpt|pkl|json|yaml|git)$")
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
class Snapshot:
    """A model on the Hub at one commit, and the names of its files."""

    repo_id: str
    revision: str  # the commit
    files: Names = field(repr=False)
    notes: Names = ()  # offline: the files are those in the cache, and the Hub was not asked

    def __str__(self) -> str:
        return f"{self.repo_id}@{self.revision}"

    def download(self, patterns: list[str]) -> Path:
        """Download the files whose names match a pattern into the cache, and return their
        folder.
        """
        import huggingface_hub

        with as_hub_errors(f"downloading {self}"):
            folder = huggingface_hub.snapshot_download(
                self.repo_id, revision=self.revision, allow_patterns=patterns
            )
        return Path(folder)


def find_snapshot(source: str) -> Snapshot | None:
    """Ask the Hub for the commit of ``org/name`` or ``org/name@revision``, perhaps after ``hf://``;
    with ``HF_HUB_OFFLINE`` set, look in the cache. Return ``None`` for other texts.

    Example:
        >>> find_snapshot("./models/clip") is None
        True
    """
    match = _ID.fullmatch(source)
    if match is None or _NO_MODEL.search(match[1]):
        return None
    from huggingface_hub import HfApi, constants, snapshot_download

    repo_id, revision = match.groups()
    with as_hub_errors(f"reading {source}"):
        if constants.HF_HUB_OFFLINE:
            # no file is asked for, so only the folder has to exist
            folder = Path(snapshot_download(repo_id, revision=revision, allow_patterns=[]))
            names = [file.relative_to(folder).as_posix() for file in folder.rglob("*")]
            note = (
                f"HF_HUB_OFFLINE is set: {source} is the cached commit {folder.name}, not checked"
            )
            return Snapshot(repo_id, folder.name, tuple(sorted(names)), (note,))
        info: Any = HfApi(library_name="clipmerge").model_info(
            repo_id, revision=revision, timeout=_TIMEOUT
        )
    _remember_commit(repo_id, revision or "main", info.sha)
    return Snapshot(repo_id, info.sha, tuple(file.rfilename for file in info.siblings or ()))


def _remember_commit(repo_id: str, revision: str, sha: str) -> None:
    """Store in the cache which commit the revision is, as the client does, for offline use."""
    from huggingface_hub import constants

    folder = f"models--{repo_id.replace('/', '--')}"
    ref = Path(constants.HF_HUB_CACHE, folder, "refs", revision)
    if revision != sha:
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
    match = re.match(r"hf://datasets/([\w.-]+/[\w.-]+)", source or "")
    return match[1] if match else None
