"""Bounds on a server's answers: their size, their time, and the file names in them.

The client of the Hub reads everything that arrives, as long as something arrives, and builds file names in its cache
from some headers. A server that is not the Hub, or is broken, could fill memory, block a command for ever, or write
outside the cache.
"""

from __future__ import annotations

import contextlib
import importlib
import re
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

import huggingface_hub

from clipmerge.errors import HubError
from clipmerge.files.limits import LARGEST_ANSWER, SLOWEST_DOWNLOAD
from clipmerge.files.reading import told_size
from clipmerge.hub.ids import FULL_SHA

# The client's HTTP library: httpx until the client's version 1, httpx2 from its version 2 on.
_IS_NEW = int(huggingface_hub.__version__.partition(".")[0]) >= 2
_httpx: Any = importlib.import_module("httpx2" if _IS_NEW else "httpx")
_httpcore: Any = importlib.import_module("httpcore2" if _IS_NEW else "httpcore")
_NAME = re.compile(r'(?:W/)?"?[A-Za-z0-9_+=-][A-Za-z0-9_.+=-]{0,127}"?')
_NAMING = ("etag", "x-linked-etag", "x-xet-hash")
_NOT_THE_HUB = "Check that HF_ENDPOINT is the Hub and that no proxy changes its answers."
_TIMEOUT = "The network or the Hub is at fault: try again later. CLIPMERGE_HUB_TIMEOUT sets the seconds to wait."


class _Deadline(threading.local):
    """Time by which the headers of this thread's request must have arrived."""

    at: float | None = None


_deadline = _Deadline()


def bound_client(client: Any, seconds: float) -> None:
    """Put bounds on a client of the Hub."""

    def before(request: Any) -> None:
        _deadline.at = time.monotonic() + seconds
        if _is_answer(request):  # the size of a compressed answer is not known in advance
            request.headers["accept-encoding"] = "identity"

    def after(response: Any) -> None:
        _deadline.at = None
        _check_names(response)
        _check_encoding(response)
        response.stream = _Bounded(response, seconds)

    hooks = client.event_hooks
    client.event_hooks = {"request": [*hooks["request"], before], "response": [*hooks["response"], after]}
    for transport in (client._transport, *client._mounts.values()):
        pool = getattr(transport, "_pool", None)
        backend = getattr(pool, "_network_backend", None)
        if pool is not None and backend is not None:
            pool._network_backend = _Backend(backend)


def _where(request: Any) -> str:
    return f"{request.url.scheme}://{request.url.host}{request.url.path}"


def _is_answer(request: Any) -> bool:
    """Whether the answer is read into memory as a whole, unlike a file."""
    return request.method != "GET" or "/api/" in request.url.path


def _check_names(response: Any) -> None:
    """Refuse headers that the client would use in paths but that are not file names."""
    if "/resolve/" not in response.request.url.path:
        return
    for header in _NAMING:
        value = response.headers.get(header)
        if value is not None and not _NAME.fullmatch(value):
            raise HubError(f"{_where(response.request)}: its {header} cannot be a file name. {_NOT_THE_HUB}")
    commit = response.headers.get("x-repo-commit")
    if commit is not None and not FULL_SHA.fullmatch(commit):
        raise HubError(f"{_where(response.request)}: its commit is not a commit hash. {_NOT_THE_HUB}")


def _check_encoding(response: Any) -> None:
    encoding = response.headers.get("content-encoding", "identity")
    if _is_answer(response.request) and encoding not in ("identity", ""):
        raise HubError(
            f"{_where(response.request)}: its answer is compressed although that was not asked for. {_NOT_THE_HUB}"
        )


class _Bounded(_httpx.SyncByteStream):  # type: ignore[misc]
    """The body of an answer: its size is limited, and the speed of a file or the time of any other answer."""

    def __init__(self, response: Any, seconds: float) -> None:
        self._stream: Any = response.stream
        self._request, self._seconds = response.request, seconds

    def __iter__(self) -> Iterator[bytes]:
        is_answer, begin, count = _is_answer(self._request), time.monotonic(), 0
        for chunk in self._stream:
            count += len(chunk)
            took = time.monotonic() - begin
            if is_answer and count > LARGEST_ANSWER:
                raise HubError(
                    f"{_where(self._request)}: its answer is larger than {told_size(LARGEST_ANSWER)}. {_NOT_THE_HUB}"
                )
            if took > self._seconds:
                if is_answer or count < SLOWEST_DOWNLOAD * took:
                    raise HubError(
                        f"{_where(self._request)}: almost nothing arrived in {self._seconds:g} s. {_TIMEOUT}"
                    )
                begin, count = time.monotonic(), 0
            yield chunk

    def close(self) -> None:
        """Close the body."""
        self._stream.close()


class _Stream(_httpcore.NetworkStream):  # type: ignore[misc]
    """A connection that ends at the deadline of the request that is waiting for headers."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Read, at most until the deadline."""
        if _deadline.at is not None:
            left = _deadline.at - time.monotonic()
            if left <= 0:
                raise _httpcore.ReadTimeout("the headers took too long")
            timeout = left if timeout is None else min(left, timeout)
        content: bytes = self._stream.read(max_bytes, timeout)
        return content

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Write; an upload may take longer, so waiting for the answer starts when it ends."""
        if _deadline.at is not None:
            _deadline.at = max(_deadline.at, time.monotonic() + (timeout or 0))
        self._stream.write(buffer, timeout)

    def close(self) -> None:
        """Close the connection."""
        self._stream.close()

    def start_tls(self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None) -> Any:
        """Encrypt the connection."""
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        """Return information about the connection."""
        return self._stream.get_extra_info(info)


class _Backend(_httpcore.NetworkBackend):  # type: ignore[misc]
    """Opens connections with deadlines."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend

    def connect_tcp(self, *arguments: Any, **options: Any) -> _Stream:
        """Connect."""
        return _Stream(self._backend.connect_tcp(*arguments, **options))


def check_listing(where: str, names: Iterable[str], most: int) -> None:
    """Refuse a listing that is too long, or whose names lead out of a folder."""
    listed = list(names)
    if len(listed) > most:
        raise HubError(
            f"{where}: lists {len(listed)} files, more than {most}. Download those you need and give a folder."
        )
    for name in listed:
        parts = name.split("/")
        if not name or name.startswith("/") or "\\" in name or any(part in ("", ".", "..") for part in parts):
            raise HubError(f"{where}: lists a file outside the repository, {name!r}. {_NOT_THE_HUB}")
        with contextlib.suppress(UnicodeEncodeError):
            name.encode()
            continue
        raise HubError(f"{where}: lists a file whose name is not UTF-8, {name!r}.")
