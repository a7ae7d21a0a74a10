"""Learning that is interrupted and resumed gives the numbers of an uninterrupted run, and refuses
any other state."""

import dataclasses
import errno
import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from clipmerge.distributed import distributed_context
from clipmerge.images.dataset import load_images
from clipmerge.learning import resume as resumption
from clipmerge.learning.coefficients import Coefficients
from clipmerge.learning.descent import Descent
from clipmerge.learning.learn import LearningConfig, learn
from clipmerge.learning.learning_loss import LossConfig, Losses
from clipmerge.learning.resume import LearningState
from clipmerge.measures.learned_sparse import layer_sharpness, sharpest
from clipmerge.progress import Progress
from clipmerge.run import Run
from tests.support.small_objective import Ends, make_batches, objective_for
from tests.support.stopped_learning import GOES_ON, SAVED, Stopping, save_every_step, stop_after
from tests.support.tasks import inputs_of
from tests.support.tiny_clip import save_images

SIZES = (4, 4, 3)
STEPS = 7
PLAIN = LearningConfig(LossConfig(0.3), STEPS, 0.05)

Whole = Callable[..., tuple[dict[str, Tensor], list[Losses]]]


@pytest.fixture(scope="module")
def undisturbed(ends: Ends, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The result of an uninterrupted run with some options, learned once."""
    found: dict[str, tuple[dict[str, Tensor], list[Losses]]] = {}

    def run(**options: Any) -> tuple[dict[str, Tensor], list[Losses]]:
        key = repr(sorted(options.items()))
        if key not in found:
            found[key] = Learning(
                ends, tmp_path_factory.mktemp("whole") / "state.safetensors", **options
            ).run()
        return found[key]

    return run


@pytest.fixture(scope="module")
def saved(ends: Ends, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state that a run interrupted after three steps saves; read only."""
    file = tmp_path_factory.mktemp("saved") / "state.safetensors"
    with pytest.MonkeyPatch.context() as monkeypatch:
        save_every_step(monkeypatch)
        stop_after(monkeypatch, 3)
        with pytest.raises(KeyboardInterrupt):
            Learning(ends, file).run()
    return file


class Learning:
    """One run of learning on the small objective, with its file."""

    def __init__(
        self,
        ends: Ends,
        file: Path,
        config: LearningConfig = PLAIN,
        *,
        sparse: bool = False,
        **how: Any,
    ):
        self.ends, self.file, self.config, self.sparse = ends, file, config, sparse
        self.how = {"granularity": "entry", **how}
        self.said, self.work = list[str](), list[tuple[float, float]]()

    def run(self) -> tuple[dict[str, Tensor], list[Losses]]:
        state = LearningState(lambda: self.file, distributed_context("cpu"), self.said.append)
        objective = objective_for(
            self.ends,
            make_batches(SIZES),
            progress=lambda *work: self.work.append(work),
            learning_state=state,
        )
        coefficients = Coefficients(objective, **self.how)

        def sharper() -> tuple[list[str], float]:
            values = {layer: sum(row) for layer, row in layer_sharpness(objective).items()}
            return [
                name for layer in sharpest(values, 0.5) for name in objective.weights.layers[layer]
            ], 0.5

        config = dataclasses.replace(self.config, sparsify=sharper) if self.sparse else self.config
        with state.underway():
            learned = learn(objective, coefficients, config)
        state.remove()
        return coefficients.by_parameter(), learned.trace


def same(
    one: tuple[dict[str, Tensor], list[Losses]], other: tuple[dict[str, Tensor], list[Losses]]
) -> bool:
    """Whether two runs of learning are equal, bit for bit, including their losses."""
    assert one[0].keys() == other[0].keys()
    return one[1] == other[1] and all(
        torch.equal(value, other[0][name]) for name, value in one[0].items()
    )


OPTIONS: dict[str, dict[str, Any]] = {
    "entry": {},
    "layer": {"granularity": "layer", "start": 0.4},
    "held back": {
        "config": dataclasses.replace(PLAIN, loss=LossConfig(0.3, weak_aug=1.0), held_back=0.3)
    },
    "sparse": {"config": dataclasses.replace(PLAIN, held_back=0.3), "sparse": True},
}


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("entry", 0),
        ("layer", 4),
        ("held back", 4),
        ("sparse", STEPS - 1),
    ],
)
@pytest.mark.usefixtures("often")
def test_a_resumed_run_equals_an_undisturbed_one(
    ends: Ends, undisturbed: Whole, tmp_path: Path, stop_after: Stopping, name: str, step: int
) -> None:
    whole = undisturbed(**OPTIONS[name])
    stopped = Learning(ends, tmp_path / "state.safetensors", **OPTIONS[name])
    stop_after(step)
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    saved = [SAVED.format(step, STEPS)] * (
        step > 0
    )  # before the first step there is nothing to save
    assert stopped.said == saved
    assert stopped.file.exists() is bool(saved)
    assert same(stopped.run(), whole)
    assert stopped.said == saved + [GOES_ON.format(step, STEPS)] * len(saved)
    assert stopped.work[-1][0] == pytest.approx(
        stopped.work[-1][1]
    )  # what is announced is what is done
    assert list(tmp_path.glob("*.*")) == []


