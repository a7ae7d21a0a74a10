"""Shared by all chunks of the output: their length, their buffers, and the errors they can
raise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from clipmerge.checkpoint import Inputs
from clipmerge.errors import CheckpointError
from clipmerge.families import is_statistic
from clipmerge.files.finite import require_finite
from clipmerge.files.safetensors import Array
from clipmerge.merging.formula import Values

#: Elements merged at a time: in float32, inputs and result stay in a core's cache during all passes
#: of the arithmetic.
CHUNK = 1 << 17
#: Returns a buffer for the next elements, given their number and dtype; it may be shorter.
BufferProvider = Callable[[int, str], Array]


def runs(size: int) -> Iterator[tuple[int, int]]:
    """Divide a tensor into runs of `CHUNK` elements, each given by its start and stop."""
    for start in range(0, size, CHUNK):
        yield start, min(start + CHUNK, size)


def is_sparsifiable(inputs: Inputs, name: str) -> bool:
    """Whether entries of a parameter may be dropped: not in a scalar or in batch norm
    statistics.
    """
    return inputs.entries(name)[0].size > 1 and not is_statistic(name)


def require_finite_inputs(
    inputs: Inputs, name: str, theta_0: Values, finetuned: Sequence[Values]
) -> None:
    """Refuse a parameter that holds NaN or Inf in one of the checkpoints."""
    require_finite(theta_0, name, inputs.zeroshot.source)
    for checkpoint, theta_1 in zip(inputs.finetuned, finetuned, strict=True):
        require_finite(theta_1, name, checkpoint.source)


def overflow(name: str, dtype: str) -> CheckpointError:
    """The error for a merge that overflows its dtype."""
    wider = "" if dtype in ("float32", "float64") else "use `dtype=float32`, or "
    return CheckpointError(
        f"tensor {name} overflows {dtype} when merged; {wider}use an alpha in [0, 1] and check the"
        " weights"
    )


def integers_differ(name: str, source: str) -> CheckpointError:
    """The error for an integer tensor that differs between checkpoints."""
    return CheckpointError(
        f"{source}: integer tensor {name} differs from the zero-shot one, but integers cannot be"
        " averaged; use the base that was fine-tuned"
    )
