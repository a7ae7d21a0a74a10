from __future__ import annotations

import json
from pathlib import Path

import pytest

from clipmerge.demo import pair as demo
from clipmerge.demo.pair import Training, cache_folder, prepare
from clipmerge.errors import OutputError

OTHER = Training(zeroshot_steps=3)


@pytest.fixture
def instant_build(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Replace training by one small file; lists the folders built."""
    built: list[Path] = []

    def build(folder: Path, *_: object) -> None:
        folder.mkdir()
        (folder / "weights").write_text("w" * 10)
        built.append(folder)

    monkeypatch.setattr(demo, "_build", build)
    return built


def test_a_finished_folder_is_used_again(tmp_path: Path, instant_build: list[Path]) -> None:
    assert not prepare(tmp_path / "demo").cached
    assert prepare(tmp_path / "demo").cached
    assert len(instant_build) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


def test_other_settings_replace_the_folder(tmp_path: Path, instant_build: list[Path]) -> None:
    prepare(tmp_path / "demo")
    (tmp_path / "demo" / "old").touch()
    assert not prepare(tmp_path / "demo", training=OTHER).cached
    assert len(instant_build) == 2
    assert not (tmp_path / "demo" / "old").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


@pytest.mark.parametrize("damage", ["missing", "truncated", "manifest", "list"])
def test_a_damaged_folder_is_made_again(tmp_path: Path, instant_build: list[Path], damage: str) -> None:
    folder = tmp_path / "demo"
    prepare(folder)
    if damage == "missing":
        (folder / "weights").unlink()
    elif damage == "truncated":
        (folder / "weights").write_text("w")
    else:
        (folder / "manifest.json").write_text("{" if damage == "manifest" else json.dumps([1]))
    assert not prepare(folder).cached
    assert (folder / "weights").read_text() == "w" * 10
    assert prepare(folder).cached


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_run_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: type[BaseException]
) -> None:
    def build(folder: Path, *_: object) -> None:
        (folder / "zeroshot").mkdir(parents=True)
        raise stop

    monkeypatch.setattr(demo, "_build", build)
    with pytest.raises(stop):
        prepare(tmp_path / "demo")
    assert list(tmp_path.iterdir()) == []


def test_a_faster_run_beside_this_one_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "demo"

    def build(target: Path, *_: object) -> None:
        target.mkdir()
        (target / "slow").touch()
        if not folder.exists():
            folder.mkdir()
            (folder / "fast").touch()
            demo._write_manifest(folder, demo._fingerprint(Training()))

    monkeypatch.setattr(demo, "_build", build)
    prepare(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["fast", "manifest.json"]


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path, instant_build: list[Path]) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(OutputError, match="holds something other than the demo"):
        prepare(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    assert instant_build == []


def test_an_empty_folder_is_filled(tmp_path: Path, instant_build: list[Path]) -> None:
    (tmp_path / "demo").mkdir()
    assert not prepare(tmp_path / "demo").cached
    assert len(instant_build) == 1


def test_a_file_in_the_way_is_an_error(tmp_path: Path, instant_build: list[Path]) -> None:
    (tmp_path / "demo").touch()
    with pytest.raises(OutputError, match="is not a folder"):
        prepare(tmp_path / "demo")
    with pytest.raises(OutputError, match=r"cannot be written there \(.*choose another folder"):
        prepare(tmp_path / "demo" / "inner")
    assert instant_build == []


@pytest.mark.parametrize(("variable", "expected"), [("/elsewhere", "/elsewhere"), ("", "~"), ("relative", "~")])
def test_the_cache_folder_follows_xdg(monkeypatch: pytest.MonkeyPatch, variable: str, expected: str) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", variable)
    base = Path(expected) if expected != "~" else Path.home() / ".cache"
    assert cache_folder() == base / "clipmerge" / "demo"
