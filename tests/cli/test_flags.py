"""Flags that several commands share, and errors that name the right command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import clipmerge as api
from clipmerge.checkpoint import opening
from clipmerge.errors import PlanError
from clipmerge.progress import Silent
from tests.support.command import clipmerge, done, printed, refused
from tests.support.tiny_clip import save_images

Folders = tuple[Path, Path]


class Recorded(Silent):
    """Remembers the progress of the last stage."""

    def advance(self, done: float, total: float) -> None:
        self.last = done / total


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_images(tmp_path_factory.mktemp("other"), seed=1)


@pytest.fixture
def sources(images: Path, other: Path) -> list[object]:
    return ["--id", f"val={images}", "--ood", f"odd={other}", "--alphas", "0,1"]


@pytest.mark.parametrize("dtype", ["keep", "bfloat16", "float16"])
def test_progress_ends_at_the_end_whatever_the_dtype(pair: Folders, tmp_path: Path, dtype: str) -> None:
    progress = Recorded()
    api.merge(*pair, "wise-ft", dtype=dtype, output=tmp_path / "out", progress=progress)
    assert progress.last == 1


def test_recipes_alone_lists_them_in_the_format_asked_for() -> None:
    listed = done("recipes", "--format", "json")
    assert listed.json == printed("recipes", "list")
    assert "auto" in listed.json["recipes"]
    assert "--format goes after the command" in refused(clipmerge("recipes", "--format", "json", "show", "auto"), 2)


def test_the_measure_is_named_that_takes_one_checkpoint(family: list[Path], images: Path, tmp_path: Path) -> None:
    flags = ["--recipe", "straggler-outlier", "--set", "method={name: wise-ft}", "--data", images]
    line = refused(clipmerge("merge", *family, *flags, "-o", tmp_path / "out"))
    assert "measure path-barrier: takes one fine-tuned checkpoint, but 3 were given" in line
    assert "soup-accuracy" in line


def test_fewer_images_at_once_change_no_number(pair: Folders, sources: list[object], tmp_path: Path) -> None:
    swept = []
    for name, flags in (("whole", []), ("pieces", ["--images-at-once", 3])):
        done("sweep", *pair, *sources, *flags, "-o", tmp_path / name, "--format", "json")
        swept.append((tmp_path / name / "correct.safetensors").read_bytes())
    assert swept[0] == swept[1]


def test_a_sweep_takes_overrides_and_need_not_hash(pair: Folders, sources: list[object], tmp_path: Path) -> None:
    flags = ["--recipe", "wise-ft", "--set", "method.alpha=1", "--no-hash", "--format", "json"]
    made = done("sweep", *pair, *sources, *flags, "-o", tmp_path / "out")
    assert made.json["recipes"][0]["alpha"] == 1
    assert made.json["recipes"][0]["recipe"]["method"]["alpha"] == 1
    assert set(made.json["zeroshot"]["files"].values()) == {None}
    assert "no option 'alhpa'" in refused(
        clipmerge("sweep", *pair, *sources, "--recipe", "wise-ft", "--set", "method.alhpa=1", "-o", tmp_path / "no")
    )


def test_a_plan_without_hashes_is_applied_and_a_plan_with_them_may_be(pair: Folders, tmp_path: Path) -> None:
    plans = [tmp_path / "hashed.json", tmp_path / "bare.json"]
    assert clipmerge("plan", *pair, "-r", "wise-ft", "-o", plans[0]).code == 0
    assert clipmerge("plan", *pair, "-r", "wise-ft", "--no-hash", "-o", plans[1]).code == 0
    assert set(json.loads(plans[1].read_text())["zeroshot"]["files"].values()) == {None}
    weights = []
    for plan, flags, note in (
        (plans[0], [], ""),
        (plans[0], ["--no-hash"], "was not compared with the sha256"),
        (plans[1], [], "has no sha256 of"),
    ):
        output = tmp_path / f"{plan.stem}{len(flags)}"
        applied = done("apply", plan, *flags, "-o", output, "--format", "json")
        assert note in applied.err
        weights.append((output / "model.safetensors").read_bytes())
        assert (applied.json["files"]["model.safetensors"] is None) is bool(flags)
    assert weights[0] == weights[1] == weights[2]


def test_the_flags_of_a_sweep_are_checked_without_torch(pair: Folders, tmp_path: Path) -> None:
    asked = ["sweep", *pair, "--id", "x=a", "--ood", "x=b", "-o", tmp_path / "out"]
    code = (
        "import sys\nfrom clipmerge.cli.app import main\n"
        f"sys.argv = ['clipmerge', *{[str(word) for word in asked]!r}]\n"
        "try:\n    main()\nexcept SystemExit: pass\nprint('torch' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "both have a source named 'x'" in ended.stderr
    assert ended.stdout == "False\n"


def test_a_sweep_opens_each_checkpoint_once_for_any_number_of_recipes(
    pair: Folders, sources: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    original = opening._open
    monkeypatch.setattr(opening, "_open", lambda source: opened.append(source) or original(source))
    recipes = [word for name in ("lines", "monosoup", "wise-ft") for word in ("--recipe", name)]
    done("sweep", *pair, *sources, *recipes, "-o", tmp_path / "out")
    assert opened == [str(pair[0]), str(pair[1])]


def test_what_cannot_be_is_refused(pair: Folders, tmp_path: Path) -> None:
    asked = clipmerge("merge", *pair, "--recipe", "wise-ft", "--dry-run", "--push", "acme/robust")
    assert "--push needs --output: a dry run writes nothing to push" in refused(asked, code=2)
    plan = api.plan(*pair, "wise-ft", progress=Silent())
    with pytest.raises(PlanError, match="is for 1 fine-tuned checkpoints, but 2 were given"):
        api.apply(plan, output=tmp_path / "out", zeroshot=pair[0], finetuned=[pair[1], pair[1]], progress=Silent())
    asked = clipmerge("merge", *pair, "--recipe", "wise-ft", "--alpha", "1e39", "--output", tmp_path / "out")
    assert "overflow" in refused(asked)
    assert not (tmp_path / "out").exists()
