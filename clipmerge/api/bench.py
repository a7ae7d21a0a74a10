"""`clipmerge bench`: evaluate published pairs by name; see `docs/how-to/public-suites.md`."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Unpack

from clipmerge import __version__
from clipmerge.api._results import BenchResult
from clipmerge.api.sweep import run_sweep
from clipmerge.config import BenchOptions, complete_options, with_options
from clipmerge.distributed import is_main_process
from clipmerge.errors import MeasureError, UsageError, counted
from clipmerge.evaluation.suites.cost import cost_of
from clipmerge.evaluation.suites.release import fetch_release, write_config
from clipmerge.evaluation.suites.suite import Pair, Release, Suite, load_suite
from clipmerge.files.paths import user_cache
from clipmerge.images.registry import find_known
from clipmerge.planning.recipe import load_recipe
from clipmerge.progress import Logged, Progress
from clipmerge.request import (
    Calibration,
    SweepRequest,
    check_sweep,
    command_text,
    parse_alphas,
    recipe_files,
)

#: The record in the output folder of a bench, which identifies it.
BENCH_RECORD = "bench.json"
# Number of standard errors by which the accuracy on a sample may differ from that on all images.
_ERRORS = 3.0
_CLUSTERS = ("local", "slurm")
# A job's limit unless one is given: submitit's own is two to five minutes.
_MINUTES = 24 * 60


@with_options(BenchOptions)
def bench(
    suite: str | os.PathLike[str],
    *,
    output: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    command: str | None = None,
    **options: Unpack[BenchOptions],
) -> BenchResult:
    """Evaluate a suite's pairs at every alpha and with recipes, and show the published figures next
    to ours.

    Zero-shot accuracy on the ID images is compared with the published figure first. Answers and
    plans are kept in the user's cache, so an interrupted call resumes when it is repeated.

    Args:
        suite: Name of a suite, or a YAML file.
        output: Folder to write; ``None`` to write nothing.
        progress: Receiver of progress reports; by default Python's logger ``clipmerge``.
        command: Command that repeats the call, for the record; by default derived from the
            arguments.
        **options: See `BenchOptions`.

    Returns:
        The record, and the folder that was written.

    Raises:
        MeasureError: If zero-shot accuracy is not the published one.
        ClipmergeError: If anything else cannot be used or downloaded.
    """
    chosen, reports = load_suite(os.fspath(suite)), progress or Logged()
    given = _of_suite(chosen, complete_options(BenchOptions, options))
    command = command or command_text("bench", suite, options=options, output=output)
    target = None if output is None else Path(output)
    if target is not None:
        from clipmerge.output.checks import check_output

        read = [
            *recipe_files(*given["recipes"] or ()),
            *([Path(suite)] if Path(suite).is_file() else []),
        ]
        check_output(target, overwrite=given["overwrite"], read=read, record=BENCH_RECORD)
    for pair in chosen.pairs:
        check_sweep(_request(pair, "theta_0", "theta_1", given, command))
    record = _record(chosen, given, command)
    if given["jobs"] is None:
        record["pairs"] = [_run(chosen, pair, given, command, reports) for pair in chosen.pairs]
    else:
        works = {
            pair.name or chosen.name: partial(_run, chosen, pair, given, command, Logged())
            for pair in chosen.pairs
        }
        record["pairs"] = run_in_jobs(given["jobs"], works, reports.say)
    if target is not None and is_main_process():
        _write(record, target, overwrite=given["overwrite"])
    return BenchResult(target, record)


def executor_for(jobs: str) -> Any:
    """Make the executor for ``local`` or ``slurm``, with parameters: ``slurm:KEY=VALUE,...``."""
    try:
        import submitit
    except ImportError as error:
        raise UsageError("`jobs` needs submitit; `pip install 'clipmerge[jobs]'`") from error
    cluster, _, words = jobs.partition(":")
    if cluster not in _CLUSTERS:
        raise UsageError(
            f"`jobs`: '{cluster}' is not a place for jobs (places: {', '.join(_CLUSTERS)})"
        )
    executor = submitit.AutoExecutor(folder=user_cache("jobs"), cluster=cluster)
    try:
        pairs = [word.split("=", 1) for word in words.split(",") if word]
        given = {key: int(value) if value.isdigit() else value for key, value in pairs}
        executor.update_parameters(**{"timeout_min": _MINUTES, **given})
    except (AssertionError, NameError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"`jobs`: {reason}; for example slurm:slurm_partition=gpu,gpus_per_node=1"
        ) from error
    return executor


def run_in_jobs(
    jobs: str, works: Mapping[str, Callable[[], Any]], say: Callable[[str], None]
) -> list[Any]:
    """Run every work in a job of its own, and return what they return; if this process is stopped,
    so are the jobs.
    """
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


def bench_cost(suite: str | os.PathLike[str], options: BenchOptions) -> dict[str, Any]:
    """Estimate how much a suite downloads, and how long its evaluation takes on this machine."""
    chosen = load_suite(os.fspath(suite))
    given = _of_suite(chosen, complete_options(BenchOptions, options))
    recipes, alphas = len(given["recipes"] or ()), len(given["alphas"] or ())
    cost = cost_of(
        chosen, recipes=recipes, alphas=alphas, limit=given["limit"], device=given["device"]
    )
    return {"suite": chosen.name, "title": chosen.title, "notes": list(chosen.notes), **cost}


def _of_suite(suite: Suite, options: BenchOptions) -> BenchOptions:
    """The options with the suite's recipes and alphas, if none are given."""
    recipes, alphas = options["recipes"], options["alphas"]
    return {
        **options,
        "recipes": suite.recipes if recipes is None else recipes,
        "alphas": suite.alphas if alphas is None else parse_alphas(alphas),
    }


