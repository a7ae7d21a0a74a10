"""The request of a push and its target repository, which is read, checked and created if missing."""

from __future__ import annotations

import contextlib
import shlex
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from clipmerge.errors import HubError, OutputError, UsageError, shorten
from clipmerge.files.limits import LARGEST_TEXT
from clipmerge.files.reading import Unreadable, read_bytes
from clipmerge.files.staging import RECORD
from clipmerge.hub.download import download, patiently, timeout_seconds
from clipmerge.hub.errors import explained, http_status
from clipmerge.hub.ids import HubId
from clipmerge.output.record import MergeRecord, parse_record
from clipmerge.publish.card import blob_id, body_of

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi

CARD = "README.md"
NOTHING = "Nothing was published."
_UNSURE_CREATED = f"{NOTHING} If the repository was created, it is empty."
# Files that the Hub itself writes into a new repository.
_FRESH = {".gitattributes", CARD, RECORD}


@dataclass(frozen=True)
class Push:
    """The request of one push; no stage changes it."""

    folder: Path
    repo_id: str
    private: bool = False
    revision: str | None = None
    create_pr: bool = False
    message: str | None = None
    license: str | None = None
    yes: bool = False
    evaluations: tuple[Path, ...] = ()
    endpoint: str | None = None

    @property
    def doing(self) -> str:
        """Start of an error line."""
        return f"push to {self.repo_id}"

    @property
    def command(self) -> str:
        """The command line of this push."""
        words = ["clipmerge", "push", str(self.folder), self.repo_id]
        for flag in ("revision", "message", "license"):
            if getattr(self, flag) is not None:
                words += [f"--{flag}", str(getattr(self, flag))]
        for file in self.evaluations:
            words += ["--evaluation", str(file)]
        for flag in ("private", "create_pr", "yes"):
            if getattr(self, flag):
                words.append(f"--{flag.replace('_', '-')}")
        return shlex.join(words)


@dataclass(frozen=True)
class Target:
    """The state of the repository before the push."""

    head: str  # the commit that was read
    files: dict[str, tuple[str, str | None]] = field(repr=False)  # (git blob id, sha256 if large) by name
    record: MergeRecord | None = field(default=None, repr=False)  # its ``clipmerge.json``, if that can be read
    created: bool = False  # by this push
    needs_branch: bool = False  # the branch does not exist yet, and ``head`` is that of the default branch


def find_repository(api: HfApi, job: Push) -> Target | None:
    """Read the state of the repository; None if it does not exist."""
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    with explained(job.doing, state=NOTHING, again=job.command):
        try:
            info = patiently(lambda: api.model_info(job.repo_id, timeout=timeout_seconds()))
        except RepositoryNotFoundError as error:
            if http_status(error) != 404:  # 401 without a code means that the Hub rejects the token
                raise
            return None
        if job.private and info.private is False:
            raise UsageError(
                f"{job.repo_id} exists and is public: --private cannot hide it. {NOTHING} "
                "Make it private in its settings first, or leave --private out."
            )
        try:
            target = read_target(api, job, job.revision)
        except RevisionNotFoundError:
            target = replace(read_target(api, job, None), needs_branch=True)
    if RECORD in target.files:
        with contextlib.suppress(OutputError):
            record = parse_record(_download(job, target, RECORD), f"{job.repo_id}/{RECORD}")
            return replace(target, record=record)
    elif not job.yes and (foreign := sorted(set(target.files) - _FRESH)):
        raise UsageError(
            f"{job.repo_id} exists and holds other files ({shorten(foreign)}). {NOTHING} "
            f"Choose another name, or add --yes to push into it."
        )
    return target


def read_target(api: HfApi, job: Push, revision: str | None) -> Target:
    """Read the head of a revision and its files."""
    from huggingface_hub import RepoFile

    info = patiently(lambda: api.model_info(job.repo_id, revision=revision, timeout=timeout_seconds()))
    head = str(info.sha)
    tree = patiently(lambda: list(api.list_repo_tree(job.repo_id, recursive=True, revision=head)))
    files = {
        item.path: (item.blob_id, item.lfs.sha256 if item.lfs else None) for item in tree if isinstance(item, RepoFile)
    }
    return Target(head, files)


def _download(job: Push, target: Target, name: str) -> str:
    folder = download(HubId(job.repo_id, target.head), [name], endpoint=job.endpoint)
    try:
        return read_bytes(folder / name, LARGEST_TEXT).decode("utf-8", errors="replace")
    except Unreadable as error:
        raise HubError(f"{job.doing}: {name} there cannot be read ({error}). {NOTHING}") from None


def check_card(job: Push, target: Target, ours: bytes = b"") -> None:
    """Refuse to overwrite a model card that somebody wrote by hand.

    A card is clipmerge's own if the record beside it names its blob. A card with front matter only, as written by the
    Hub's page for new repositories, may be overwritten.
    """
    held = target.files.get(CARD, ("",))[0]
    if not held or job.yes or job.create_pr or target.needs_branch:
        return
    if held in (blob_id(ours), target.record and target.record.card):
        return
    if not target.record and not body_of(_download(job, target, CARD)):
        return
    origin = "was edited since clipmerge wrote it" if target.record else "was not written by clipmerge"
    raise UsageError(
        f"{job.doing}: {CARD} there {origin}, and would be overwritten. {NOTHING} Save what you need of it, then "
        f"`{replace(job, yes=True).command}`, or open a pull request with --create-pr."
    )


def create_repository(api: HfApi, job: Push) -> Target:
    """Create an empty repository."""
    if job.create_pr:
        raise HubError(
            f"{job.doing}: not on the Hub, or private, so no pull request can be opened. {NOTHING} "
            "Leave --create-pr out to create it."
        )
    with explained(job.doing, state=_UNSURE_CREATED, again=job.command):
        api.create_repo(job.repo_id, private=job.private or None, exist_ok=True)
    branch = job.revision not in (None, "main")
    empty = Target("", {}, created=True)
    with explained(job.doing, state=state_after(job, empty), again=job.command):
        return replace(read_target(api, job, None), created=True, needs_branch=branch)


def state_after(job: Push, target: Target) -> str:
    """Describe the state of the repository after a failed upload."""
    if target.created:
        return f"The repository {job.repo_id} was created and is empty: no file was published."
    if target.needs_branch:
        return f"{NOTHING} The branch {job.revision} may have been created from main."
    return NOTHING


def is_same(addition: CommitOperationAdd, held: tuple[str, str | None] | None) -> bool:
    """Return whether the Hub already holds exactly this file."""
    if held is None:
        return False
    if held[1] is not None:
        return bool(addition.upload_info.sha256.hex() == held[1])
    with addition.as_file() as file:
        return blob_id(file.read()) == held[0]
