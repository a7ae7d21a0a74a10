"""Learn in one of several processes, and save what it ends with; started by test_many_processes.py.

On the pretended device, which `tests.support.pretend` makes first, a collective refuses tensors of
the CPU, as NCCL's do.
"""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from clipmerge.distributed import DistributedContext
from clipmerge.learning.coefficients import Coefficients
from clipmerge.learning.learn import LearningConfig, learn
from clipmerge.learning.learning_loss import LossConfig
from tests.support import pretended_device
from tests.support.pretended_device import Pretended, counted
from tests.support.small_objective import make_batches, objective_for


def move(processes: Any) -> None:
    """Let a process compute on the pretended device."""
    reduce, broadcast = torch.distributed.all_reduce, torch.distributed.broadcast

    def raw(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, Pretended):
            raise RuntimeError("No backend type associated with device type cpu")
        return tensor.raw

    torch.distributed.all_reduce = lambda tensor: reduce(raw(tensor))
    torch.distributed.broadcast = lambda tensor, source: broadcast(raw(tensor), source)
    processes.device = torch.device(pretended_device.NAME, 0)
    processes.state = SimpleNamespace(device=processes.device)


def main(folder: Path, device: str, labels: str, *sizes: str) -> None:
    processes = DistributedContext(torch.device("cpu"))
    number, count = processes.rank, processes.world_size
    if device != "cpu":
        move(processes)
    ends = (folder / "zeroshot", folder / "finetuned")
    with counted():
        batches = make_batches(tuple(map(int, sizes)))
        objective = objective_for(
            ends, batches[number::count], context=processes, labelled=labels == "labels"
        )
        values = Coefficients(objective, "entry")
        loss = LossConfig(0.7, weak_aug=1.0)
        steps = 4 if device == "cpu" else 2  # every operation there is one of Python's
        learn(objective, values, LearningConfig(loss, steps, 0.02, batch=16, held_back=0.2))
    save_file(values.by_parameter(), folder / f"{device}-{count}-{number}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
