"""Work in jobs of their own: Slurm jobs, or processes of this machine, started by submitit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from clipmerge.errors import MeasureError, UsageError
from clipmerge.files.cache import user_cache

_CLUSTERS = ("local", "slurm")
#: A job's limit unless one is given: submitit's own is two to five minutes.
_MINUTES = 24 * 60


def executor_for(jobs: str) -> Any:
    """Make the executor for ``local`` or ``slurm``, with parameters: ``slurm:KEY=VALUE,...``."""
    try:
        import submitit
    except ImportError as error:
        raise UsageError("--jobs needs submitit; `pip install 'clipmerge[jobs]'`") from error
    cluster, _, words = jobs.partition(":")
    if cluster not in _CLUSTERS:
        raise UsageError(f"--jobs: '{cluster}' is not a place for jobs (places: {', '.join(_CLUSTERS)})")
    executor = submitit.AutoExecutor(folder=user_cache("jobs"), cluster=cluster)
    try:
        pairs = [word.split("=", 1) for word in words.split(",") if word]
        given = {key: int(value) if value.isdigit() else value for key, value in pairs}
        executor.update_parameters(**{"timeout_min": _MINUTES, **given})
    except (AssertionError, NameError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"--jobs: {reason}; for example slurm:slurm_partition=gpu,gpus_per_node=1") from error
    return executor


def run_in_jobs(jobs: str, works: Mapping[str, Callable[[], Any]], say: Callable[[str], None]) -> list[Any]:
    """Run every work in a job of its own, and return what they return; if this process is stopped, so are the jobs."""
    executor = executor_for(jobs)
    started = {name: executor.submit(work) for name, work in works.items()}
    say(f"{len(started)} jobs were started; their output is in {executor.folder}")
    try:
        failed = {}
        for name, job in started.items():
            error = job.exception()
            if error is not None:
                failed[name] = f"{(str(error).strip().splitlines() or [type(error).__name__])[-1]} ({job.paths.stderr})"
        if failed:
            first, reason = next(iter(failed.items()))
            raise MeasureError(
                f"{len(failed)} of {len(started)} jobs failed; first {first}: {reason}. The same command resumes"
            )
        return [job.result() for job in started.values()]
    finally:
        for job in started.values():
            if not job.done():
                job.cancel()
