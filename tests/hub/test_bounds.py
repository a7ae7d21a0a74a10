"""Bounds on a client of the Hub, connection by connection."""

from __future__ import annotations

import time
from typing import Any

import pytest

from clipmerge.errors import HubError
from clipmerge.hub import bounds
from clipmerge.hub.bounds import bound_client


class Connection:
    """A connection that notes what it is asked for."""

    def __init__(self) -> None:
        self.timeouts: list[float | None] = []
        self.sent = b""

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        self.timeouts.append(timeout)
        return b"x" * max_bytes

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self.timeouts.append(timeout)
        self.sent += buffer


@pytest.fixture
def connection(monkeypatch: pytest.MonkeyPatch) -> Connection:
    monkeypatch.setattr(bounds._deadline, "at", None, raising=False)
    return Connection()


def test_headers_arrive_by_the_deadline_or_not_at_all(connection: Connection) -> None:
    stream = bounds._Stream(connection)
    bounds._deadline.at = time.monotonic() + 100
    assert stream.read(3, timeout=500) == b"xxx"
    assert stream.read(3) == b"xxx"
    assert all(timeout is not None and 90 < timeout <= 100 for timeout in connection.timeouts)
    assert stream.read(3, timeout=2) == b"xxx"
    assert connection.timeouts[2:] == [2]
    bounds._deadline.at = time.monotonic() - 1
    with pytest.raises(bounds._httpcore.ReadTimeout, match="the headers took too long"):
        stream.read(3, timeout=500)
    assert len(connection.timeouts) == 3


def test_waiting_for_an_answer_starts_when_the_upload_ends(connection: Connection) -> None:
    stream = bounds._Stream(connection)
    stream.write(b"a", timeout=500)  # without a request that waits, no deadline is made
    assert bounds._deadline.at is None
    bounds._deadline.at = time.monotonic() + 1
    stream.write(b"b", timeout=500)
    assert bounds._deadline.at > time.monotonic() + 400
    assert (connection.sent, connection.timeouts) == (b"ab", [500, 500])


def test_a_client_without_connections_of_its_own_is_bounded_by_its_answers() -> None:
    """As one whose answers come from a cache."""

    def answer(request: Any) -> Any:
        return bounds._httpx.Response(200, headers={"etag": request.headers.get("x-etag", '"a"')}, text="whole")

    with bounds._httpx.Client(transport=bounds._httpx.MockTransport(answer)) as client:
        bound_client(client, 5.0)
        file = "https://hub/acme/tuned/resolve/main/config.json"
        assert client.get(file).text == "whole"
        with pytest.raises(HubError, match="its etag cannot be a file name"):
            client.get(file, headers={"x-etag": "../../up"})
