"""Push a merged model to the Hugging Face Hub: check first, then make one commit or none.

A push reads before it writes: the folder, the token, the sources' licences and the contents of the
repository. Only then is a repository created and one commit made, with the head that was read as
its parent, so that a push never overwrites somebody else's. If an answer is lost, the error says
so, and the same command sends what is missing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipmerge.errors import ClipmergeError, HubError, OutputError, UsageError, adding_note, shorten
from clipmerge.files.hashes import sha256_of
from clipmerge.files.limits import MAX_TEXT_BYTES
from clipmerge.files.reading import read_bytes, refusing
from clipmerge.files.side_files import SIDE_FILES, find_inside, holds_a_secret, side_file_bytes
from clipmerge.files.staging import PLAN_FOLDER, RECORD
from clipmerge.hub.download import Snapshot, connect, with_retries
from clipmerge.hub.errors import explain, explained, out_of_reach, quiet_client
from clipmerge.hub.ids import HubId, parse_hub_id
from clipmerge.output.record import Published, Record, parse_record, read_output
from clipmerge.publish.card import blob_id, body_of, published_texts
from clipmerge.publish.evaluations import KEYS, add_results
from clipmerge.report.page import EXAMPLES_PICTURE, PATH_PICTURE
from clipmerge.types import Names

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi

CARD = "README.md"
NOTHING = "Nothing was published."
_UNSURE_CREATED = f"{NOTHING} If the repository was created, it is empty."
# Files that the Hub itself writes into a new repository.
_FRESH = {".gitattributes", CARD, RECORD}
# Files that are not published as they are in the folder, but made again from the public record.
_MADE = frozenset({CARD, RECORD, PATH_PICTURE, EXAMPLES_PICTURE})


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
    dry_run: bool = False  # check everything, and change nothing
    evaluations: tuple[Path, ...] = ()
    command: str = ""  # repeats this push; empty for a training, which has none

    @property
    def again(self) -> str:
        """How to repeat it, in words."""
        return f"`{self.command}`" if self.command else "start again"

    @property
    def doing(self) -> str:
        """Start of an error line."""
        return f"push to {self.repo_id}"


@dataclass(frozen=True)
class Target:
    """The state of the repository before the push."""

    head: str  # the commit that was read
    # (git blob id, sha256 if large) by name
    files: dict[str, tuple[str, str | None]] = field(repr=False)
    # its ``clipmerge.json``, if that can be read
    record: Record | None = field(default=None, repr=False)
    created: bool = False  # by this push
    needs_branch: bool = (
        False  # the branch does not exist yet, and ``head`` is that of the default branch
    )


def push(folder: Path, repo_id: str, **settings: Any) -> Published:
    """Publish a merged model's folder, which is not changed itself, with the further settings of a
    `Push`.

    The model card is written again with the repository's name, and local paths in
    ``clipmerge.json`` and ``report.html`` are reduced to their last component. Files that are not
    part of the output are not published. Weights in the repository that are not in the folder are
    deleted in the same commit, so that no loader uses them.
    """
    job = Push(folder, repo_id, **settings)
    _check_names(job)
    record = add_results(read_output(job.folder), job.evaluations)
    api = connect()
    _check_token(api, job)
    licence = job.license or _common_licence(api, job, record)
    target = find_repository(api, job)
    earlier = target.record if target and not job.evaluations else None
    # the same weights keep their accuracies
    if earlier and record.files and record.files == earlier.files:
        accuracies = {key: getattr(earlier, key) for key in KEYS}
        record = record.model_copy(
            update={key: value for key, value in accuracies.items() if value is not None}
        )
    texts = published_texts(job.folder, record, repo_id=repo_id, license=licence)
    additions = _files_to_publish(job, record, texts)
    if target:
        check_card(job, target, texts[CARD])
    left = _not_published(job.folder, additions)
    page = f"{api.endpoint}/{job.repo_id}"
    url = page if job.revision in (None, "main") else f"{page}/tree/{job.revision}"
    done = None
    would_change: Names = ()
    if job.dry_run:
        target = target or Target(head="", files={})
        would_change = tuple(change.path_in_repo for change in _changes(target, additions))
    else:
        way_out = f": `{job.command}` checks that and continues" if job.command else ""
        doubt = f"whether {repo_id} was published is not known{way_out}"
        with adding_note(doubt, unless=ClipmergeError):  # whose messages say so themselves
            target = target or create_repository(api, job)
            changes = _changes(target, additions)
            done = _commit(api, job, target, changes) if changes else None
    return Published(
        url=url,
        repo_id=job.repo_id,
        commit=done.oid if done else target.head,
        created=target.created,
        changed=done is not None,
        pull_request=done.pr_url if done else None,
        not_published=left,
        would_change=would_change,
    )


def check_access(folder: Path, repo_id: str, *, private: bool, command: str) -> None:
    """Check a push's name, token and repository before the output exists."""
    job = Push(folder, repo_id, private, command=command)
    api = connect()
    _check_names(job)
    _check_token(api, job)
    target = find_repository(api, job)
    if target:
        check_card(job, target)


