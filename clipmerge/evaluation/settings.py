"""How images go through a model in an evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clipmerge.config import OutputDtype
    from clipmerge.distributed import DistributedContext


@dataclass(frozen=True)
class EvalSettings:
    """How images go through a model in an evaluation."""

    context: DistributedContext  # places the model, and gathers the results of several processes
    templates: tuple[
        str, ...
    ] = ()  # prompt templates for every source; if empty, each source's own, or the default
    batch_size: int | None = None  # images per batch; ``None`` for the default
    images_at_once: int | None = (
        None  # images that go through the model at once; ``None`` for a batch
    )
    dtype: OutputDtype = "keep"  # dtype that points between checkpoints are rounded to

    @property
    def share(self) -> tuple[int, int]:
        """Index of this process, and the number of processes that share the batches."""
        return self.context.rank, self.context.world_size
