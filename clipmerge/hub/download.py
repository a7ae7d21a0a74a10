"""Reading models from the Hugging Face Hub: names, commits, files.

A revision is resolved to a commit first, and only the commit is used from then on: the client's own
download silently falls back to a stale cache when the Hub does not answer. Every request has a
timeout (``CLIPMERGE_HUB_TIMEOUT`` seconds, 60 by default) and the client gives up after six tries,
so a call takes at most about seven minutes, and usually no time at all.
"""

from __future__ import annotations

import dataclasses
import glob
import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from clipmerge.errors import CheckpointError, HubError, shorten
from clipmerge.files.limits import MAX_FILES
from clipmerge.files.paths import replace_bytes
from clipmerge.files.safetensors import PICKLE_SUFFIXES
from clipmerge.files.side_files import SIDE_FILES
from clipmerge.hub.errors import explain, explained, out_of_reach, timed_out
from clipmerge.hub.ids import FULL_SHA, HubId
from clipmerge.types import Json, Names, Shape

if TYPE_CHECKING:
    from huggingface_hub import HfApi

T = TypeVar("T")

_WAITS = (1.0, 2.0)  # seconds before the second and third try of a read
_STANDARD_WEIGHTS = (
    ("model.safetensors",),
    ("model.safetensors.index.json", "model-*-of-*.safetensors"),
    ("open_clip_model.safetensors",),
    ("open_clip_pytorch_model.safetensors",),
    ("adapter_model.safetensors",),
)
# only the tensors are read, and only if there is nothing better
_PICKLED_WEIGHTS = (
    ("pytorch_model.bin",),
    ("pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin"),
    ("open_clip_pytorch_model.bin",),
    ("adapter_model.bin",),
)


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A repository at one commit, whose files lie in the Hub's cache once they are downloaded."""

    hub_id: HubId  # its revision is the commit
    # says that the Hub was not asked; then only files in the cache are used
    note: str | None = None
    files: Names = dataclasses.field(default=(), repr=False)

    @property
    def revision(self) -> str:
        """The commit."""
        return str(self.hub_id.revision)

    @property
    def folder(self) -> Path:
        """The folder of the files in the cache."""
        return _cache_folder(self.hub_id) / "snapshots" / self.revision

    def missing(self, names: Iterable[str]) -> list[str]:
        """Those of these files that are not in the cache."""
        return [name for name in names if not (self.folder / name).is_file()]

    def download(self, names: Iterable[str]) -> Path:
        """Download files into the cache, and return their folder; if the Hub was not asked, only
        look them up.
        """
        import huggingface_hub

        names = list(names)
        if self.note is None:
            connect()
            where: Json = {"repo_id": self.hub_id.repo_id, "revision": self.revision}
            where |= {
                "repo_type": self.hub_id.kind,
                "allow_patterns": [glob.escape(name) for name in names],
            }
            with explained(
                f"downloading {self.hub_id}", state="What was downloaded is kept for the next run."
            ):
                try:
                    with_retries(lambda: huggingface_hub.snapshot_download(**where))
                except FileNotFoundError as error:
                    if error.filename is None:  # the client's own, for what the Hub does not have
                        raise
                    # a cache without links moves a file out of the blobs, where another thread
                    # looks for an equal one
                    huggingface_hub.snapshot_download(**where, max_workers=1)
        if missing := self.missing(names):
            raise HubError(
                f"{self.hub_id}: {shorten(missing)} missing from {self.folder}. Go online and run"
                " again."
            )
        return self.folder


def timeout_seconds() -> float:
    """The longest wait of one request for the Hub, in seconds."""
    text = os.environ.get("CLIPMERGE_HUB_TIMEOUT", "60")
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise HubError(
            f"CLIPMERGE_HUB_TIMEOUT: {text!r} is not a number of seconds above 0. Unset it or"
            " use 60."
        )
    return seconds


def connect() -> HfApi:
    """Return a client with a timeout on every request."""
    import huggingface_hub

    from clipmerge.hub.bounds import bounded_clients

    seconds = timeout_seconds()
    # hf_xet reads these when it first connects; by default it retries an unreachable store for over
    # six minutes.
    os.environ.setdefault("HF_XET_CLIENT_RETRY_MAX_DURATION", f"{round(seconds)}s")
    os.environ.setdefault("HF_XET_CLIENT_RETRY_MAX_ATTEMPTS", "3")
    huggingface_hub.set_client_factory(bounded_clients(seconds))
    return huggingface_hub.HfApi(library_name="clipmerge")


def with_retries(call: Callable[[], T]) -> T:
    """Try a read up to three times while the Hub is out of reach; a timeout is not retried."""
    for wait in _WAITS:
        try:
            return call()
        except Exception as error:
            if not out_of_reach(error) or timed_out(error):
                raise
        time.sleep(wait)
    return call()


