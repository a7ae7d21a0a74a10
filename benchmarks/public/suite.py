"""A suite: pairs of checkpoints, the images to evaluate them on, and the figures that others
published.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from clipmerge.errors import RecipeError, UsageError, did_you_mean
from clipmerge.files.limits import MAX_RECIPE_BYTES
from clipmerge.files.reading import parse_yaml, read_text, refusing
from clipmerge.frozen import Frozen

_FILES = Path(__file__).parent / "suites"
_SUFFIXES = (".yaml", ".yml")
# Keys that apply to every pair without its own.
_OF_PAIRS = ("zeroshot", "finetuned", "id", "ood", "data", "published")
Percent = Annotated[float, Field(ge=0, le=100)]


class Release(Frozen):
    """A checkpoint that is a file at an address; hash and size (bytes) where they are published."""

    url: Annotated[str, Field(pattern=r"^https?://[^\s?#]+/[\w.-]+$")]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    size: Annotated[int, Field(gt=0)] | None = None

    @property
    def name(self) -> str:
        """Name of the file."""
        return self.url.rpartition("/")[2]

    def __str__(self) -> str:
        return self.url


class Published(Frozen):
    """Accuracy in per cent by source of images, as published; ``alpha`` if the model is a point of
    the curve.
    """

    point: str
    source: str
    accuracy: Mapping[str, Percent]
    alpha: float | None = None


class Pair(Frozen):
    """Two checkpoints, the images to evaluate them on by name, and ``data``, the images that
    recipes measure on.
    """

    zeroshot: str | Release
    finetuned: str | Release
    id: Annotated[Mapping[str, str], Field(min_length=1)]
    ood: Annotated[Mapping[str, str], Field(min_length=1)]
    name: str = ""
    data: str | None = None
    published: tuple[Published, ...] = ()

    @property
    def sources(self) -> dict[str, str]:
        """All images, by name."""
        return {**self.id, **self.ood}

    def expected(self) -> dict[str, float]:
        """Published zero-shot accuracy in per cent, by ID source."""
        zeroshot = [figures for figures in self.published if figures.alpha == 0.0]
        return {
            name: value
            for figures in zeroshot
            for name, value in figures.accuracy.items()
            if name in self.id
        }


class Suite(Frozen):
    """A benchmark.

    ``gflops`` is the cost of one forward pass of one image in 10^9 operations, ``tolerance`` the
    points by which zero-shot accuracy may differ from the published figure, ``notes`` are
    conventions and reservations.
    """

    name: str
    title: str
    model: str
    gflops: Annotated[float, Field(gt=0)]
    pairs: Annotated[tuple[Pair, ...], Field(min_length=1)]
    recipes: tuple[str, ...] = ()
    alphas: tuple[float, ...] = tuple(round(0.1 * step, 1) for step in range(11))
    tolerance: Annotated[float, Field(ge=0)] = 1.0
    notes: tuple[str, ...] = ()


def suite_names() -> tuple[str, ...]:
    """Names of the shipped suites, sorted."""
    return tuple(
        sorted(
            f"{file.stem}{suffix}"
            for file in _FILES.glob("*.yaml")
            for suffix in _sizes(_read(file))
        )
    )


def load_suite(name: str) -> Suite:
    """Load a shipped suite by its name, or one from a YAML file."""
    path = Path(name)
    if path.suffix in _SUFFIXES:
        return _suite(path, path.stem, "")
    for file in sorted(_FILES.glob("*.yaml")):
        suffix = name.removeprefix(file.stem)
        if name.startswith(file.stem) and suffix in _sizes(_read(file)):
            return _suite(file, name, suffix)
    known = suite_names()
    raise UsageError(f"no suite '{name}' (suites: {', '.join(known)}).{did_you_mean(name, known)}")


def _suite(file: Path, name: str, suffix: str) -> Suite:
    data = _read(file)
    sizes = data.pop("sizes", {})
    if sizes and suffix not in sizes:
        raise RecipeError(
            f"{file}: its sizes are {', '.join(map(repr, sizes))}; give one of them the name ''"
        )
    data |= sizes.get(suffix) or {}
    of_pairs = {key: data.pop(key) for key in _OF_PAIRS if key in data}
    pairs = data.pop("pairs", [{}])
    if not isinstance(pairs, list) or not all(isinstance(pair, dict) for pair in pairs):
        raise RecipeError(f"{file}: pairs: expected a list of pairs")
    try:
        return Suite.model_validate(
            {**data, "name": name, "pairs": [of_pairs | pair for pair in pairs]}
        )
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise RecipeError(f"{file}: {where}: {first['msg']}") from None


def _sizes(data: dict[str, Any]) -> list[str]:
    """Suffixes of the names of a file's suites."""
    sizes = data.get("sizes")
    return [str(suffix) for suffix in sizes] if isinstance(sizes, dict) else [""]


def _read(file: Path) -> dict[str, Any]:
    with refusing(RecipeError, f"{file}: cannot be read as a suite"):
        data = parse_yaml(read_text(file, MAX_RECIPE_BYTES))
    if not isinstance(data, dict) or not isinstance(data.get("sizes", {}), dict):
        raise RecipeError(f"{file}: is not a suite; see benchmarks/README.md")
    return data
