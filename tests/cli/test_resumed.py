"""Commands that are stopped while they learn and run again: the same bytes, and only the same
command resumes."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.command import clipmerge, done
from tests.support.learn_and_save import HOLDS
from tests.support.several import begin, several
from tests.support.stopped_learning import GOES_ON, SAVED, Stopping
from tests.support.tiny_clip import Folders, save_images, save_pair

pytestmark = pytest.mark.slow
# as many as the processes that are started have
torch.set_num_threads(1)

# where features are held, half of the steps are taken
HELD = ("--set", "measure.distill=predictions", "--set", "measure.held_back=0")
QUICK = ("--set", "measure.batch=8", "--set", "measure.strong_aug=8", "--no-verdict")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "clipmerge" / "learning"


@pytest.fixture(scope="module")
def flags(images: Path) -> list[object]:
    return [
        "--data",
        images,
        "--recipe",
        "auto",
        "--batch-size",
        8,
        "--set",
        "measure.steps=4",
        *HELD,
        *QUICK,
    ]


def weights(output: Path) -> bytes:
    return (output / "model.safetensors").read_bytes()


def notes(err: str) -> list[str]:
    lines = [
        line.removeprefix("note: ")
        for line in err.splitlines()
        if "learn" in line and " elapsed" not in line
    ]
    return [line for line in lines if not line.startswith("learning on ")]  # how long it takes


@pytest.mark.usefixtures("often")
def test_a_merge_and_a_plan_resume_each_others_learning(
    pair: Folders, flags: list[object], tmp_path: Path, cache: Path, stop_after: Stopping
) -> None:
    """In a folder of the user's choice."""
    state = tmp_path / "state"
    flags = [*flags, "--state", state]
    whole = clipmerge("merge", *pair, *flags, "--output", tmp_path / "whole")
    assert (whole.code, notes(whole.err)) == (0, [])
    stop_after(2)
    stopped = clipmerge("plan", *pair, *flags, "--output", tmp_path / "plan.json")
    assert stopped.code == 130
    assert notes(stopped.err) == [SAVED.format(2, 4)]
    assert stopped.err.endswith("error: interrupted; no output was written\n")
    assert len(list(state.iterdir())) == 1
    assert not cache.exists()
    stop_after(1)
    merge = ["merge", *pair, *flags, "--output", tmp_path / "out"]
    assert notes(clipmerge(*merge).err) == [GOES_ON.format(2, 4), SAVED.format(3, 4)]
    found = clipmerge(*merge)
    assert (found.code, notes(found.err)) == (0, [GOES_ON.format(3, 4)])
    assert weights(tmp_path / "out") == weights(tmp_path / "whole")
    plans = [
        json.loads((tmp_path / name / "plan" / "plan.json").read_text())
        for name in ("out", "whole")
    ]
    assert plans[0]["measurements"] == plans[1]["measurements"]
    assert list(state.iterdir()) == []


@pytest.mark.uncounted
@pytest.mark.usefixtures("often")
def test_the_saved_learning_is_kept_until_the_output_is_written(
    pair: Folders, flags: list[object], tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    done("merge", *pair, *flags, "--output", tmp_path / "whole")
    merge = ["merge", *pair, *flags, "--output", tmp_path / "out"]
    with monkeypatch.context() as patched:
        patched.setattr("clipmerge.output.folder.write_weights", stop)
        assert clipmerge(*merge).code == 130
    found = clipmerge(*merge)
    assert (found.code, notes(found.err)) == (0, [GOES_ON.format(4, 4)])
    assert weights(tmp_path / "out") == weights(tmp_path / "whole")
    assert list(cache.iterdir()) == []


@pytest.mark.uncounted
@pytest.mark.usefixtures("often")
def test_a_sweep_that_fails_keeps_what_it_learned(
    pair: Folders, images: Path, tmp_path: Path, cache: Path
) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "measure: {name: learned-coefficients, steps: 4, batch: 8, strong_aug: 8, distill: predictions}\n"
        "method: {name: learned}"
    )
    shifted = save_images(tmp_path / "shifted", seed=3)
    broken = shifted / "cat" / "3.png"
    content = broken.read_bytes()
    broken.write_bytes(content[:100])
    far = save_images(tmp_path / "far", seed=4)
    shift = ("--id", f"near={images}", "--ood", f"far={far}", "--alphas", "0,1")
    flags = (
        "--keep",
        f"other={shifted}",
        "--data",
        images,
        "--batch-size",
        8,
        "-r",
        recipe,
        "-r",
        "wise-ft",
    )
    sweep = ["sweep", *pair, *shift, *flags, "-o", tmp_path / "s"]
    stopped = clipmerge(*sweep)
    assert (stopped.code, notes(stopped.err)) == (1, [])
    assert "3.png" in stopped.err
    assert len(list(cache.iterdir())) == 1
    broken.write_bytes(content)
    found = clipmerge(*sweep)
    assert (found.code, notes(found.err)) == (0, [GOES_ON.format(4, 4)])
    assert list(cache.iterdir()) == []


