"""Several processes write the bytes of one, and what a process does about the others: waiting, and
being ended."""

import hashlib
import json
import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState
from safetensors.torch import load_file

from clipmerge import distributed
from clipmerge.cli import _ending
from clipmerge.cli._signals import raising_signals
from clipmerge.distributed import (
    DistributedContext,
    adopt_slurm,
    cores_per_process,
    device_work,
    is_main_process,
    is_out_of_memory,
    peer_errors,
)
from clipmerge.errors import MeasureError, Terminated, UsageError
from tests.support.command import ROOT, clipmerge, counted, done, python, refused
from tests.support.lose_a_process import LOST
from tests.support.several import begin, several
from tests.support.tiny_clip import Folders

LOST_PEERS = (
    torch.distributed.DistNetworkError("lost"),
    RuntimeError("[gloo/tcp/pair.cc] Connection closed by peer"),
)


@pytest.mark.parametrize("error", LOST_PEERS)
def test_another_process_that_is_gone_is_reported(error: Exception) -> None:
    with (
        pytest.raises(MeasureError, match="another process of this run ended or does not answer"),
        peer_errors(),
    ):
        raise error


@pytest.mark.parametrize(
    "error", [RuntimeError("CUDA error: device-side assert"), torch.OutOfMemoryError("full")]
)
def test_an_error_of_this_process_is_not_blamed_on_another(error: Exception) -> None:
    with pytest.raises(type(error), match=str(error)), peer_errors():
        raise error


def test_too_little_memory_says_what_to_lower() -> None:
    with (
        pytest.raises(MeasureError, match=r"Tried to allocate 2 GiB\); lower `images_at_once` or"),
        device_work(),
    ):
        raise torch.OutOfMemoryError(
            "CUDA out of memory: Tried to allocate 2 GiB. GPU 0 has a capacity of 24 GiB"
        )


def test_precision_is_exact_in_a_call_and_the_callers_after_it() -> None:
    torch.set_float32_matmul_precision("high")
    try:
        with device_work():
            assert torch.get_float32_matmul_precision() == "highest"
            assert not torch.backends.cudnn.allow_tf32
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.slow
@pytest.mark.skipif(
    not hasattr(torch.backends, "fp32_precision"), reason="torch has one interface before 2.9"
)
def test_precision_is_exact_by_torchs_newer_interface_too(tmp_path: Path) -> None:
    """In a process of its own: once both were used, the older one refuses to be read."""
    code = """
import torch
from clipmerge.distributed import device_work
torch.backends.cuda.matmul.fp32_precision = "tf32"
torch.backends.cudnn.conv.fp32_precision = "ieee"
switches = [torch.backends.cuda.matmul, torch.backends.cudnn.conv]
with device_work():
    assert [switch.fp32_precision for switch in switches] == ["ieee", "ieee"]
assert [switch.fp32_precision for switch in switches] == ["tf32", "ieee"]
"""
    python("-c", code, check=True, cwd=tmp_path, env=counted())


@pytest.mark.slow
def test_a_callers_accelerator_stays_as_it_is(tmp_path: Path) -> None:
    """One in bfloat16, as a Trainer has, on the device of its choice."""
    code = """
from accelerate import Accelerator
from accelerate.state import AcceleratorState
owner = Accelerator(cpu=True, mixed_precision="bf16")
import torch
from clipmerge.distributed import DistributedContext, distributed_context
assert distributed_context("auto").device.type == distributed_context("cpu").device.type == "cpu"
# one call on a card, and the next on the CPU again
assert [str(DistributedContext(torch.device(kind)).device) for kind in ("cuda", "cpu", "mps")] == ["cuda:0", "cpu", "mps"]
assert owner.mixed_precision == AcceleratorState().mixed_precision == "bf16"
assert owner.device == torch.device("cpu")
"""
    python("-c", code, check=True, cwd=tmp_path)


def test_a_process_that_hangs_is_given_up_after_half_an_hour(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """NCCL's own limit is ten minutes; what takes part is accelerate's state, which is started
    once."""
    started: list[timedelta] = []

    def state(*, cpu: bool, timeout: timedelta) -> PartialState:
        started.append(timeout)
        return PartialState(cpu=cpu)

    monkeypatch.setattr("accelerate.PartialState", state)
    DistributedContext(torch.device("cpu"))
    assert started == [timedelta(minutes=30)]


STEP = {
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NODELIST": "gpu[07-09,12],x",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_ID": "41234567",
}
OTHERS = (
    "CUDA_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
    "ZE_AFFINITY_MASK",
    "LOCAL_WORLD_SIZE",
    "SLURM_STEP_ID",
    "SLURM_STEP_TASKS_PER_NODE",
    "SLURM_NODEID",
    "SLURM_CPUS_ON_NODE",
)
PLACES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str | None]]:
    """Set variables, and return what torch is told; all are put back afterwards."""

    def adopted(**variables: str) -> list[str | None]:
        for name in (*PLACES, *STEP, *OTHERS):
            monkeypatch.setenv(name, "")
            monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        adopt_slurm()
        return [os.environ.get(name) for name in PLACES]

    return adopted


