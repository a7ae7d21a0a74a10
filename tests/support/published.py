"""A stub of the Hub's client that keeps published models in memory."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import huggingface_hub
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.utils import filter_repo_objects


class Published(HfApi):
    """Publishes into `models`, the files by model, or raises `error`; reading is the client's."""

    models: dict[str, dict[str, bytes]]
    error: Exception | None = None

    def whoami(self, *_: Any, **__: Any) -> dict[str, Any]:
        return {"name": "alice"}

    def list_repo_files(self, repo_id: str, **_: Any) -> list[str]:
        if repo_id not in self.models:
            raise RepositoryNotFoundError("404", response=Mock())
        return [*self.models[repo_id]]

    def create_repo(self, repo_id: str, **_: Any) -> Any:
        if self.error:
            raise self.error
        self.models.setdefault(repo_id, {".gitattributes": b""})

    def upload_folder(self, **given: Any) -> Any:
        files, folder = self.models[given["repo_id"]], Path(given["folder_path"])
        for stale in [*filter_repo_objects(files, allow_patterns=given["delete_patterns"])]:
            del files[stale]
        names = [path.name for path in folder.iterdir()]
        for name in filter_repo_objects(names, allow_patterns=given["allow_patterns"]):
            files[name] = (folder / name).read_bytes()
        return SimpleNamespace(oid="c" * 40)


def publishing(monkeypatch: pytest.MonkeyPatch) -> type[Published]:
    """Let this process publish into memory."""

    class Hub(Published):
        models: dict[str, dict[str, bytes]] = {}  # noqa: RUF012

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    return Hub