def _request(
    pair: Pair, zeroshot: str, finetuned: str, options: BenchOptions, command: str
) -> SweepRequest:
    return SweepRequest(
        zeroshot,
        finetuned,
        {name: _named(source) for name, source in pair.id.items()},
        {name: _named(source) for name, source in pair.ood.items()},
        recipes=tuple(load_recipe(recipe) for recipe in options["recipes"] or ()),
        alphas=parse_alphas(options["alphas"] or ()),
        calibration=Calibration.from_options({**options, "data": _named(pair.data)}),
        seed=options["seed"],
        command=command,
        limit=options["limit"],
        checks_overlap=False,  # splits of public data sets
    )


def _named(source: str | None) -> Any:
    """Find a known data set, even if a local folder has its name; return any other source
    unchanged.
    """
    return source and (find_known(source, on_disk=False) or source)


def _run(
    suite: Suite, pair: Pair, options: BenchOptions, command: str, progress: Progress
) -> dict[str, Any]:
    zeroshot, finetuned = (_on_disk(end, progress) for end in (pair.zeroshot, pair.finetuned))
    checks: list[dict[str, Any]] = []

    def check(found: dict[str, float]) -> None:
        checks.extend(compared(suite, pair, options, found, progress.say))

    sweep, _ = run_sweep(
        _request(pair, zeroshot, finetuned, options, command), progress, resumes=True, check=check
    )
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
        "checks": checks,
        "published": [each.model_dump(mode="json") for each in pair.published],
        "sweep": sweep,
    }


def compared(
    suite: Suite,
    pair: Pair,
    options: BenchOptions,
    found: Mapping[str, float],
    say: Callable[[str], None],
) -> Iterator[dict[str, Any]]:
    """Compare zero-shot accuracies with the published figures, and stop at a wrong one unless
    checks are off.
    """
    for name, published in pair.expected().items():
        share, percent, allowed = published / 100, 100 * found[name], suite.tolerance
        if options["limit"] is not None:  # a sample's accuracy may differ from that on all images
            allowed += 100 * _ERRORS * math.sqrt(share * (1 - share) / options["limit"])
        passed = abs(percent - published) <= allowed
        yield {
            "source": name,
            "found": percent,
            "published": published,
            "allowed": allowed,
            "passed": passed,
        }
        if passed:
            continue
        source = pair.sources[name]
        text = (
            f"{suite.name}: zero-shot accuracy on {name} ({source}) is {percent:.1f}%; published is"
            f" {published:g}%, and they may differ by {allowed:.1f} points"
        )
        if options["check"]:
            raise MeasureError(
                f"{text}. Nothing was swept: the checkpoint, class names, templates or"
                " preprocessing are not those of the published figure. Compare `clipmerge data"
                f" show {source.partition(':')[0]}`, or pass `check=False` to continue regardless"
            )
        say(f"{text}; continuing because of `check=False`")


def _on_disk(checkpoint: str | Release, progress: Progress) -> str:
    """Download a release file, and write the configuration that it lacks; any other checkpoint is
    opened by name.
    """
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


def _record(suite: Suite, options: BenchOptions, command: str) -> dict[str, Any]:
    import torch

    from clipmerge.distributed import distributed_context

    device = distributed_context(options["device"]).device
    return {
        "clipmerge": __version__,
        "torch": torch.__version__,
        "device": (
            torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
        ),
        "suite": suite.name,
        "title": suite.title,
        "model": suite.model,
        "limit": options["limit"],
        "seed": options["seed"],
        "command": command,
        "notes": list(suite.notes),
    }


def _write(record: dict[str, Any], output: Path, *, overwrite: bool) -> None:
    from clipmerge.files.staging import staged
    from clipmerge.output.schemas import json_text
    from clipmerge.report.bench_page import bench_page, picture_name
    from clipmerge.report.sweep_picture import curve_files

    pictures = {
        picture_name(record["suite"], pair["name"]): curve_files(pair["sweep"])["curve.png"]
        for pair in record["pairs"]
    }
    with staged(output, overwrite=overwrite) as folder:
        for name, picture in pictures.items():
            (folder / name).write_bytes(picture)
        (folder / f"{record['suite']}.md").write_text(bench_page(record), encoding="utf-8")
        (folder / BENCH_RECORD).write_text(json_text("bench", record), encoding="utf-8")
