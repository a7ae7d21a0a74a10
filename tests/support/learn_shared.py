"""Learn in one of several processes, and save what it ends with; started by test_many_processes.py."""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from clipmerge.distributed import DistributedContext
from clipmerge.learning.coefficients import Coefficients
from clipmerge.learning.learn import LearningConfig, learn
from clipmerge.learning.learning_loss import LossConfig
from tests.support.small_objective import make_batches, objective_for


def main(folder: Path, device: str, labels: str, *sizes: str) -> None:
    processes = DistributedContext(torch.device("cpu"))
    number, count = processes.rank, processes.world_size
    ends = (folder / "zeroshot", folder / "finetuned")
    batches = make_batches(tuple(map(int, sizes)))
    objective = objective_for(ends, batches[number::count], context=processes)
    values = Coefficients(objective, "entry")
    loss = LossConfig(0.7, weak_aug=1.0)
    learn(objective, values, LearningConfig(loss, 4, 0.02, batch=16, held_back=0.2))
    save_file(values.by_parameter(), folder / f"{device}-{count}-{number}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