def flat(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def changed(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], None]:
    def apply(file: Path) -> None:
        held = {name: tensor.clone() for name, tensor in load_file(file).items()}
        change(held)
        save_file(held, file)

    return apply


def some_name(held: Mapping[str, Tensor]) -> str:
    return next(name for name in held if name.startswith("first:"))


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "half a file": (flat, "cannot be used ("),
    "a folder": (folder, "cannot be used ("),
    "a tensor less": (changed(lambda held: held.pop(some_name(held))), "does not fit)"),
    "another shape": (
        changed(lambda held: held.update(trace=torch.zeros(3, 2).double())),
        "does not fit)",
    ),
    "not a number": (
        changed(lambda held: held[some_name(held)].fill_(float("nan"))),
        "does not fit)",
    ),
}


@pytest.mark.parametrize("how", BROKEN)
@pytest.mark.usefixtures("often")
def test_a_state_that_is_broken_or_does_not_fit_is_reported_and_removed(
    ends: Ends,
    undisturbed: Whole,
    saved: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
) -> None:
    run = Learning(ends, tmp_path / "state.safetensors")
    shutil.copyfile(saved, run.file)
    damage, told = BROKEN[how]
    damage(run.file)
    monkeypatch.setattr(resumption, "SECONDS", 99)  # so that nothing takes its place
    found = run.run()
    assert told in run.said[0]
    assert run.said[0].endswith("; learning starts over")
    assert len(run.said) == 1
    assert how == "a folder" or not run.file.exists()
    assert same(found, undisturbed())


def test_a_state_is_of_the_content_that_it_was_learned_on(ends: Ends, tmp_path: Path) -> None:
    """Not of paths, sizes and times, which a program can set back."""
    folders = [shutil.copytree(folder, tmp_path / folder.name) for folder in ends]
    photos = save_images(tmp_path / "photos", each=2)
    photo = sorted(photos.rglob("*.png"))[0]

    def named() -> Path:
        inputs = inputs_of(folders)
        return resumption.state_file(inputs, load_images(str(photos)), [], {})

    first = named()
    for file in (folders[1] / "model.safetensors", photo):
        content, status = bytearray(file.read_bytes()), file.stat()
        content[-20] ^= 1
        file.write_bytes(content)
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert named() != first, file
        content[-20] ^= 1
        file.write_bytes(content)
        assert named() == first, file


@pytest.mark.usefixtures("often")
def test_a_full_disk_is_reported_once_and_keeps_what_was_saved(
    ends: Ends,
    undisturbed: Whole,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop_after: Stopping,
) -> None:
    whole = undisturbed()
    run, real = Learning(ends, tmp_path / "state.safetensors"), resumption._write

    def write(file: Any, state: Mapping[str, Tensor]) -> None:
        real(file, state)
        if int(state["taken"]) > 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(resumption, "_write", write)
    stop_after(5)
    with pytest.raises(KeyboardInterrupt):
        run.run()
    assert "No space left on device" in run.said[0]
    assert run.said[1:] == [f"{SAVED.partition(' after')[0]}; the same command resumes there"]
    assert list(tmp_path.glob("*.*")) == [run.file]
    monkeypatch.setattr(resumption, "_write", real)
    assert same(run.run(), whole)
    assert run.said[2:] == [GOES_ON.format(2, STEPS)]


