"""Records of origin: checkpoints, calibration images, the tensors beside a plan, the classes of a
head.
"""

from __future__ import annotations

from typing import Any

from pydantic import field_validator

from clipmerge.errors import counted
from clipmerge.files.paths import is_plain_name, split_part
from clipmerge.frozen import Frozen
from clipmerge.types import Json, Names


class SourceRecord(Frozen):
    """One input: the source as the user wrote it, its commit, the architecture that `model` named,
    and the sha256 of its weight files, if hashed.
    """

    source: str
    revision: str | None = None
    model: str | None = None
    files: dict[str, str | None]

    @property
    def pinned(self) -> str:
        """The source at its commit, whatever revision the user named."""
        if self.revision is None:
            return self.source
        address, part = split_part(self.source)
        return f"{address.partition('@')[0]}@{self.revision}" + (f"#{part}" if part else "")

    @property
    def identity(self) -> list[Any]:
        """The hashes of its files and the name of a part of them; where there are no hashes, the
        source and commit.
        """
        hashed = sorted(digest for digest in self.files.values() if digest)
        if not self.files or len(hashed) < len(self.files):
            return [self.source, self.revision]
        part = split_part(self.source)[1]
        return hashed if part is None else [*hashed, f"#{part}"]


def model_identity(provenance: Json, config: Json | None) -> list[Any]:
    """Everything that determines a model: the content of its weights, the part of a file that is
    meant, and its configuration.
    """
    return [SourceRecord(**provenance).identity, config]


class TensorsRecord(Frozen):
    """The safetensors file beside a plan: its name and sha256."""

    file: str
    sha256: str

    @field_validator("file")
    @classmethod
    def _is_beside_the_plan(cls, name: str) -> str:
        if not is_plain_name(name):
            raise ValueError("not the name of a file beside the plan")
        return name


class UnlabelledRecord(Frozen):
    """The unlabelled images that a measure learned from as well.

    Attributes:
        source: The source as the user wrote it.
        revision: The commit that a data set of the Hub resolved to.
        images: Number of images drawn.
        sha256: Hash over the hashes of the images, in the order drawn.
    """

    source: str
    revision: str | None = None
    images: int
    sha256: str

    @property
    def sentence(self) -> str:
        """The fact in one sentence."""
        images = counted(self.images, "unlabelled image", "unlabelled images")
        return f"It also learned from {images} of {self.source}."


class CalibrationRecord(Frozen):
    """The images used for measuring.

    Attributes:
        source: The source as the user wrote it.
        revision: The commit that a data set of the Hub resolved to.
        images: Number of images drawn.
        requested: Number of images asked for, if others were held back; ``None`` if none were.
        duplicates: Number of drawn images that were left out because they are copies of others.
        classes: Number of classes.
        classes_with_images: Number of classes that have an image among those used.
        batch_size: Images per batch.
        templates: Prompt templates.
        seed: Seed of the draw.
        labelled: Whether the images had labels; if not, the fine-tuned model gave them.
        unlabelled: Images without labels that were used as well, if any were.
        noise: Kind of device that drew the noise of changed copies; ``None`` if the CPU did.
    """

    source: str
    revision: str | None = None
    images: int
    requested: int | None = None
    duplicates: int = 0
    classes: int
    classes_with_images: int = 0
    batch_size: int
    templates: Names
    seed: int
    labelled: bool = True
    unlabelled: UnlabelledRecord | None = None
    noise: str | None = None


class HeadRecord(Frozen):
    """The classes of a classification head whose zero-shot counterpart is built from class prompts.

    Attributes:
        classes: Class names, in the order of the rows.
        templates: Prompt templates.
    """

    classes: Names
    templates: Names
