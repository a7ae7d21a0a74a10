"""The command line, which saves what it learned after every step, and can end half-way; see
test_resumed.py.

Arguments: ``wait`` takes every step slowly, a number kills process 0 after so many steps; then
those of clipmerge. A process other than the first has a cache of its own, as on another machine.
"""

import os
import signal
import sys
import time
from collections.abc import Mapping

from torch import Tensor

from clipmerge.cli.app import main
from clipmerge.learning import resume as resumption

HOLDS = "holds "


def end(how: str) -> None:
    save, restore = resumption.LearningState.save, resumption.LearningState.restore

    def restored(self: resumption.LearningState, state: Mapping[str, Tensor]) -> bool:
        """Print the state that every process resumes from: one must not depend on another's
        file."""
        found = restore(self, state)
        sys.stderr.write(f"{HOLDS}{[float(tensor.double().sum()) for tensor in state.values()]}\n")
        return found

    def saved(
        self: resumption.LearningState, state: Mapping[str, Tensor], *, last: bool = False
    ) -> None:
        save(self, state, last=last)
        if how == "wait":
            time.sleep(0.05)
        elif int(state["taken"]) == int(how) and os.environ.get("RANK", "0") == "0":
            os.kill(os.getpid(), signal.SIGKILL)

    resumption.LearningState.restore = restored  # type: ignore[method-assign]
    resumption.LearningState.save = saved  # type: ignore[method-assign]
    resumption.SECONDS = resumption.TIMES = 0
    if os.environ.get("RANK", "0") != "0":
        os.environ["XDG_CACHE_HOME"] += "-elsewhere"


if __name__ == "__main__":
    end(sys.argv.pop(1))
    main()