def test_tasks_of_srun_are_processes_of_one_run(launched: Callable[..., list[str | None]]) -> None:
    assert launched(**STEP) == ["3", "1", "4", "gpu07", "34567"]
    assert not is_main_process()
    assert launched(**STEP, CUDA_VISIBLE_DEVICES="2") == ["3", "0", "4", "gpu07", "34567"]
    assert launched(**STEP, CUDA_VISIBLE_DEVICES="2,3")[1] == "1"
    assert launched(**STEP | {"SLURM_STEP_NODELIST": "login"})[3] == "login"


@pytest.mark.parametrize(
    ("listed", "first"),
    [
        ("gpu-a[1-2]n[01-04]", "gpu-a1n01"),
        ("node[01-02]-ib", "node01-ib"),
        ("gpu[07-09,12],x", "gpu07"),
        ("a,b[1-2]", "a"),
    ],
)
def test_the_first_host_of_a_list_is_the_masters(
    launched: Callable[..., list[str | None]], listed: str, first: str
) -> None:
    assert launched(**STEP | {"SLURM_STEP_NODELIST": listed})[3] == first


def test_steps_of_one_allocation_meet_on_ports_of_their_own(
    launched: Callable[..., list[str | None]],
) -> None:
    ports = {launched(**STEP, SLURM_STEP_ID=str(step))[4] for step in range(5)}
    assert len(ports) == 5


def test_a_task_that_sees_one_card_of_any_maker_takes_it(
    launched: Callable[..., list[str | None]],
) -> None:
    for name in ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ZE_AFFINITY_MASK"):
        assert launched(**STEP, **{name: "1"})[1] == "0", name
        assert launched(**STEP, **{name: "0,1"})[1] == "1", name


