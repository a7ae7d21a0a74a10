"""Release files: fetched by address, resumed where a download stopped, size and hash checked.

Few projects publish hashes of their release files. Where none is known, the hash of the first download is recorded and
every later use is checked against it.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from clipmerge.errors import CheckpointError, HubError
from clipmerge.evaluation.suites.suite import Release
from clipmerge.files.cache import user_cache
from clipmerge.files.hashes import remembered_sha256
from clipmerge.files.limits import LARGEST_RELEASE
from clipmerge.hub.download import timeout_seconds
from clipmerge.progress import Progress

#: Environment variable with the server to use instead of https://github.com, such as a mirror.
MIRROR = "CLIPMERGE_GITHUB"
_GITHUB = "https://github.com"
_PIECE = 1 << 20


@dataclass(frozen=True)
class Fetched:
    """A release file on this machine.

    Attributes:
        path: Its path.
        sha256: Its hash.
        verified: Whether the hash is a published one; otherwise it is that of the first download.
    """

    path: Path
    sha256: str
    verified: bool


def place_of(release: Release) -> Path:
    """Where a release file is kept: in the user's cache, files of one release in one folder.

    Args:
        release: The file.

    Raises:
        RuntimeError: If the user has no cache folder.
    """
    folder = release.url.rpartition("/")[0]
    digest = hashlib.sha256(folder.encode()).hexdigest()[:16]
    return user_cache("releases") / digest / release.name


def fetch_release(release: Release, progress: Progress) -> Fetched:
    """Download a release file, unless it is on this machine already.

    Args:
        release: The file.
        progress: Receiver of progress reports.

    Returns:
        The file and its hash.

    Raises:
        HubError: If it cannot be downloaded; the part received is kept for the next try.
        CheckpointError: If its size or hash is not the expected one.
    """
    from filelock import FileLock

    path = place_of(release)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f"{path.name}.lock")):  # several processes of one run may need the same file
        return _checked(release, path, progress)


def _checked(release: Release, path: Path, progress: Progress) -> Fetched:
    if not path.is_file():
        _download(release, path, progress)
    size, digest = path.stat().st_size, remembered_sha256(path)
    record = path.with_name(f"{path.name}.json")
    expected = release.sha256 or _recorded(record)
    if expected not in (None, digest) or release.size not in (None, size):
        path.unlink()
        should = f"{release.size} bytes" if expected in (None, digest) else f"sha256 {expected}"
        whose = "published" if release.sha256 or release.size else "recorded at its first use"
        raise CheckpointError(
            f"{release.url}: came with {size} bytes and sha256 {digest}, but {should} is {whose}; the file was "
            "removed, run again"
        )
    if expected is None:
        record.write_text(json.dumps({"url": release.url, "sha256": digest, "size": size}) + "\n", encoding="utf-8")
        progress.say(f"{release.url}: no hash is published; its sha256 {digest} was recorded for later runs")
    return Fetched(path, digest, release.sha256 is not None)


def size_of(release: Release) -> int | None:
    """Size of a release file in bytes, according to the server; ``None`` if it does not say.

    Args:
        release: The file.
    """
    request = urllib.request.Request(_address(release), method="HEAD")
    with (
        contextlib.suppress(OSError, http.client.HTTPException, ValueError),
        urllib.request.urlopen(request, timeout=timeout_seconds()) as answer,
    ):
        return int(answer.headers["Content-Length"])
    return None


def _address(release: Release) -> str:
    mirror = os.environ.get(MIRROR, "").rstrip("/")
    return mirror + release.url.removeprefix(_GITHUB) if mirror and release.url.startswith(_GITHUB) else release.url


def _recorded(record: Path) -> str | None:
    try:
        digest = json.loads(record.read_text(encoding="utf-8"))["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return str(digest)


def _download(release: Release, path: Path, progress: Progress) -> None:
    part = path.with_name(f"{path.name}.part")
    have = part.stat().st_size if part.is_file() else 0
    headers = {"Range": f"bytes={have}-"} if have else {}
    request = urllib.request.Request(_address(release), headers=headers)
    progress.stage(f"downloading {release.name}")
    try:
        with urllib.request.urlopen(request, timeout=timeout_seconds()) as answer:
            goes_on = answer.status == http.client.PARTIAL_CONTENT
            with part.open("ab" if goes_on else "wb") as file:
                _receive(release, answer, file, have if goes_on else 0, progress)
    except urllib.error.HTTPError as error:
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and have:
            part.unlink()  # the part is not the beginning of the file on the server now
        raise HubError(
            f"downloading {release.url}: the server refused (HTTP {error.code}). Check the address."
        ) from None
    except (OSError, http.client.HTTPException) as error:
        reason = " ".join(str(getattr(error, "reason", error)).split())[:160] or type(error).__name__
        raise HubError(
            f"downloading {release.url}: {reason}. The part received is kept: check the connection and run again. "
            f"{MIRROR} names a mirror."
        ) from None
    part.replace(path)


def _receive(release: Release, answer: Any, file: IO[bytes], begin: int, progress: Progress) -> None:
    length = answer.headers.get("Content-Length")
    total = begin + int(length) if length is not None and length.isdigit() else None
    done = begin
    while piece := answer.read(_PIECE):
        file.write(piece)
        done += len(piece)
        if done > LARGEST_RELEASE:
            limit = f"{LARGEST_RELEASE >> 30} GiB"
            raise HubError(f"downloading {release.url}: it is larger than {limit}. Is it the right file?")
        progress.advance(done, total or max(done, release.size or 0))
    if total is not None and done < total:
        raise OSError(f"the connection broke after {done} of {total} bytes")
