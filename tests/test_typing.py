"""A user's program is type-checked against the installed package: what is right passes, what is wrong is named."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RIGHT = """
import clipmerge
from clipmerge import MergeResult, Plan

plan: Plan = clipmerge.plan("zeroshot", "finetuned", "auto", data="val", images=256)
alphas: dict[str, float] = {name: layer.alpha for name, layer in plan.layers.items()}
result: MergeResult = clipmerge.merge("zeroshot", ["finetuned"], "wise-ft", set={"method.alpha": 0.4}, output="merged")
accuracy: float = clipmerge.evaluate("merged", {"val": "val"}).accuracy["val"]
"""
WRONG = """
import clipmerge

clipmerge.merge("zeroshot", "finetuned", "auto", dat="val")
clipmerge.plan("zeroshot", "finetuned", "auto").layer
"""
CHECKERS = {
    "mypy": ["-m", "mypy", "--strict", "--config-file", str(ROOT / "pyproject.toml")],
    "basedpyright": ["-m", "basedpyright", "--level", "error"],
}


@pytest.mark.slow
@pytest.mark.uncounted
@pytest.mark.parametrize("checker", CHECKERS)
def test_a_users_program_is_checked(checker: str, tmp_path: Path) -> None:
    for name, text in (("right", RIGHT), ("wrong", WRONG)):
        (tmp_path / f"{name}.py").write_text(text)
    (tmp_path / "pyrightconfig.json").write_text('{"typeCheckingMode": "standard"}')
    command = [sys.executable, *CHECKERS[checker], "right.py", "wrong.py"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    errors = [line for line in run.stdout.splitlines() if "error:" in line]
    assert [line.partition(".py:")[2].partition(":")[0] for line in errors] == ["4", "5"], run.stdout + run.stderr
    assert all("wrong.py" in line for line in errors)