CHANGES: dict[str, tuple[object, ...]] = {
    "option": ("--set", "measure.distill_weight=0.2"),
    "fewer images": ("--images", 20),
}


@pytest.mark.usefixtures("often")
@pytest.mark.uncounted
def test_only_the_same_learning_resumes(
    flags: list[object], tmp_path: Path, cache: Path, stop_after: Stopping
) -> None:
    own, data = save_pair(tmp_path / "pair"), save_images(tmp_path / "images", seed=3)
    flags = [*flags, "--data", data, "--dry-run"]

    def goes_on(*more: object) -> bool:
        """Take one more step, and return whether it was the first."""
        stop_after(1)
        outcome = clipmerge("merge", *own, *flags, *more)
        assert outcome.code == 130
        assert "starts over" not in outcome.err
        return GOES_ON.format(1, 4) in notes(outcome.err)

    assert not goes_on()
    image, weights = data / "cat" / "3.png", own[1] / "model.safetensors"
    for file in (weights, own[0] / "model.safetensors", image):
        os.utime(file, ns=(0, 0))
    assert goes_on()  # what they hold counts, not when they were written
    for what, more in CHANGES.items():
        assert not goes_on(*more), what
    content = bytearray(weights.read_bytes())
    content[-4] ^= 1  # the last bit of the last weight
    weights.write_bytes(content)
    assert not goes_on()
    image.write_bytes((data / "dog" / "3.png").read_bytes())
    assert not goes_on()
    os.utime(own[1] / "config.json", ns=(0, 0))  # says what it said
    assert goes_on()
    preprocessor = next(file for file in own[1].iterdir() if "processor_config" in file.name)
    preprocessor.write_text(
        preprocessor.read_text().replace('"rescale_factor": 0.00', '"rescale_factor": 0.01')
    )
    assert not goes_on()
    assert len(list(cache.iterdir())) == 1 + len(CHANGES) + 3


def saved_step(cache: Path) -> int:
    """The step in the file, which may be replaced at any moment; 0 without a file."""
    return max((int(load_file(file)["taken"]) for file in cache.glob("*.safetensors")), default=0)


@pytest.mark.uncounted
def test_a_killed_run_resumes_to_equal_bytes(
    pair: Folders, flags: list[object], tmp_path: Path, cache: Path
) -> None:
    merge = [*map(str, ["merge", *pair, *flags, "--set", "measure.steps=12", "--output"])]
    assert notes(done(*merge, tmp_path / "whole").err) == []
    run = begin(1, "tests.support.learn_and_save", "wait", *merge, tmp_path / "out")
    while run.launcher.is_alive() and saved_step(cache) < 5:
        time.sleep(0.01)
    run.launcher.kill()
    assert run.end().returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    taken = saved_step(cache)
    assert notes(done(*merge, tmp_path / "out").err) == [GOES_ON.format(taken, 12)]
    assert weights(tmp_path / "out") == weights(tmp_path / "whole")
    assert list(cache.glob("*.safetensors")) == []


@pytest.mark.uncounted
def test_several_processes_resume_from_the_main_ones_state(
    pair: Folders, flags: list[object], tmp_path: Path, cache: Path
) -> None:
    given = ["--unlabelled", save_images(tmp_path / "elsewhere", each=3, seed=9)]

    def run(steps: int, output: str = "out") -> subprocess.CompletedProcess[str]:
        merge = ["merge", *pair, *flags, *given, "--device", "cpu", "--output", tmp_path / output]
        return several(2, "tests.support.learn_and_save", steps, *merge)

    assert run(2).returncode != 0
    assert len(list(cache.glob("*.safetensors"))) == 1
    assert not Path(f"{os.environ['XDG_CACHE_HOME']}-elsewhere").exists()
    result = run(9)
    assert result.returncode == 0, result.stderr[-3000:]
    assert notes(result.stderr) == [GOES_ON.format(2, 4)]
    one, other = [line for line in result.stderr.splitlines() if HOLDS in line]
    assert one.partition(HOLDS)[2] == other.partition(HOLDS)[2]
    assert run(9, "whole").returncode == 0
    assert weights(tmp_path / "out") == weights(tmp_path / "whole")
    assert list(cache.iterdir()) == []
