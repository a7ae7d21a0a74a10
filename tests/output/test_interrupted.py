"""Merges that are killed, interrupted or out of disk space: never a partial output, and nothing in the way."""

import hashlib
import json
import random
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.support.command import clipmerge, start
from tests.support.tiny_clip import Folders, tiny_config

pytestmark = pytest.mark.slow
KILLS = 10


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """A pair of about 150 MB each, so that writing takes a while."""
    from transformers import CLIPModel

    folder = tmp_path_factory.mktemp("large")
    paths = (folder / "zeroshot", folder / "finetuned")
    config = tiny_config(blocks=5, width=640)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in CLIPModel(config).state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for change, path in zip((0.0, 0.01), paths, strict=True):
        path.mkdir()
        config.save_pretrained(path)
        (path / "config.json").write_text(
            json.dumps({**json.loads((path / "config.json").read_text()), "model_type": "clip"})
        )
        save_file({name: tensor + change for name, tensor in weights.items()}, path / "model.safetensors")
    return paths


def hashes(folder: Path) -> dict[str, str]:
    names = sorted(file.name for file in folder.iterdir())
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


@pytest.fixture(scope="module")
def whole(large: Folders, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], float]:
    """Hashes of an undisturbed output, and the seconds for which it was staged."""
    folder = tmp_path_factory.mktemp("whole")
    process = start("merge", *large, "--recipe", "wise-ft", "--output", folder / "out", "--format", "quiet")
    wait_for_stage(folder, process)
    begin = time.perf_counter()
    while process.poll() is None and not (folder / "out").exists():
        time.sleep(0.001)
    seconds = time.perf_counter() - begin
    assert process.communicate() == ("", "")
    assert process.returncode == 0
    return hashes(folder / "out"), seconds


def wait_for_stage(folder: Path, process: subprocess.Popen[str]) -> None:
    """Wait until the process has made its own stage, besides any existing ones."""
    before = set(folder.iterdir())
    while process.poll() is None and set(folder.iterdir()) <= before:
        time.sleep(0.001)


def is_whole(output: Path, expected: dict[str, str]) -> bool:
    found = hashes(output)
    record = json.loads((output / "clipmerge.json").read_text())
    assert found.keys() == expected.keys()
    assert record["files"].items() <= found.items()
    return found["model.safetensors"] == expected["model.safetensors"]


def test_kill_at_ten_random_moments(large: Folders, whole: tuple[dict[str, str], float], tmp_path: Path) -> None:
    expected, seconds = whole
    rng = random.Random(0)
    killed_in_stage = 0
    for _ in range(KILLS):
        process = start("merge", *large, "--recipe", "wise-ft", "--output", tmp_path / "out", "--format", "quiet")
        wait_for_stage(tmp_path, process)
        time.sleep(rng.uniform(0, 1.1 * seconds))
        process.kill()
        process.communicate()
        left = [path for path in tmp_path.iterdir() if path.name != "out"]
        assert len(left) <= 1  # what earlier runs left is gone
        killed_in_stage += bool(left)
        if (tmp_path / "out").exists():
            assert is_whole(tmp_path / "out", expected)
            shutil.rmtree(tmp_path / "out")
    assert killed_in_stage > 0
    assert clipmerge("merge", *large, "--recipe", "wise-ft", "--output", tmp_path / "out").code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert is_whole(tmp_path / "out", expected)


def test_a_kill_while_overwriting_leaves_the_old_or_the_new(
    large: Folders, whole: tuple[dict[str, str], float], tmp_path: Path
) -> None:
    expected, seconds = whole
    command = ("merge", *large, "--recipe", "wise-ft", "--output", tmp_path / "out", "--format", "quiet")
    assert clipmerge(*command, "--set", "method.alpha=0").code == 0
    old = hashes(tmp_path / "out")["model.safetensors"]
    for share in (0.3, 0.9):
        process = start(*command, "--overwrite")
        wait_for_stage(tmp_path, process)
        time.sleep(share * seconds)
        process.kill()
        process.communicate()
        assert hashes(tmp_path / "out")["model.safetensors"] in (old, expected["model.safetensors"])


def test_an_error_waits_for_no_hash(tmp_path: Path) -> None:
    """Nor does a first Ctrl-C, after which people press it again."""
    endless = tmp_path / "endless.safetensors"
    with endless.open("wb") as file:
        file.truncate(1 << 38)  # takes up no room, and minutes to hash
    code = (
        "import signal, sys\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from pathlib import Path\n"
        "from clipmerge.__main__ import run\n"
        "from clipmerge.files.hashes import sha256_of\n"
        "ThreadPoolExecutor(1).submit(sha256_of, Path(sys.argv.pop()))\n"
        "try: run()\n"
        "finally: assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL"
    )
    command = [sys.executable, "-c", code, "recipes", "show", "nonsense", endless]
    failed = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: ")
    assert len(failed.stderr.splitlines()) == 1


def limit_file_size() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000_000, 20_000_000))


def test_a_file_too_large_for_the_disk_is_one_line_and_leaves_nothing(large: Folders, tmp_path: Path) -> None:
    command = ("merge", *large, "--recipe", "wise-ft", "--output", tmp_path / "out")
    process = start(*command, preexec_fn=limit_file_size)
    out, err = process.communicate()
    assert (process.returncode, out) == (1, "")
    assert err.splitlines() == [
        f"error: {tmp_path / 'out'}: cannot be written (File too large); nothing was left behind"
    ]
    assert list(tmp_path.iterdir()) == []