def _check_names(job: Push) -> None:
    hub_id = parse_hub_id(job.repo_id)
    if hub_id is None or hub_id.revision or job.repo_id.startswith("hf:"):
        raise UsageError(
            f"{job.repo_id}: not a name on the Hub. Write it as ORG/NAME; use `revision` for a"
            " branch."
        )
    if job.create_pr and job.revision not in (None, "main"):
        raise UsageError("`create_pr=True` opens a pull request on main: leave `revision` out.")


def _check_token(api: HfApi, job: Push) -> None:
    """Look up the token's owner and stop early if the Hub will refuse the push."""
    from huggingface_hub import get_token

    if get_token() is None:
        raise HubError(
            f"{job.doing}: no token. {NOTHING} Log in with `hf auth login` or set HF_TOKEN, then"
            f" {job.again}."
        )
    with explained(job.doing, state=NOTHING, again=job.command):
        me = with_retries(api.whoami)
    role = me.get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        raise HubError(
            f"{job.doing}: the token may only read. {NOTHING} Make one that may write at "
            f"https://huggingface.co/settings/tokens, `hf auth login`, then {job.again}."
        )
    mine = [me["name"], *(org["name"] for org in me.get("orgs", []))]
    namespace, name = job.repo_id.split("/")
    if namespace not in mine and not job.create_pr:
        raise HubError(
            f"{job.doing}: the token's owner may write to {', '.join(mine)}, not to {namespace}."
            f" {NOTHING} Push to {mine[0]}/{name}, or open a pull request with `create_pr=True`."
        )


def _common_licence(api: HfApi, job: Push, record: Record) -> str | None:
    """Return the common licence of all sources on the Hub; local sources have none and are
    ignored.
    """
    stated: dict[str, str | None] = {}
    for _, source in record.checkpoints:
        if source.revision and (hub_id := parse_hub_id(source.source)):
            pinned = hub_id.at(source.revision)
            state = (
                f"{NOTHING} Its licence is needed: `license` NAME sets it without asking the Hub."
            )
            with explained(f"reading {pinned}", state=state, again=job.command):
                info = with_retries(
                    partial(api.model_info, pinned.repo_id, revision=pinned.revision)
                )
            licence = info.card_data and info.card_data.get("license")
            stated[hub_id.repo_id] = str(licence) if licence else None
    if len(set(stated.values())) > 1 or "other" in stated.values():
        listed = ", ".join(
            f"{name}: {licence or 'none stated'}" for name, licence in stated.items()
        )
        raise UsageError(
            f"the sources' licences differ or are 'other' ({listed}). {NOTHING} Pass `license`"
            " NAME."
        )
    return next(iter(stated.values()), None)


def _files_to_publish(
    job: Push, record: Record, texts: dict[str, bytes]
) -> list[CommitOperationAdd]:
    """List all files to publish; large ones are checked against the hashes in the record."""
    from huggingface_hub import CommitOperationAdd

    content: dict[str, str | bytes] = {**texts}
    hashes = {name: sha for name, sha in record.files.items() if sha and name not in texts}
    for name, path in _published_files(job.folder, record).items():
        if name in SIDE_FILES and name not in content:
            data = side_file_bytes(path, name)
            if holds_a_secret(data):
                raise OutputError(
                    f"{path}: holds a token or a private key. {NOTHING} Remove it there."
                )
            # the published form, without paths, has another hash than the file in the folder
            if data != path.read_bytes():
                sha256 = hashes.pop(name, None)
                if sha256 is not None and sha256_of(path) != sha256:
                    raise OutputError(
                        f"{job.folder}: {name} changed since the merge. {NOTHING} Merge again."
                    )
            content[name] = data
        content.setdefault(name, str(path))
    additions = [CommitOperationAdd(name, data) for name, data in sorted(content.items())]
    actual = {add.path_in_repo: add.upload_info.sha256.hex() for add in additions}
    wrong = [name for name, sha256 in actual.items() if hashes.get(name, sha256) != sha256]
    if wrong:
        raise OutputError(
            f"{job.folder}: {shorten(wrong)} changed since the merge. {NOTHING} Merge again."
        )
    return additions


def _published_files(folder: Path, record: Record) -> dict[str, Path]:
    """Find the files of an output that are published as they are: weights named in the record, and
    side files.
    """
    # a record may come from a stranger, and name any file in its folder
    names = SIDE_FILES | _MADE | {name for name in record.files if _is_weights(name)}
    paths = {
        path.name: find_inside(folder, path.name)
        for path in sorted(folder.iterdir())
        if path.name in names
    }
    links = [name for name, path in paths.items() if path is None]
    if links:
        raise OutputError(
            f"{folder}: {shorten(links)} not a file of this folder. {NOTHING} Put the file itself"
            " there."
        )
    return {name: path for name, path in paths.items() if path is not None and name not in _MADE}


