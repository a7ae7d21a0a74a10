"""Where things came from: checkpoints, calibration images, the tensors beside a plan, the classes of a head."""

from __future__ import annotations

from clipmerge.planning.frozen import Frozen


class SourceRecord(Frozen):
    """One input: what the user wrote, the commit it resolved to, and the sha256 of its weight files, if hashed."""

    source: str
    revision: str | None = None
    files: dict[str, str | None]


class TensorsRecord(Frozen):
    """The safetensors file beside a plan: its name and sha256."""

    file: str
    sha256: str


class CalibrationRecord(Frozen):
    """The images that were measured on.

    Attributes:
        source: What the user wrote.
        revision: The commit that a data set of the Hub resolved to.
        images: How many were drawn.
        requested: How many were asked for, others being held back; ``None`` where none were.
        classes: How many classes they have.
        batch_size: Images per batch.
        templates: Prompt templates.
        seed: Of the draw.
    """

    source: str
    revision: str | None = None
    images: int
    requested: int | None = None
    classes: int
    batch_size: int
    templates: tuple[str, ...]
    seed: int


class HeadRecord(Frozen):
    """The classes of a classification head whose zero-shot side is built from class prompts.

    Attributes:
        classes: Class names, in the order of the rows.
        templates: Prompt templates.
    """

    classes: tuple[str, ...]
    templates: tuple[str, ...]
