"""Learn in one of several processes, and save what it ends with; started by test_many_processes.py."""

import sys
from pathlib import Path

from safetensors.torch import save_file

from clipmerge.distributed import DistributedContext
from clipmerge.learning.choose import learn
from clipmerge.learning.interpolate import Coefficients
from clipmerge.learning.train import LearningOptions
from tests.support.small_objective import captioned, contrastive, make_batches, objective_for


def main(folder: Path, kind: str, *sizes: str) -> None:
    processes = DistributedContext("cpu")
    ends = (folder / "zeroshot", folder / "finetuned")
    counts = tuple(map(int, sizes))
    if kind == "captions":
        objective = contrastive(ends, captioned(counts), context=processes, val_share=0.2)
    else:
        objective = objective_for(ends, make_batches(counts), context=processes, val_share=0.2)
    values = Coefficients(objective.path, "entry")
    options = LearningOptions(steps=4, batch_size=16, max_loss=100)
    learn(objective, values, options)
    name = f"{processes.world_size}-{processes.rank}.safetensors"
    save_file(values.by_parameter(), folder / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
