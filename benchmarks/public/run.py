"""Evaluate the pairs of a suite: check the set-up, sweep, write the page."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.public.page import page_of, picture_name
from benchmarks.public.release import fetch_release, write_config
from benchmarks.public.suite import Pair, Release, Suite
from clipmerge import __version__
from clipmerge.api.sweep import run_sweep
from clipmerge.distributed import distributed_context
from clipmerge.errors import MeasureError, UsageError, counted
from clipmerge.files.paths import user_cache
from clipmerge.images.registry import find_known
from clipmerge.planning.recipe import load_recipe
from clipmerge.progress import Logged, Progress
from clipmerge.report.figures import curve_files
from clipmerge.request import Calibration, SweepRequest, check_sweep

# Images per source of the look at the zero-shot model before a sweep.
_LOOK = 64
# Number of standard errors by which the accuracy on a sample may differ from that on all images.
_ERRORS = 3.0
_CLUSTERS = ("local", "slurm")
# A job's limit unless one is given: submitit's own is two to five minutes.
_MINUTES = 24 * 60


@dataclass(frozen=True)
class Settings:
    """What the user may change.

    Attributes:
        recipes: Names or files of recipes, in place of the suite's.
        alphas: Points of the curve, in place of the suite's.
        limit: Images sampled from each source; ``None`` for all.
        images: Images that recipes measure on.
        batch_size: Images per batch; ``None`` for the default.
        device: Device to compute on.
        seed: Seed of the samples, the bootstrap and random masks.
    """

    recipes: tuple[str, ...]
    alphas: tuple[float, ...]
    limit: int | None = None
    images: int = 1024
    batch_size: int | None = None
    device: str = "auto"
    seed: int = 0


def run_suite(
    suite: Suite,
    settings: Settings,
    folder: Path,
    *,
    check: bool = True,
    jobs: str | None = None,
    command: str = "",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Evaluate all pairs of a suite, and write a folder with the page, pictures and JSON.

    A pair whose JSON is in the folder already, made with the same settings, is not evaluated again.

    Args:
        suite: The suite.
        settings: What the user changed.
        folder: Folder to write.
        check: Whether to stop if zero-shot accuracy is not the published figure.
        jobs: Gives each pair a job of its own; see `executor_for`.
        command: Command that repeats the run, for the page.
        progress: Receiver of progress reports.

    Returns:
        The record of the whole suite.

    Raises:
        MeasureError: If zero-shot accuracy is not the published one.
        ClipmergeError: If anything else cannot be used or downloaded.
    """
    progress = progress or Logged()
    for pair in suite.pairs:
        check_sweep(_request(pair, "theta_0", "theta_1", settings))
    told = json.loads(json.dumps(asdict(settings)))
    named = {pair.name or suite.name: pair for pair in suite.pairs}
    records = {name: _read(folder / f"{name}.json", told) for name in named}
    missing = [name for name, record in records.items() if record is None]

    def evaluate(name: str, reports: Progress) -> dict[str, Any]:
        evaluated = _run(suite, named[name], settings, reports, check=check)
        record = {"settings": told, **evaluated}
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(record, indent=1, allow_nan=False)
        (folder / f"{name}.json").write_text(f"{text}\n", encoding="utf-8")
        return record

    if jobs is None:
        records |= {name: evaluate(name, progress) for name in missing}
    elif missing:
        works = {name: partial(evaluate, name, Logged()) for name in missing}
        records |= zip(missing, run_in_jobs(jobs, works, progress.say), strict=True)
    pairs = list(records.values())
    record = _about(suite, settings) | {
        "command": command,
        "pairs": pairs,
    }
    folder.mkdir(parents=True, exist_ok=True)
    for pair in record["pairs"]:
        picture = curve_files(pair["sweep"])["curve.png"]
        (folder / picture_name(suite.name, pair["name"])).write_bytes(picture)
    (folder / f"{suite.name}.md").write_text(page_of(record), encoding="utf-8")
    return record