def resolve(hub_id: HubId) -> Snapshot:
    """Ask the Hub for the commit of a revision.

    With ``HF_HUB_OFFLINE`` set the cached commit is used and ``note`` says so. If the Hub is down,
    a cached full sha is used and ``note`` says so too: a commit cannot be stale.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return _cached_snapshot(hub_id, "HF_HUB_OFFLINE is set")
    api = connect()
    try:
        info: Any = with_retries(
            lambda: api.repo_info(hub_id.repo_id, revision=hub_id.revision, repo_type=hub_id.kind)
        )
    except Exception as error:
        sha = _cached_sha(hub_id) if out_of_reach(error) else None
        if sha is not None and hub_id.revision == sha:
            return _cached_snapshot(hub_id, "the Hub cannot be reached")
        hint = (
            f"Commit {sha} is cached: pass {hub_id.at(sha)}, or set HF_HUB_OFFLINE=1, to use it"
            " unchecked."
            if sha is not None
            else ""
        )
        raise explain(error, doing=f"reading {hub_id}", state=hint) from error
    if not isinstance(info.sha, str) or not FULL_SHA.fullmatch(info.sha):
        raise HubError(f"reading {hub_id}: the Hub gave no commit. Name one: {hub_id.at('SHA')}.")
    files = tuple(item.rfilename for item in info.siblings or ())
    if len(files) > MAX_FILES:
        raise HubError(
            f"{hub_id}: lists {len(files)} files, more than {MAX_FILES}. Download those you need"
            " and give a folder."
        )
    _record_commit(hub_id, info.sha)
    return Snapshot(hub_id.at(info.sha), files=files)


def download_model(snapshot: Snapshot) -> Path:
    """Download the files that a merge needs into the Hub cache, and return their folder; a partial
    download is resumed next time.
    """
    try:
        wanted = choose_files(snapshot.files, snapshot.hub_id)
    except CheckpointError as error:
        if snapshot.note is None:
            raise
        raise HubError(
            f"{snapshot.hub_id}: its weights are not in the cache. Go online and run again."
        ) from error
    return snapshot.download(wanted)


def remote_metadata(pinned: HubId, weights: Sequence[str]) -> dict[str, tuple[str, Shape]]:
    """Read (safetensors dtype, shape) by name of the tensors in a model's safetensors files,
    without their content.
    """
    where: Json = {"repo_id": pinned.repo_id, "revision": pinned.revision}
    tensors: Json = {}
    with explained(f"reading the tensor names of {pinned}"):
        for name in (name for name in weights if name.endswith(".safetensors")):
            read = partial(connect().parse_safetensors_file_metadata, **where, filename=name)
            tensors |= with_retries(read).tensors
    return {name: (str(info.dtype), tuple(info.shape)) for name, info in sorted(tensors.items())}


def _cache_folder(hub_id: HubId) -> Path:
    """Return the repository's folder in the Hub cache (layout documented by huggingface_hub)."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(
        repo_id=hub_id.repo_id, repo_type=hub_id.kind
    )


def _cached_sha(hub_id: HubId) -> str | None:
    """Return the cached commit of a revision, or None if no commit is cached.

    `snapshot_download(local_files_only=True)` refuses a cache that lacks files no merge needs.
    """
    sha = hub_id.revision or "main"
    ref = _cache_folder(hub_id) / "refs" / sha
    if not FULL_SHA.fullmatch(sha):
        sha = ref.read_text().strip() if ref.is_file() else ""
    return sha if sha and Snapshot(hub_id.at(sha)).folder.is_dir() else None


def _cached_snapshot(hub_id: HubId, why: str) -> Snapshot:
    sha = _cached_sha(hub_id)
    if sha is None:
        raise HubError(
            f"reading {hub_id}: {why}, and it is not in the cache. Go online, or pass a folder."
        )
    folder = Snapshot(hub_id.at(sha)).folder
    files = tuple(
        sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    )
    note = f"{why}: {hub_id} is the cached commit {sha}, not checked against the Hub"
    return Snapshot(hub_id.at(sha), note, files)


def _record_commit(hub_id: HubId, sha: str) -> None:
    """Record the revision's commit in the cache, as the client does, so that offline use finds
    it.
    """
    ref = _cache_folder(hub_id) / "refs" / (hub_id.revision or "main")
    if hub_id.revision == sha:
        return
    with suppress(OSError):  # a read-only cache must not stop the download
        replace_bytes(ref, sha.encode())


def choose_files(names: Sequence[str], hub_id: HubId) -> list[str]:
    """Pick the files that a merge needs from a listing: one set of weights, and the small files
    beside it.
    """
    root = [name for name in names if "/" not in name]
    side = [name for name in root if name in SIDE_FILES or name == "adapter_config.json"]
    return sorted(side + choose_weights(names, hub_id))


def choose_weights(names: Sequence[str], hub_id: HubId) -> list[str]:
    """Pick one set of weights from a listing; folders are not searched.

    ``model.safetensors`` is preferred to shards, OpenCLIP's file and an adapter, and all of these
    to PyTorch's own files. Variants such as ``model.fp16.safetensors`` are never used.
    """
    root = [name for name in names if "/" not in name]
    if chosen := _choose_first_set(root, _STANDARD_WEIGHTS):
        return chosen
    if "model_index.json" in root:
        raise CheckpointError(
            f"{hub_id}: is a pipeline of diffusers, whose CLIP is its text encoder; get it with `hf"
            f" download {hub_id.repo_id} --include 'text_encoder/*' --local-dir DIR`, and give"
            " DIR/text_encoder"
        )
    others = [name for name in root if name.endswith(".safetensors")]
    if len(others) == 1:
        return others
    if others:
        raise CheckpointError(
            f"{hub_id}: no model.safetensors, but {shorten(others)}. Download one of them and pass"
            " that file."
        )
    if chosen := _choose_first_set(root, _PICKLED_WEIGHTS):
        return chosen
    if pickles := [name for name in root if name.endswith(PICKLE_SUFFIXES)]:
        raise CheckpointError(
            f"{hub_id}: no weights under a known name, but {shorten(pickles)}. "
            "Download the one you mean and pass that file."
        )
    raise CheckpointError(
        f"{hub_id}: no weights among its {len(root)} files. Pass a model with safetensors."
    )


def _choose_first_set(root: list[str], sets: Iterable[Names]) -> list[str]:
    """The files of the first set of weights whose first file exists."""
    patterns = next((patterns for patterns in sets if patterns[0] in root), ())
    return [name for name in root if any(fnmatch(name, pattern) for pattern in patterns)]