def test_cores_are_divided_among_the_processes_of_this_machine(
    launched: Callable[..., list[str | None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    launched()
    assert cores_per_process() == 16
    launched(LOCAL_WORLD_SIZE="4", WORLD_SIZE="8", RANK="0")
    assert cores_per_process() == 4
    nodes = {"SLURM_STEP_TASKS_PER_NODE": "2(x2),8", "SLURM_CPUS_ON_NODE": "16"}
    launched(**STEP, **nodes, SLURM_NODEID="2")
    assert (os.environ["LOCAL_WORLD_SIZE"], cores_per_process()) == ("8", 2)
    launched(**STEP, **nodes, SLURM_NODEID="1")
    assert (os.environ["LOCAL_WORLD_SIZE"], cores_per_process()) == ("2", 8)
    # srun gave this task 16 of the 64 cores
    launched(**STEP, **nodes | {"SLURM_CPUS_ON_NODE": "64"}, SLURM_NODEID="1")
    assert cores_per_process() == 16


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: out of memory"),
        RuntimeError("GET was unable to find an engine to execute this computation"),
        torch.distributed.DistBackendError("ncclUnhandledCudaError: Cuda failure 'out of memory'"),
    ],
)
def test_what_libraries_say_without_memory_is_recognised(error: Exception) -> None:
    assert is_out_of_memory(error)
    with pytest.raises(type(error)), peer_errors():  # no other process is to blame
        raise error
    assert not is_out_of_memory(type(error)("device-side assert"))


def test_a_process_computes_on_a_card_that_it_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fourth process of a machine, which sees one card, or whose group has a card already."""
    context = PartialState(cpu=True)
    monkeypatch.setattr(context, "local_process_index", 3)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert DistributedContext(torch.device("cuda")).device == torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert DistributedContext(torch.device("cuda")).device == torch.device("cuda", 1)
    monkeypatch.setattr(context, "device", torch.device("cuda", 2))
    assert DistributedContext(torch.device("cuda")).device == torch.device("cuda", 2)


@pytest.mark.parametrize("name", ["WORLD_SIZE", "OMPI_COMM_WORLD_SIZE"])
def test_processes_that_cannot_join_are_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """On Apple's GPUs, or by mpirun on cards, each would write the output as the only one."""
    PartialState(cpu=True)
    monkeypatch.setattr("clipmerge.distributed._end_if_blocked", lambda: None)
    monkeypatch.setenv(name, "2")
    with pytest.raises(UsageError, match="2 processes were started, but those on mps cannot join"):
        DistributedContext(torch.device("mps"))


@pytest.mark.slow
def test_sigterm_ends_a_process_whose_group_does_not_form(
    pair: Folders, images: Path, tmp_path: Path
) -> None:
    """Its main thread waits in compiled code, where the handler does not run."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    group = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}
    environment = {**os.environ, **group, "MASTER_PORT": port}
    task = begin(1, "clipmerge", *merge(pair, images, tmp_path / "out"), env=environment)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:  # until it listens for the other one
        with socket.socket() as probe:
            if probe.connect_ex(("localhost", int(port))) == 0:
                break
        time.sleep(0.5)
    time.sleep(2)
    sent = time.monotonic()
    os.kill(task.launcher.pid or 0, signal.SIGTERM)
    ended = task.end()
    assert time.monotonic() - sent < 20
    assert ended.returncode == 143
    assert ended.stderr.count("error: ") == 1
    assert "ended from outside (SIGTERM" in ended.stderr


def test_one_task_a_batch_script_and_another_launcher_are_left_alone(
    launched: Callable[..., list[str | None]],
) -> None:
    assert launched(**STEP | {"SLURM_STEP_NUM_TASKS": "1"}) == [None] * 5
    batch = {name: value for name, value in STEP.items() if "STEP" not in name}
    assert launched(**batch, SLURM_NTASKS="4") == [None] * 5
    assert is_main_process()
    assert launched(**STEP, RANK="0") == ["0", None, None, None, None]


@pytest.mark.parametrize("gone", ["SLURM_PROCID", "SLURM_STEP_NODELIST"])
def test_tasks_of_srun_that_look_alike_are_refused(
    launched: Callable[..., list[str | None]], gone: str
) -> None:
    with pytest.raises(
        UsageError, match="srun started several tasks, but SLURM's variables do not tell which"
    ):
        launched(**{name: value for name, value in STEP.items() if name != gone})
    assert "srun started several tasks" in refused(clipmerge("recipes"), 2)


def test_sigterm_ends_a_block_and_nothing_after_it() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated), raising_signals():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_thread_leaves_signals_to_the_main_one() -> None:
    """Python lets only the main thread handle them; in a notebook or a server others call
    clipmerge."""
    handlers = []

    def work() -> None:
        with raising_signals():
            handlers.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [before]


def test_the_first_process_that_is_ended_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_ending, "processes_have_joined", lambda: True)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("MASTER_PORT", "29500")
    said = []

    def say() -> None:
        with _ending._print_once_per_host(143):
            said.append(signal.getsignal(signal.SIGTERM) is signal.SIG_IGN)

    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    say()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    say()
    gone = (
        tmp_path / "clipmerge-ended-of-others"
    )  # as a sign that another process removes after it was listed
    gone.symlink_to("nowhere")
    for left in (2, 1):
        with pytest.raises(SystemExit):
            say()
        assert len(list(tmp_path.iterdir())) == left
    gone.unlink()
    assert said == [False, True]
    say()
    (sign,) = tmp_path.iterdir()
    assert sign.name == f"clipmerge-ended-{os.getppid()}-29500"
    os.utime(sign, (0, 0))  # left by a run of long ago, of which a process was killed
    say()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    say()
    assert said == [False, *[True] * 4]
    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN


SECONDS_TO_END = 60
# half of the layers are stragglers, so that they get the mask that ranks gradients summed over
# processes
MASKED = (
    "--set",
    "method.threshold=0.001",
    "--set",
    "method.mirror=0",
    "--set",
    "method.stability=0.01",
)


def run(
    processes: int, module: str, *arguments: object, **options: Any
) -> tuple[subprocess.CompletedProcess[str], float]:
    """Run a module in several processes; also returns the seconds by which the run outlived a lost
    process."""
    result = several(processes, module, *arguments, **options)
    lost = [
        float(line.removeprefix(LOST))
        for line in result.stderr.splitlines()
        if line.startswith(LOST)
    ]
    return result, time.time() - lost[0] if lost else 0.0


def merge(pair: Folders, images: Path, output: Path, *more: str) -> list[str]:
    flags = [
        "--data",
        str(images),
        "--set",
        "measure.nodes=1",
        "--set",
        "measure.tolerance=100",
        "--batch-size",
        "7",
        "--device",
        "cpu",
        "--output",
        str(output),
        "--format",
        "json",
    ]
    return ["merge", *map(str, pair), "--recipe", "straggler-outlier", *flags, *more]


def clear_line(result: subprocess.CompletedProcess[str], where: Path) -> str:
    """The one line in which clipmerge says what happened; nothing is left, and no traceback leads
    into clipmerge."""
    assert result.returncode != 0
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if line.startswith('{"error": ')]
    assert len(lines) == 1, result.stderr[-3000:]
    assert f"{ROOT}/clipmerge/" not in result.stderr, result.stderr[-3000:]
    assert list(where.iterdir()) == []
    return f"error: {json.loads(lines[0])['error']}"


@pytest.mark.slow
@pytest.mark.parametrize("how", ["killed", "launcher"])
def test_a_killed_process_ends_the_run(
    pair: Folders, images: Path, tmp_path: Path, how: str
) -> None:
    """The last of four is killed, or the launcher is ended from outside as Slurm does it."""
    words = merge(pair, images, tmp_path / "out", "--no-verdict")
    result, seconds = run(4, "tests.support.lose_a_process", "3", how, *words)
    line = clear_line(result, tmp_path)
    assert "ended from outside (SIGTERM" in line or (
        how == "killed" and "another process of this run ended" in line
    )
    assert seconds < SECONDS_TO_END


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("fails", "images/7.png: cannot be read"),
        ("hangs", "another process of this run ended or does"),
    ],
)
def test_a_failed_or_hanging_process_ends_it(
    pair: Folders, images: Path, tmp_path: Path, how: str, says: str
) -> None:
    words = merge(pair, images, tmp_path / "out", "--no-verdict")
    result, seconds = run(2, "tests.support.lose_a_process", "1", how, *words)
    assert says in clear_line(result, tmp_path)
    assert seconds < SECONDS_TO_END


@pytest.mark.slow
def test_a_disk_that_fills_ends_the_run(pair: Folders, images: Path, tmp_path: Path) -> None:
    limit = (pair[0] / "model.safetensors").stat().st_size // 2
    words = merge(pair, images, tmp_path / "out", "--no-verdict")
    result, _ = run(2, "clipmerge", *words, largest_file=limit)
    assert "cannot be written (File too large); nothing was left behind" in clear_line(
        result, tmp_path
    )


@pytest.mark.slow
def test_several_processes_write_the_bytes_of_one(
    pair: Folders, images: Path, tmp_path: Path
) -> None:
    """One of six has no images; of three, one is slow."""
    done(*merge(pair, images, tmp_path / "1", *MASKED))
    for processes, *module in ((3, "tests.support.lose_a_process", "1", "slow"), (6, "clipmerge")):
        words = merge(pair, images, tmp_path / str(processes), *MASKED)
        result, _ = run(processes, *module, *words, env=counted())
        assert result.returncode == 0, result.stderr[-3000:]
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in "136"]
    assert '"density": 0.5' in (tmp_path / "1" / "clipmerge.json").read_text()
    assert [hashlib.sha256(each).hexdigest() for each in files[1:]] == [
        hashlib.sha256(files[0]).hexdigest()
    ] * 2


@pytest.mark.slow
def test_several_processes_merge_models_in_memory(pair: Folders, tmp_path: Path) -> None:
    """transformers saves in the first process alone, but each reads a copy of its own."""
    result, _ = run(2, "tests.support.merge_in_memory", *pair, tmp_path / "out")
    assert result.returncode == 0, result.stderr[-3000:]
    done("merge", *pair, "--alpha", "0.25", "--output", tmp_path / "files", "--format", "quiet")
    written = [load_file(tmp_path / name / "model.safetensors") for name in ("out", "files")]
    assert written[0].keys() == written[1].keys()
    assert all(torch.equal(value, written[1][name]) for name, value in written[0].items())


@pytest.mark.slow
def test_tasks_of_srun_write_the_bytes_of_one_process(
    pair: Folders, images: Path, tmp_path: Path
) -> None:
    """Two processes with the variables that Slurm gives the tasks of a step."""
    done(*merge(pair, images, tmp_path / "1"))
    step = {
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_JOB_ID": str(os.getpid()),
    }
    words = merge(pair, images, tmp_path / "2")
    tasks = [
        begin(
            1,
            "clipmerge",
            *words,
            env={**os.environ, **step, "SLURM_PROCID": rank, "SLURM_LOCALID": rank},
        )
        for rank in "01"
    ]
    ends = [task.end() for task in tasks]
    assert [end.returncode for end in ends] == [0, 0], ends
    assert [bool(end.stdout) for end in ends] == [True, False]
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in "12"]
    assert files[0] == files[1]


def test_an_event_loop_keeps_its_own_watch_of_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "_watches", [])
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    before = signal.set_wakeup_fd(writer.fileno())
    try:
        distributed._end_if_blocked()
        assert signal.set_wakeup_fd(before) == writer.fileno()
        assert distributed._watches == []
    finally:
        signal.set_wakeup_fd(before)
        reader.close()
        writer.close()
