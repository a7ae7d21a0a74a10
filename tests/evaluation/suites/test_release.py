"""Release files from a real server: resumed and checked."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from clipmerge.errors import CheckpointError, HubError
from clipmerge.evaluation.suites import release as module
from clipmerge.evaluation.suites.release import MIRROR, fetch_release, path_of, size_of
from clipmerge.evaluation.suites.suite import Release
from clipmerge.progress import Silent
from tests.support.public_pairs import Releases, serving_files

CONTENT = bytes(range(256)) * 9000
DIGEST = hashlib.sha256(CONTENT).hexdigest()
FILE = "acme/soups/releases/download/v1/model_0.pt"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Releases]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    place = tmp_path / "files" / FILE
    place.parent.mkdir(parents=True)
    place.write_bytes(CONTENT)
    with serving_files(tmp_path / "files") as releases:
        monkeypatch.setenv(MIRROR, releases.url)
        yield releases


def release(**known: object) -> Release:
    return Release.model_validate({"url": f"https://github.com/{FILE}", **known})


def test_a_file_is_fetched_once(server: Releases) -> None:
    path = fetch_release(release(sha256=DIGEST, size=len(CONTENT)), Silent())
    assert path.read_bytes() == CONTENT
    assert fetch_release(release(), Silent()) == path
    assert server.asked == [(f"/{FILE}", None)]
    assert size_of(release()) == len(CONTENT)


def test_a_broken_download_goes_on(server: Releases) -> None:
    server.cut_after = 1_000_000
    with pytest.raises(HubError, match=r"broke after 1000000 of 2304000 bytes\. The part received is kept"):
        fetch_release(release(sha256=DIGEST), Silent())
    assert not path_of(release()).exists()
    assert fetch_release(release(sha256=DIGEST), Silent()).read_bytes() == CONTENT
    assert server.asked[1] == (f"/{FILE}", "bytes=1000000-")


@pytest.mark.parametrize(
    ("known", "message"),
    [
        ({"sha256": "0" * 64}, rf"came with 2304000 bytes and sha256 {DIGEST}, but sha256 0+ is published"),
        ({"size": 5}, r"but 5 bytes is published"),
    ],
)
def test_other_content_is_refused(server: Releases, known: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        fetch_release(release(**known), Silent())
    assert not path_of(release()).exists()


def test_what_goes_wrong_is_one_line(server: Releases, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HubError, match=r"no_such\.pt: the server refused \(HTTP 404\)"):
        fetch_release(Release(url="https://github.com/acme/no_such.pt"), Silent())
    monkeypatch.setenv(MIRROR, "http://127.0.0.1:9")
    with pytest.raises(HubError, match=r"run again\. CLIPMERGE_GITHUB names a mirror") as caught:
        fetch_release(release(), Silent())
    assert "\n" not in str(caught.value)
    assert size_of(release()) is None


def test_a_part_of_another_file_is_thrown_away(server: Releases) -> None:
    place = path_of(release())
    place.parent.mkdir(parents=True)
    (part := place.with_name(f"{place.name}.part")).write_bytes(CONTENT + b"more")
    with pytest.raises(HubError):
        fetch_release(release(), Silent())
    assert not part.exists()
    assert fetch_release(release(), Silent()).read_bytes() == CONTENT


def test_a_file_larger_than_any_release_is_not_kept(server: Releases, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGEST_RELEASE", 1 << 20)
    with pytest.raises(HubError, match=r"it is larger than 0 GiB\. Is it the right file\?"):
        fetch_release(release(), Silent())
    assert not path_of(release()).exists()
