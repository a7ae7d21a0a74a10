"""Every fault that the Hub can inject, by the real command line and client: no traceback, no hang,
no half of anything.

Each row is one fault that lasts. A command ends with one line that says what went wrong; a push
leaves a repository absent, empty or whole, a merge leaves no output; and when the fault is gone the
same command works.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import Outcome, clipmerge, refused
from tests.support.hub_double import FakeHub, put, serving
from tests.support.image_files import save_hub_parquet
from tests.support.merged_output import save_output
from tests.support.tiny_clip import Folders

TIMEOUT = 0.3  # seconds that a request waits for an answer which does not come
# times that a command may send the request which fails: the client tries six times, and clipmerge
# three
MOST = 20

NEW, NOTHING = "was created and is empty: no file was published", "Nothing was published"
SLOW = {"status": 0, "delay": 3 * TIMEOUT}
HTML = {"status": 200, "body": "<html>Please log in to the hotel's network</html>"}
GONE = {"status": 404, "headers": {"X-Error-Code": "RepoNotFound"}}
BAD_YAML = {"status": 400, "body": {"errors": [{"message": "bad"}]}}
GATED = {"status": 403, "headers": {"X-Error-Code": "GatedRepo"}}


@dataclass(frozen=True)
class Row:
    """A command, the request that fails, the kind of failure, and the message."""

    command: str
    where: str
    fault: dict[str, Any]
    message: str

    def __str__(self) -> str:
        fault = {key: value for key, value in self.fault.items() if key != "body"} | dict(
            self.fault.get("headers", {})
        )
        told = "-".join(f"{key}={value}" for key, value in fault.items() if key != "headers")
        return f"{self.command}-{self.where}-{told}"


WHERE = {
    "whoami": ("GET", "/api/whoami-v2"),
    "create": ("POST", "/api/repos/create"),
    "target": ("GET", "/api/models/alice/robust$"),
    "tree": ("GET", "/api/models/alice/robust/tree/"),
    "yaml": ("POST", "/api/validate-yaml"),
    "preupload": ("POST", "/preupload/"),
    "batch": ("POST", "/objects/batch"),
    "put": ("PUT", "/_lfs/"),
    "verify": ("POST", "/_lfs/verify"),
    "commit": ("POST", "/commit/"),
    "model": ("GET", "/api/models/acme/tuned"),
    "config": ("GET", "/acme/tuned/resolve/.*/config.json"),
    "weights": ("GET", "/acme/tuned/resolve/.*/model.safetensors"),
    "dataset": ("GET", "/api/datasets/acme/cars"),
    "card": ("GET", "/datasets/acme/cars/resolve/.*/README.md"),
    "rows": ("GET", r"/datasets/acme/cars/resolve/.*\.parquet"),
}
PUSH = [
    Row("push", "whoami", {"status": 401}, f"no token, or one that is not valid.*{NOTHING}"),
    Row("push", "whoami", HTML, f"the answer was not the Hub's.*{NOTHING}"),
    Row("push", "target", {"status": 500}, f"the Hub failed .HTTP 500.*{NOTHING}"),
    Row(
        "push",
        "create",
        {"status": 401},
        f"not valid.*{NOTHING}. If the repository was created, it is empty",
    ),
    Row("push", "tree", {"status": 503}, f"the Hub failed.*{NEW}"),
    Row("push", "yaml", BAD_YAML, f"Invalid metadata in README.*{NEW}"),
    Row("push", "preupload", {"status": 403}, f"no right.*{NEW}"),
    Row(
        "push",
        "batch",
        {"status": 502},
        "the Hub failed.*Whether the files were published is not known",
    ),
    Row("push", "put", {"status": 403}, f"no right.*{NEW}"),
    Row("push", "verify", {"status": 404}, f"does not know it.*{NEW}"),
    Row("push", "commit", {"status": 412}, f"somebody else committed meanwhile.*{NEW}"),
    Row("push", "commit", {"status": 413, "body": "<html>"}, f"the Hub refused .HTTP 413.*{NEW}"),
    Row(
        "push",
        "commit",
        {"status": 500},
        "the Hub failed .HTTP 500.*Whether the files were published is not known",
    ),
    Row("push", "commit", SLOW, "no answer in time.*Whether the files were published is not known"),
]
READ = [
    Row("merge", "model", {"status": 401}, "no token, or one that is not valid"),
    Row("merge", "model", {"status": 404}, "the Hub does not know it"),
    Row("merge", "model", GATED, "access to it is gated. Accept its conditions"),
    Row("merge", "config", {"status": 500}, "the Hub failed .HTTP 500"),
    Row("merge", "weights", {"cut_response": 100}, "the connection broke"),
    Row("merge", "weights", SLOW, "no answer in time"),
    Row("inspect", "weights", HTML, "a safetensors header cannot be read"),
    Row("merge --push", "whoami", {"status": 403}, f"no right.*{NOTHING}"),
    Row("plan", "dataset", GONE, "reading hf://datasets/acme/cars: not on the Hub, or private"),
    Row(
        "plan",
        "card",
        {"status": 500},
        "downloading hf://datasets/acme/cars@.*: the Hub failed .HTTP 500",
    ),
    Row(
        "plan",
        "rows",
        {"status": 200, "body": "<html></html>"},
        r"\.parquet: cannot be read as Parquet",
    ),
    Row("evaluate", "dataset", {"status": 503}, "reading hf://datasets/acme/cars: the Hub failed"),
]


@dataclass
class Bench:
    """A Hub with two models and a dataset, an output to push, and the commands."""

    hub: FakeHub
    folder: Path
    pair: Folders
    merged: Path
    made: list[Path] = field(default_factory=list)

    def run(self, command: str) -> Outcome:
        out, plan = self.folder / "out", self.folder / "plan.json"
        cars, quick = (
            "hf://datasets/acme/cars:test",
            ("-r", "wise-ft-id", "--set", "measure.steps=1"),
        )
        merge = ("merge", "acme/base", "acme/tuned", "-r", "wise-ft", "-o", out)
        arguments: dict[str, tuple[object, ...]] = {
            "push": ("push", self.merged, "alice/robust"),
            "merge": merge,
            "merge --push": (
                "merge",
                *self.pair,
                "-r",
                "wise-ft",
                "-o",
                out,
                "--push",
                "alice/robust",
            ),
            "inspect": ("inspect", "acme/tuned"),
            "plan": ("plan", *self.pair, *quick, "--data", cars, "--images", "6", "-o", plan),
            "evaluate": ("evaluate", self.pair[0], "--data", f"test={cars}"),
        }
        return clipmerge(*arguments[command])

    def left_behind(self) -> list[str]:
        """Whatever lies in the folder that was not there before."""
        return sorted(path.name for path in self.folder.iterdir() if path not in self.made)


@pytest.fixture(scope="module")
def cars(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return save_hub_parquet(
        tmp_path_factory.mktemp("cars") / "x.parquet", [0, 1, 2] * 3, group=3
    ).read_bytes()


@pytest.fixture
def bench(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pair: Folders, cars: bytes
) -> Iterator[Bench]:
    (tmp_path / "work").mkdir()
    merged = save_output(pair[1], tmp_path / "work" / "merged")
    with serving(tmp_path, monkeypatch) as hub:
        for name, source in zip(("acme/base", "acme/tuned"), pair, strict=True):
            put(hub, name, source)
        put(
            hub,
            "acme/cars",
            {"README.md": b"---\nlicense: mit\n---\n", "test.parquet": cars},
            kind="dataset",
        )
        yield Bench(hub, tmp_path / "work", pair, merged, [merged])


def published(hub: FakeHub) -> set[str] | None:
    """The contents of the repository; ``None`` without one."""
    return set(hub.files("alice/robust")) if ("model", "alice/robust") in hub.repos else None


def by_request(rows: list[Row]) -> Iterator[Any]:
    """The rows; all but the first fault of each command's request are slow, because they are
    many."""
    seen = set()
    for row in rows:
        yield pytest.param(
            row, id=str(row), marks=pytest.mark.slow if (row.command, row.where) in seen else ()
        )
        seen.add((row.command, row.where))


@pytest.mark.parametrize("row", list(by_request([*PUSH, *READ])))
def test_a_lasting_fault(bench: Bench, monkeypatch: pytest.MonkeyPatch, row: Row) -> None:
    if row.fault is SLOW:  # of other rows, none depends on how busy the machine is
        monkeypatch.setenv("CLIPMERGE_HUB_TIMEOUT", str(TIMEOUT))
    fault = bench.hub.fail(*WHERE[row.where], times=999, **row.fault)
    line = refused(bench.run(row.command))
    assert 0 < 999 - fault.times <= MOST
    assert re.search(row.message, line), line
    assert bench.left_behind() == []
    whole = {".gitattributes", *(path.name for path in bench.merged.iterdir())}
    assert published(bench.hub) in (None, {".gitattributes"}, whole if row.fault is SLOW else None)
    bench.hub.faults.clear()
    monkeypatch.delenv("CLIPMERGE_HUB_TIMEOUT", raising=False)
    again = bench.run(row.command)
    assert again.code == 0, again.err
    if row.command == "push":
        assert line.endswith(f"Go on with `clipmerge push {bench.merged} alice/robust`.")
        assert published(bench.hub) == whole
