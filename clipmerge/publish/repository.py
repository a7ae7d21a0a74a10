"""What a push asks for, and the repository that it meets: read, judged, and created where it is not there."""

from __future__ import annotations

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
# What a repository may hold without being somebody's work: the Hub writes these itself.
_FRESH = {".gitattributes", CARD, RECORD}


@dataclass(frozen=True)
class Push:
    """One push as asked for; every stage reads it and none changes it."""

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
        """Begin an error line."""
        return f"push to {self.repo_id}"

    @property
    def command(self) -> str:
        """Spell out the command that does this push."""
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
    """The repository as it was found.

    Attributes:
        head: Commit that was read.
        files: File name to (git blob id, sha256 if large).
        record: The ``clipmerge.json`` that it holds; ``None`` without one that can be read.
        created: Whether this push made it.
        needs_branch: Whether the branch asked for is not there yet; ``head`` is then the default branch's.
    """

    head: str
    files: dict[str, tuple[str, str | None]] = field(repr=False)
    record: MergeRecord | None = field(default=None, repr=False)
    created: bool = False
    needs_branch: bool = False


def find_repository(api: HfApi, asked: Push) -> Target | None:
    """Look at the repository; None when it does not exist.

    Raises:
        UsageError: If it is public and should be private, or holds something else.
        HubError: If it cannot be read.
    """
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    with explained(asked.doing, state=NOTHING, again=asked.command):
        try:
            info = patiently(lambda: api.model_info(asked.repo_id, timeout=timeout_seconds()))
        except RepositoryNotFoundError as error:
            if http_status(error) != 404:  # 401 without a code means a token the Hub does not take
                raise
            return None
        if asked.private and info.private is False:
            raise UsageError(
                f"{asked.repo_id} exists and is public: --private cannot hide it. {NOTHING} "
                "Make it private in its settings first, or leave --private out."
            )
        try:
            target = read_target(api, asked, asked.revision)
        except RevisionNotFoundError:
            target = replace(read_target(api, asked, None), needs_branch=True)
    _check_content(asked, target)
    return replace(target, record=_held_record(asked, target))


def read_target(api: HfApi, asked: Push, revision: str | None) -> Target:
    """Read the head of a revision and its files."""
    from huggingface_hub import RepoFile

    info = patiently(lambda: api.model_info(asked.repo_id, revision=revision, timeout=timeout_seconds()))
    head = str(info.sha)
    tree = patiently(lambda: list(api.list_repo_tree(asked.repo_id, recursive=True, revision=head)))
    files = {
        item.path: (item.blob_id, item.lfs.sha256 if item.lfs else None) for item in tree if isinstance(item, RepoFile)
    }
    return Target(head, files)


def _check_content(asked: Push, target: Target) -> None:
    foreign = sorted(set(target.files) - _FRESH)
    if foreign and RECORD not in target.files and not asked.yes:
        raise UsageError(
            f"{asked.repo_id} exists and holds something else ({shorten(foreign)}). {NOTHING} "
            f"Choose another name, or add --yes to push into it."
        )


def _held_record(asked: Push, target: Target) -> MergeRecord | None:
    """Read the record that an earlier push left there."""
    if RECORD not in target.files:
        return None
    try:
        return parse_record(_download(asked, target, RECORD), f"{asked.repo_id}/{RECORD}")
    except OutputError:
        return None


def _download(asked: Push, target: Target, name: str) -> str:
    folder = download(HubId(asked.repo_id, target.head), [name], endpoint=asked.endpoint)
    try:
        return read_bytes(folder / name, LARGEST_TEXT).decode("utf-8", errors="replace")
    except Unreadable as error:
        raise HubError(f"{asked.doing}: {name} there cannot be read ({error}). {NOTHING}") from None


def check_card(asked: Push, target: Target, ours: bytes = b"") -> None:
    """Refuse to run over a model card that somebody wrote by hand.

    A card is clipmerge's own when the record beside it names its blob. One of front matter alone, as the Hub's page
    for new repositories writes, may go.

    Args:
        asked: The push; ``--yes`` and ``--create-pr`` do without.
        target: The repository as it was found.
        ours: The card to be published.

    Raises:
        UsageError: If the card there would be lost.
        HubError: If it cannot be read.
    """
    held = target.files.get(CARD, ("",))[0]
    if not held or asked.yes or asked.create_pr or target.needs_branch:
        return
    if held in (blob_id(ours), target.record and target.record.card):
        return
    if not target.record and not body_of(_download(asked, target, CARD)):
        return
    told = "was edited since clipmerge wrote it" if target.record else "was not written by clipmerge"
    raise UsageError(
        f"{asked.doing}: {CARD} there {told}, and would be overwritten. {NOTHING} Keep what you need of it, then "
        f"`{replace(asked, yes=True).command}`, or open a pull request with --create-pr."
    )


def create_repository(api: HfApi, asked: Push) -> Target:
    """Create the repository, empty.

    Raises:
        HubError: If the Hub refuses or fails; the message says whether there is an empty repository now.
    """
    if asked.create_pr:
        raise HubError(
            f"{asked.doing}: not on the Hub, or private, so no pull request can be opened. {NOTHING} "
            "Leave --create-pr out to create it."
        )
    with explained(asked.doing, state=_UNSURE_CREATED, again=asked.command):
        api.create_repo(asked.repo_id, private=asked.private or None, exist_ok=True)
    branch = asked.revision not in (None, "main")
    empty = Target("", {}, created=True)
    with explained(asked.doing, state=state_after(asked, empty), again=asked.command):
        return replace(read_target(api, asked, None), created=True, needs_branch=branch)


def state_after(asked: Push, target: Target) -> str:
    """Say what an upload that failed leaves behind."""
    if target.created:
        return f"The repository {asked.repo_id} was created and is empty: no file was published."
    if target.needs_branch:
        return f"{NOTHING} The branch {asked.revision} may have been created, as it stands on main."
    return NOTHING


def is_same(addition: CommitOperationAdd, held: tuple[str, str | None] | None) -> bool:
    """Say whether the Hub holds a file as it would be published."""
    if held is None:
        return False
    if held[1] is not None:
        return bool(addition.upload_info.sha256.hex() == held[1])
    with addition.as_file() as file:
        return blob_id(file.read()) == held[0]