@pytest.mark.usefixtures("often")
def test_old_states_are_removed_when_a_new_one_is_written(
    ends: Ends, tmp_path: Path, stop_after: Stopping
) -> None:
    day, place = 86400, tmp_path / "learning"
    place.mkdir()
    ages = {
        "a.safetensors": 31 * day,
        "b.safetensors": 29 * day,
        "c.part": 3600,
        "d.part": 60,
        "notes.txt": 99 * day,
    }
    for name, age in ages.items():
        (place / name).touch()
        os.utime(place / name, (time.time() - age,) * 2)
    run = Learning(ends, place / "state.safetensors")
    stop_after(2)
    with pytest.raises(KeyboardInterrupt):
        run.run()
    assert {file.name for file in place.iterdir()} == {
        "b.safetensors",
        "d.part",
        "notes.txt",
        "state.safetensors",
    }


def test_a_signal_within_a_step_waits_for_its_end_and_saves_it(
    ends: Ends, undisturbed: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = Descent.step, iter(range(99))

    def step(descent: Descent, *ceiling: float) -> None:
        if next(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        real(descent, *ceiling)

    whole = undisturbed()
    monkeypatch.setattr(Descent, "step", step)
    stopped = Learning(ends, tmp_path / "state.safetensors")
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    assert stopped.said == [SAVED.format(3, STEPS)]
    assert same(stopped.run(), whole)


STATE = {"taken": torch.tensor(3), "values": torch.tensor([0.5, 0.25])}


def blank() -> dict[str, Tensor]:
    return {name: torch.zeros_like(value) for name, value in STATE.items()}


def process(file: Path, *, main: bool) -> LearningState:
    state = SimpleNamespace(device=torch.device("cpu"))
    context: Any = SimpleNamespace(world_size=2, is_main_process=main, state=state)
    return LearningState(lambda: file, context, print)


@pytest.mark.parametrize("saved", [True, False])
def test_a_stop_after_learning_tells_whether_the_learning_is_saved(
    ends: Ends, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved: bool
) -> None:
    if saved:
        save_every_step(monkeypatch)
    said = list[str]()
    file = tmp_path / "state.safetensors"
    state = LearningState(lambda: file, distributed_context("cpu"), said.append)
    state.save(STATE)
    run = Run(inputs_of(ends), Progress(), when_stopped=[state.tell_stopped])
    with pytest.raises(KeyboardInterrupt) as stopped, run.timed("effect"):
        raise KeyboardInterrupt
    assert said == ["the learning is saved; the same command resumes there"] * saved
    assert getattr(stopped.value, "__notes__", []) == ["no output was written"] * saved
    state.remove()
    state.tell_stopped(KeyboardInterrupt())
    assert len(said) == saved


@pytest.mark.parametrize("exists", [True, False])
def test_other_processes_get_the_main_ones_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exists: bool
) -> None:
    file = tmp_path / "state.safetensors"
    if exists:
        save_file(STATE, file)
    sent: list[Tensor] = []
    monkeypatch.setattr(
        torch.distributed, "broadcast", lambda tensor, _: sent.append(tensor.clone())
    )
    main, other = blank(), blank()
    assert process(file, main=True).restore(main) is exists

    monkeypatch.setattr(torch.distributed, "broadcast", lambda tensor, _: tensor.copy_(sent.pop(0)))
    assert process(tmp_path / "not read", main=False).restore(other) is exists
    assert sent == []
    for state in (main, other):
        for name, value in (STATE if exists else blank()).items():
            assert torch.equal(state[name], value), name


def test_a_run_that_has_taken_all_steps_only_chooses_again(
    ends: Ends, undisturbed: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = undisturbed(**OPTIONS["held back"])
    stopped = Learning(ends, tmp_path / "state.safetensors", **OPTIONS["held back"])
    with monkeypatch.context() as patched:
        patched.setattr("clipmerge.learning.choice.validate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            stopped.run()
    assert stopped.said == [SAVED.format(STEPS, STEPS)]
    assert same(stopped.run(), whole)


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt
