"""Every `clipmerge` command and every Python block of the README runs as it stands."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from clipmerge.planning import recipe
from tests.support.command import clipmerge
from tests.support.hub_double import serving, upload
from tests.support.tiny_clip import save_images

README = Path(__file__).parents[2] / "README.md"
BLOCKS = re.findall(r"```(sh|python)\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
LINES = [line for kind, block in BLOCKS if kind == "sh" for line in block.splitlines() if line]
PROGRAM = {
    "clipmerge": [sys.executable, "-m", "clipmerge"],
    "torchrun": [sys.executable, "-m", "torch.distributed.run"],
}


@pytest.fixture(scope="module")
def workplace(pair: tuple[Path, Path], images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the names that the README uses."""
    folder = tmp_path_factory.mktemp("readme")
    for name, source in (("zeroshot", pair[0]), ("finetuned", pair[1]), ("val", images)):
        shutil.copytree(source, folder / name)
    for seed, name in enumerate(("test", "shifted"), start=1):
        save_images(folder / name, seed=seed)
    return folder


def run(line: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    words = shlex.split(line, comments=True)
    command = [*PROGRAM[words[0]], *words[1:]]
    return subprocess.run(
        command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
@pytest.mark.uncounted
def test_the_commands_run_in_order(
    workplace: Path, pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [line for line in LINES if line.startswith("clipmerge ")]
    assert len(lines) >= 9
    with serving(tmp_path, monkeypatch) as hub:
        for repo, folder in (("acme/clip-base", pair[0]), ("acme/clip-cars", pair[1])):
            upload(hub, repo, {path.name: path.read_bytes() for path in folder.iterdir()})
        monkeypatch.chdir(workplace)
        shipped = recipe.recipe_text
        monkeypatch.setattr(recipe, "recipe_text", lambda name: shipped(name).replace("steps: 200", "steps: 20"))
        for line in lines:  # in this process, where imports take their time once
            ended = clipmerge(*shlex.split(line, comments=True)[1:])
            assert ended.code == 0, f"{line}\n{ended.err}"
            assert "Traceback" not in ended.err
    same = [
        (workplace / name / "model.safetensors").read_bytes() for name in ("merged", "merged-by-plan", "merged-cars")
    ]
    assert same[0] == same[1] == same[2]


@pytest.mark.slow
@pytest.mark.uncounted
def test_two_processes_merge_to_the_same_weights(workplace: Path) -> None:
    """To 1e-6: sums over batches are added up in another order."""
    (line,) = [line for line in LINES if line.startswith("torchrun ")]
    alone = line.replace("torchrun --standalone --nproc-per-node 2 -m ", "").replace("merged-fisher", "merged-alone")
    for each in (line, alone):
        ended = run(each, workplace)
        assert ended.returncode == 0, ended.stderr
    both, one = (load_file(workplace / name / "model.safetensors") for name in ("merged-fisher", "merged-alone"))
    assert both.keys() == one.keys()
    assert max(float((both[name].double() - one[name].double()).abs().max()) for name in one) < 1e-6


@pytest.mark.slow
@pytest.mark.uncounted
def test_the_python_blocks_run(workplace: Path) -> None:
    if not (workplace / "merged").is_dir():
        assert run(next(x for x in LINES if x.endswith("--output merged")), workplace).returncode == 0
    for kind, block in BLOCKS:
        if kind == "python":
            ended = subprocess.run(
                [sys.executable, "-c", block], cwd=workplace, capture_output=True, text=True, check=False
            )
            assert ended.returncode == 0, ended.stderr


def test_the_scripts_it_names_are_there_and_executable() -> None:
    scripts = {line.split()[0] for line in LINES if line.startswith("scripts/")}
    assert scripts == {"scripts/demo", "scripts/test"}
    assert all(os.access(README.parent / script, os.X_OK) for script in scripts)