def _read(file: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """An earlier record of a pair that was made with the same settings."""
    if not file.is_file():
        return None
    record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return record if record["settings"] == settings else None


def _request(pair: Pair, zeroshot: str, finetuned: str, settings: Settings) -> SweepRequest:
    return SweepRequest(
        zeroshot,
        (finetuned,),
        {name: _named(source) for name, source in pair.id.items()},
        {name: _named(source) for name, source in pair.ood.items()},
        recipes=tuple(load_recipe(recipe) for recipe in settings.recipes),
        alphas=settings.alphas,
        calibration=Calibration(
            source=_named(pair.data),
            images=settings.images,
            batch_size=settings.batch_size,
            device=settings.device,
        ),
        seed=settings.seed,
        limit=settings.limit,
        checks_overlap=False,  # splits of public data sets
    )


def _named(source: str | None) -> Any:
    """Find a known data set, even if a local folder has its name; return any other source
    unchanged."""
    return source and (find_known(source, on_disk=False) or source)


def _run(
    suite: Suite, pair: Pair, settings: Settings, progress: Progress, *, check: bool
) -> dict[str, Any]:
    zeroshot, finetuned = (_on_disk(end, progress) for end in (pair.zeroshot, pair.finetuned))
    request = _request(pair, zeroshot, finetuned, settings)
    if check and pair.expected():
        few = min(settings.limit or _LOOK, _LOOK)
        look = replace(request, recipes=(), alphas=(0.0, 1.0), limit=few)
        require_published(suite, pair, few, run_sweep(look, progress)[0])
    sweep, _ = run_sweep(request, progress)
    provenances = [sweep.pop("zeroshot"), *sweep.pop("finetuned")]
    addresses, counts, revisions = sweep.pop("sources"), sweep.pop("images"), sweep.pop("revisions")
    return {
        "name": pair.name,
        "zeroshot": _provenance(provenances[0], pair.zeroshot),
        "finetuned": _provenance(provenances[1], pair.finetuned),
        "data": {
            name: {
                "source": addresses[name],
                "revision": revisions.get(name),
                "images": counts[name],
            }
            for name in addresses
        },
        "checks": compared(suite, pair, settings.limit, _zeroshot_accuracy(sweep)),
        "published": [each.model_dump(mode="json") for each in pair.published],
        "sweep": sweep,
    }


def _zeroshot_accuracy(sweep: dict[str, Any]) -> dict[str, float]:
    rows = {row["alpha"]: row["accuracy"] for row in sweep["curve"]}
    accuracy: dict[str, float] = rows.get(0.0, {})
    return accuracy


def compared(
    suite: Suite, pair: Pair, limit: int | None, accuracy: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Compare zero-shot accuracies with the published figures, in per cent.

    On a sample of ``limit`` images they may also differ by three standard errors.
    """
    checks = []
    for name, published in pair.expected().items():
        if name in accuracy:
            share, allowed = published / 100, suite.tolerance
            if limit is not None:
                allowed += 100 * _ERRORS * math.sqrt(share * (1 - share) / limit)
            measured = 100 * accuracy[name]
            checks.append(
                {
                    "source": name,
                    "found": measured,
                    "published": published,
                    "allowed": allowed,
                    "passed": abs(measured - published) <= allowed,
                }
            )
    return checks


def require_published(suite: Suite, pair: Pair, limit: int, sweep: dict[str, Any]) -> None:
    """Stop if the zero-shot accuracy on a few images cannot be the published one."""
    for each in compared(suite, pair, limit, _zeroshot_accuracy(sweep)):
        if not each["passed"]:
            source = pair.sources[each["source"]]
            raise MeasureError(
                f"{suite.name}: zero-shot accuracy on {limit} images of {each['source']} ({source})"
                f" is {each['found']:.1f}%; published is {each['published']:g}%, and they may"
                f" differ by {each['allowed']:.1f} points. Nothing was swept: the checkpoint, class"
                " names, templates or preprocessing are not those of the published figure. Compare"
                f" `clipmerge data show {source.partition(':')[0]}`, or pass --no-check"
            )


def _on_disk(checkpoint: str | Release, progress: Progress) -> str:
    """Download a release file, and write the configuration that it lacks; any other checkpoint is
    opened by name."""
    if not isinstance(checkpoint, Release):
        return checkpoint
    file = fetch_release(checkpoint, progress)
    write_config(file)
    return str(file)


def _provenance(provenance: dict[str, Any], checkpoint: str | Release) -> dict[str, Any]:
    """Name a release file by its address, and say whether its hash is published."""
    if not isinstance(checkpoint, Release):
        return provenance | {"verified": None}
    return provenance | {"source": checkpoint.url, "verified": checkpoint.sha256 is not None}


def _about(suite: Suite, settings: Settings) -> dict[str, Any]:
    device = distributed_context(settings.device).device
    return {
        "clipmerge": __version__,
        "torch": torch.__version__,
        "device": (
            torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
        ),
        "suite": suite.name,
        "title": suite.title,
        "model": suite.model,
        "limit": settings.limit,
        "seed": settings.seed,
        "recipes": list(settings.recipes),
        "notes": list(suite.notes),
    }


def executor_for(jobs: str) -> Any:
    """Make the executor for ``local`` or ``slurm``, with parameters: ``slurm:KEY=VALUE,...``."""
    try:
        import submitit
    except ImportError as error:
        raise UsageError("--jobs needs submitit; `pip install submitit`") from error
    cluster, _, words = jobs.partition(":")
    if cluster not in _CLUSTERS:
        raise UsageError(
            f"--jobs: '{cluster}' is not a place for jobs (places: {', '.join(_CLUSTERS)})"
        )
    executor = submitit.AutoExecutor(folder=user_cache("jobs"), cluster=cluster)
    try:
        pairs = [word.split("=", 1) for word in words.split(",") if word]
        given = {key: int(value) if value.isdigit() else value for key, value in pairs}
        executor.update_parameters(**{"timeout_min": _MINUTES, **given})
    except (AssertionError, NameError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"--jobs: {reason}; for example slurm:slurm_partition=gpu,gpus_per_node=1"
        ) from error
    return executor


def run_in_jobs(
    jobs: str, works: Mapping[str, Callable[[], Any]], say: Callable[[str], None]
) -> list[Any]:
    """Run every work in a job of its own, and return what they return; if this process is stopped,
    so are the jobs."""
    executor = executor_for(jobs)
    started = {name: executor.submit(work) for name, work in works.items()}
    say(f"started {counted(len(started), 'job', 'jobs')}, with the output in {executor.folder}")
    try:
        failed = {}
        for name, job in started.items():
            error = job.exception()
            if error is not None:
                failed[name] = (
                    f"{(str(error).strip().splitlines() or [type(error).__name__])[-1]}"
                    f" ({job.paths.stderr})"
                )
        if failed:
            first, reason = next(iter(failed.items()))
            raise MeasureError(
                f"{len(failed)} of {len(started)} jobs failed; first {first}: {reason}. The same"
                " command resumes"
            )
        return [job.result() for job in started.values()]
    finally:
        for job in started.values():
            if not job.done():
                job.cancel()
