"""Answers and plans of a long evaluation, kept in the user's cache so that an interrupted command
can resume.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from clipmerge import __version__
from clipmerge.checkpoint import Inputs
from clipmerge.errors import ClipmergeError
from clipmerge.evaluation.answer_cache import AnswerCache
from clipmerge.evaluation.points import Point
from clipmerge.files.paths import user_cache
from clipmerge.images.dataset import LabelledImages
from clipmerge.images.prompts import templates_for
from clipmerge.planning.plan import Plan, digest_of, write_plan_files
from clipmerge.planning.provenance import model_identity
from clipmerge.planning.recipe import Recipe
from clipmerge.request import SweepRequest

# The code that decides which class an image gets: it may change between commits that have the same
# version.
_CODE = ("models/**/*.py", "evaluation/**/*.py", "merging/**/*.py", "images/*.py")


@dataclass(frozen=True)
class SweepCache:
    """Answers and plans of one pair of checkpoints."""

    folder: Path  # its name is a hash of the checkpoints, the dtype and the code

    @classmethod
    def of(cls, request: SweepRequest, inputs: Inputs) -> SweepCache:
        """Find where answers and plans for two checkpoints are kept."""
        package = Path(__file__).parents[1]
        code = sorted(file for pattern in _CODE for file in package.glob(pattern))
        what = {
            "version": __version__,
            "code": [hashlib.sha256(file.read_bytes()).hexdigest() for file in code],
            "checkpoints": [
                model_identity(checkpoint.provenance(), checkpoint.config)
                for checkpoint in inputs.checkpoints
            ],
            "dtype": request.dtype,
        }
        return cls(user_cache("bench") / digest_of(what))

    def answers(self, request: SweepRequest, loaded: Mapping[str, LabelledImages]) -> AnswerCache:
        """The kept answers for some sources."""
        described = {name: _described(request, images) for name, images in loaded.items()}
        return AnswerCache(
            self.folder, {name: text for name, text in described.items() if text is not None}
        )

    def plan(self, request: SweepRequest, recipe: Recipe) -> Plan | None:
        """The plan that an earlier run made for a recipe; ``None`` if there is none, or it cannot
        be read.
        """
        file = self._file(request, recipe)
        try:
            return Plan.load(file) if file is not None and file.is_file() else None
        except (ClipmergeError, OSError):
            return None

    def keep_plan(self, request: SweepRequest, recipe: Recipe, plan: Plan) -> None:
        """Keep a plan; a folder that cannot be written costs only the resumption."""
        file = self._file(request, recipe)
        if file is not None:
            with contextlib.suppress(ClipmergeError, OSError):
                file.parent.mkdir(parents=True, exist_ok=True)
                write_plan_files(file, plan)

    def _file(self, request: SweepRequest, recipe: Recipe) -> Path | None:
        """The file of a recipe's plan; ``None`` if images may change while their name stays."""
        data = request.calibration
        if recipe.measure and (
            data.unlabelled is not None or not str(data.source).startswith("hf://")
        ):
            return None
        settings = [
            recipe.model_dump(mode="json"),
            request.seed,
            data.images,
            data.held_back,
            data.templates,
        ]
        images = [str(data.source), str(data.classes), data.batch_size] if recipe.measure else []
        return self.folder / "plans" / f"{digest_of([settings, images])}.json"


def key_of(point: Point) -> str:
    """Key of a point among the answers of two checkpoints."""
    if point.checkpoint is not None:
        models = [
            model_identity(checkpoint.provenance(), checkpoint.config)
            for checkpoint in point.checkpoint.finetuned
        ]
        return f"checkpoint {digest_of(models)}"
    if point.plan is None:
        return f"alpha {point.alpha!r}"
    return f"plan {point.plan.digest}"


def _described(request: SweepRequest, images: LabelledImages) -> str | None:
    """Everything that the answers on a source depend on; ``None`` if its images may change."""
    if images.revision is None:
        return None
    data = request.calibration
    what = [images.source, images.revision, len(images), images.class_names, images.imagenet_rows]
    what += [digest_of([images.store.name(place) for place in range(len(images))])]
    what += [
        templates_for(data.templates, images.templates),
        data.batch_size,
        request.limit,
        request.seed,
    ]
    return json.dumps(what)
