"""This side of the double: pointing the real client at it, and filling it."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import CommitOperationAdd, HfApi, constants, file_download
from huggingface_hub.utils import _http

from tests.support.hub_double.server import FakeHub
from tests.support.hub_double.store import Repo

FILE_URL = "/{repo_id}/resolve/{revision}/{filename}"


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
    for module in (_http, file_download):  # which sleep between retries
        monkeypatch.setattr(module, "time", SimpleNamespace(sleep=lambda _seconds: None))
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


def upload(
    hub: FakeHub, repo_id: str, files: dict[str, bytes] | Path, *, kind: str = "model"
) -> str:
    """Create a model or a dataset with these files, or a folder's, through the real client; return
    the commit's sha."""
    api = HfApi(endpoint=hub.url, token=hub.token)
    api.create_repo(repo_id, exist_ok=True, repo_type=kind)
    operations = [CommitOperationAdd(path, data) for path, data in contents(files).items()]
    with warnings.catch_warnings():  # httpx2 dislikes how the client hands it a file to PUT
        warnings.filterwarnings("ignore", "Use 'content=", DeprecationWarning)
        done = api.create_commit(repo_id, operations, repo_type=kind, commit_message="fill")
        return str(done.oid)


def contents(files: dict[str, bytes] | Path) -> dict[str, bytes]:
    return (
        files
        if isinstance(files, dict)
        else {file.name: file.read_bytes() for file in files.iterdir()}
    )


def put(hub: FakeHub, repo_id: str, files: dict[str, bytes] | Path, *, kind: str = "model") -> None:
    """Store files as they would lie after a push by git, which checks nothing."""
    repo = hub.repos.setdefault((kind, repo_id), Repo(repo_id, kind))
    held = repo.resolve("main")
    kept = {name: hub.keep(data) for name, data in contents(files).items()}
    repo.add_commit("refs/heads/main", {**(held.tree if held else {}), **kept}, "git")
