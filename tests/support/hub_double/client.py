"""This side of the double: pointing the real client at it, and filling it."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import CommitOperationAdd, HfApi, constants, file_download
from huggingface_hub.utils import _http

from clipmerge.hub import download
from tests.support.hub_double.server import FakeHub

FILE_URL = "/{repo_id}/resolve/{revision}/{filename}"


class ShortWaits:
    """Stands in for the ``time`` module with which the client, and clipmerge around it, sleep between retries."""

    @staticmethod
    def sleep(_seconds: float) -> None:
        """Do not wait."""


@contextmanager
def serving(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """Serve an empty Hub to this process: its own cache, a token that may write, Xet off, no waits.

    The client reads its variables at import, so its constants are set instead.
    """
    home = folder / "hf-home"
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(_http, "time", ShortWaits)
    monkeypatch.setattr(file_download, "time", ShortWaits)
    monkeypatch.setattr(download, "time", ShortWaits)
    with FakeHub(folder / "hub-store") as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + FILE_URL)
        yield hub
    huggingface_hub.close_session()


def environment(hub: FakeHub, folder: Path) -> dict[str, str]:
    """Return the variables that point a subprocess at the same Hub and cache as ``serving``."""
    return {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(folder / "hf-home"),
        "HF_TOKEN": hub.token,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }


def upload(hub: FakeHub, repo_id: str, files: dict[str, bytes], *, kind: str = "model", **commit: Any) -> str:
    """Create a model or a dataset with these files through the real client; return the commit's sha."""
    api = HfApi(endpoint=hub.url, token=hub.token)
    api.create_repo(repo_id, exist_ok=True, repo_type=kind)
    operations = [CommitOperationAdd(path, data) for path, data in files.items()]
    with warnings.catch_warnings():  # httpx2 dislikes how the client hands it a file to PUT
        warnings.filterwarnings("ignore", "Use 'content=", DeprecationWarning)
        done = api.create_commit(repo_id, operations, repo_type=kind, commit_message="fill", **commit)
        return str(done.oid)
