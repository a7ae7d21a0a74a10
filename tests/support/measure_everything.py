"""Run every measure and print its record as JSON; started by test_measures.py in several
processes."""

import json
import sys
from pathlib import Path

from clipmerge.distributed import DistributedContext
from clipmerge.learning.objective import Objective
from clipmerge.planning.measurements import Measurements
from clipmerge.plugins import load_plugin, plugin_names, plugin_options
from tests.support.small_objective import make_batches, objective_for

SIZES = (4, 4, 3)
#: Of the measures that learn. Two rounds over the batches; every rule that is checked holds after
#: any number.
STEPS = 6


def measured(name: str, objective: Objective) -> Measurements:
    """Run a measure with its defaults, but few steps and probes, nothing held back, and
    gradients kept."""
    known = plugin_options("measures", name)
    wanted = {
        "steps": STEPS,
        "held_back": 0.0,
        "probes": 2,
        "precision": "float32",
    }
    options = {option: value for option, value in wanted.items() if option in known}
    objective.wants_gradients = True
    return load_plugin("measures", name)(objective, **options)


def main(folder: Path) -> None:
    context = DistributedContext("cpu")
    objective = objective_for((folder / "zeroshot", folder / "finetuned"), make_batches(SIZES))
    found = {name: measured(name, objective) for name in plugin_names("measures")}
    gradients = {
        name: value.double().norm().item()
        for name, value in found["path-barrier"].gradients.items()
    }
    if context.is_main_process:
        records = {name: record.model_dump(mode="json") for name, record in found.items()}
        answer = {"processes": context.world_size, "records": records, "gradients": gradients}
        sys.stdout.write(json.dumps(answer))
    context.state.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