def _not_published(folder: Path, additions: Iterable[CommitOperationAdd]) -> Names:
    published = {add.path_in_repo for add in additions} | {PLAN_FOLDER}
    names = (path.name for path in folder.iterdir() if not path.name.startswith("."))
    return tuple(sorted(name for name in names if name not in published))


def _changes(
    target: Target, additions: list[CommitOperationAdd]
) -> list[CommitOperationAdd | CommitOperationDelete]:
    """Keep additions that differ from the files on the Hub, and delete stale weights."""
    from huggingface_hub import CommitOperationDelete

    changed = [add for add in additions if not is_same(add, target.files.get(add.path_in_repo))]
    names = {add.path_in_repo for add in additions}
    stale = [name for name in target.files if name not in names and _is_weights(name)]
    return [*changed, *(CommitOperationDelete(name) for name in sorted(stale))]


def _is_weights(name: str) -> bool:
    return "/" not in name and name.endswith((".safetensors", ".safetensors.index.json"))


def _commit(
    api: HfApi, job: Push, target: Target, changes: list[CommitOperationAdd | CommitOperationDelete]
) -> CommitInfo:
    """Make the commit, and the branch if it is missing."""
    if target.needs_branch:
        with explained(job.doing, state=state_after(job, target), again=job.command):
            api.create_branch(job.repo_id, branch=str(job.revision), revision=target.head)
    try:
        with quiet_client():
            return api.create_commit(
                job.repo_id,
                changes,
                commit_message=job.message or "Upload a model merged with clipmerge",
                parent_commit=target.head,
                revision=job.revision,
                create_pr=job.create_pr,
            )
    except Exception as error:
        state = state_after(job, target)
        if out_of_reach(error):  # the commit may have arrived, and only its answer been lost
            state = "Whether the files were published is not known; the same command finds out."
            if job.create_pr:
                state = (
                    "A pull request may have been opened: look at"
                    f" {api.endpoint}/{job.repo_id}/discussions."
                )
        raise explain(error, doing=job.doing, state=state, again=job.command) from error


def find_repository(api: HfApi, job: Push) -> Target | None:
    """Read the state of the repository; None if it does not exist."""
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    with explained(job.doing, state=NOTHING, again=job.command):
        try:
            info = with_retries(lambda: api.model_info(job.repo_id))
        except RepositoryNotFoundError:
            return None
        if job.private and info.private is False:
            raise UsageError(
                f"{job.repo_id} exists and is public: `private=True` cannot hide it. {NOTHING} "
                "Make it private in its settings first, or leave `private=True` out."
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
            "Choose another name, or add `yes=True` to push into it."
        )
    return target


def read_target(api: HfApi, job: Push, revision: str | None) -> Target:
    """Read the head of a revision and its files."""
    from huggingface_hub import RepoFile

    info = with_retries(lambda: api.model_info(job.repo_id, revision=revision))
    head = str(info.sha)
    tree = with_retries(
        lambda: list(api.list_repo_tree(job.repo_id, recursive=True, revision=head))
    )
    files = {
        item.path: (item.blob_id, item.lfs.sha256 if item.lfs else None)
        for item in tree
        if isinstance(item, RepoFile)
    }
    return Target(head, files)


def _download(job: Push, target: Target, name: str) -> str:
    folder = Snapshot(HubId(job.repo_id, target.head)).download([name])
    with refusing(HubError, f"{job.doing}: {name} there cannot be read", f". {NOTHING}"):
        return read_bytes(folder / name, MAX_TEXT_BYTES).decode("utf-8", errors="replace")


def check_card(job: Push, target: Target, ours: bytes = b"") -> None:
    """Refuse to overwrite a model card that somebody wrote by hand.

    A card is clipmerge's own if the record beside it names its blob. A card with front matter only,
    as written by the Hub's page for new repositories, may be overwritten.
    """
    blob = target.files.get(CARD, ("",))[0]
    if not blob or job.yes or job.create_pr or target.needs_branch:
        return
    if blob in (blob_id(ours), target.record and target.record.card):
        return
    if not target.record and not body_of(_download(job, target, CARD)):
        return
    origin = (
        "was edited since clipmerge wrote it" if target.record else "was not written by clipmerge"
    )
    raise UsageError(
        f"{job.doing}: {CARD} there {origin}, and would be overwritten. {NOTHING} Save what you"
        " need of it, then push again with `yes=True`, or with `create_pr=True`, which opens a pull"
        " request."
    )


def create_repository(api: HfApi, job: Push) -> Target:
    """Create an empty repository."""
    if job.create_pr:
        raise HubError(
            f"{job.doing}: not on the Hub, or private, so no pull request can be opened. {NOTHING} "
            "Leave `create_pr=True` out to create it."
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
    return NOTHING


def is_same(addition: CommitOperationAdd, hub_hashes: tuple[str, str | None] | None) -> bool:
    """Return whether the Hub already holds exactly this file."""
    if hub_hashes is None:
        return False
    if hub_hashes[1] is not None:
        return bool(addition.upload_info.sha256.hex() == hub_hashes[1])
    with addition.as_file() as file:
        return blob_id(file.read()) == hub_hashes[0]
