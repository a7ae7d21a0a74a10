"""Bounds on a server's answers, with what the HTTP client offers: timeouts, event hooks, and a
stream that counts.

The client of the Hub waits for some requests without a limit, reads every answer to its end, and
builds file names in its cache from some headers. A server that is not the Hub, or is broken, could
block a command for ever, fill memory, or write outside the cache.
"""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import huggingface_hub

from clipmerge.errors import HubError
from clipmerge.files.limits import MAX_ANSWER_BYTES
from clipmerge.files.reading import format_size
from clipmerge.hub.ids import FULL_SHA

# The client's HTTP library: httpx until the client's version 1, httpx2 from its version 2 on.
_IS_NEW = int(huggingface_hub.__version__.partition(".")[0]) >= 2
httpx: Any = importlib.import_module("httpx2" if _IS_NEW else "httpx")
_NAME = re.compile(r'(?:W/)?"?[A-Za-z0-9_+=-][A-Za-z0-9_.+=-]{0,127}"?')
_NAMING = ("etag", "x-linked-etag", "x-xet-hash")
_NOT_THE_HUB = "Check that HF_ENDPOINT is the Hub and that no proxy changes its answers."


def bounded_clients(seconds: float) -> Callable[[], Any]:
    """Make a factory for `huggingface_hub.set_client_factory`: clients wait ``seconds`` for each
    part of an answer.
    """
    limits = {"connect": min(seconds, 10.0), "read": seconds, "write": seconds, "pool": seconds}

    def before(request: Any) -> None:
        # for some requests, such as listings, huggingface_hub disables timeouts, against the
        # settings of its client
        asked = request.extensions.get("timeout", {})
        request.extensions["timeout"] = {
            key: min(limit, asked.get(key) or limit) for key, limit in limits.items()
        }
        if _is_answer(request):  # the size of a compressed answer is not known in advance
            request.headers["accept-encoding"] = "identity"

    hooks = {"request": [*_own_hooks(), before], "response": [check_response]}
    return lambda: httpx.Client(event_hooks=hooks, follow_redirects=True)


@functools.cache
def _own_hooks() -> list[Callable[[Any], None]]:
    """The hooks of huggingface_hub's own client, which refuse requests when offline; read before
    our first factory.
    """
    return list(huggingface_hub.get_session().event_hooks["request"])


def check_response(response: Any) -> None:
    """Refuse headers that cannot be the Hub's, and limit the size of an answer that is read into
    memory as a whole.
    """
    where = (
        f"{response.request.url.scheme}://{response.request.url.host}{response.request.url.path}"
    )
    if "/resolve/" in response.request.url.path:  # the client would use these headers in paths
        for header in _NAMING:
            value = response.headers.get(header)
            if value is not None and not _NAME.fullmatch(value):
                raise HubError(f"{where}: its {header} cannot be a file name. {_NOT_THE_HUB}")
        commit = response.headers.get("x-repo-commit")
        if commit is not None and not FULL_SHA.fullmatch(commit):
            raise HubError(f"{where}: its commit is not a commit hash. {_NOT_THE_HUB}")
    if _is_answer(response.request):
        if response.headers.get("content-encoding", "identity") not in ("identity", ""):
            raise HubError(
                f"{where}: its answer is compressed although that was not asked for. {_NOT_THE_HUB}"
            )
        response.stream = _LimitedBody(response.stream, where)


def _is_answer(request: Any) -> bool:
    """Whether the answer is read into memory as a whole, unlike a file."""
    return request.method != "GET" or "/api/" in request.url.path


class _LimitedBody(httpx.SyncByteStream):  # type: ignore[misc]
    """The body of an answer, refused beyond a size."""

    def __init__(self, stream: Any, where: str) -> None:
        self._stream = stream
        self._where = where

    def __iter__(self) -> Iterator[bytes]:
        count = 0
        for chunk in self._stream:
            count += len(chunk)
            if count > MAX_ANSWER_BYTES:
                raise HubError(
                    f"{self._where}: its answer is larger than {format_size(MAX_ANSWER_BYTES)}."
                    f" {_NOT_THE_HUB}"
                )
            yield chunk

    def close(self) -> None:
        """Close the body."""
        self._stream.close()
