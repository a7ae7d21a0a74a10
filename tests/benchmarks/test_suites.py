"""Suites of public pairs: their files, release files from a real server, and their cost without a
download."""

import hashlib
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.public import release as module
from benchmarks.public.__main__ import main
from benchmarks.public.cost import cost_of
from benchmarks.public.release import MIRROR, fetch_release, path_of, size_of, write_config
from benchmarks.public.suite import Release, load_suite, suite_names
from clipmerge.errors import CheckpointError, ClipmergeError, HubError, RecipeError
from clipmerge.hub.download import download_model, resolve
from clipmerge.hub.ids import HubId
from clipmerge.images.dataset import load_images
from clipmerge.images.registry import find_known
from clipmerge.planning.recipe import load_recipe
from clipmerge.progress import Progress
from tests.support.command import one_line
from tests.support.hub_double import FakeHub, upload
from tests.support.image_files import save_hub_parquet
from tests.support.public_pairs import Releases, serving_files


@pytest.mark.uncounted
def test_every_suite_is_well_formed() -> None:
    sizes, tasks = ("", "-b16", "-l14"), ("cars", "eurosat", "resisc45", "gtsrb")
    issued = [f"corrupted-{task}{size}" for task in tasks for size in sizes]
    assert {*issued, "imagenet-b32", "imagenet-l14", "forgetting-ta8"} <= set(suite_names())
    for name in suite_names():
        suite = load_suite(name)
        assert suite.name == name
        assert list(suite.alphas) == sorted(set(suite.alphas))
        for recipe in suite.recipes:
            needs = load_recipe(recipe).measure
            assert all(pair.data for pair in suite.pairs) or not needs, name
        for pair in suite.pairs:
            assert pair.expected(), f"{name}: nothing to check the set-up against"
            for source in [*pair.sources.values(), *([pair.data] if pair.data else [])]:
                assert find_known(source) is not None, source
            for published in pair.published:
                assert published.accuracy.keys() <= pair.sources.keys()
                assert published.alpha is None or published.alpha in suite.alphas


GOOD = """
title: t
model: m
gflops: 1
zeroshot: a/b
finetuned: a/c
id: {test: imagenet}
ood: {far: imagenet-r}
"""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD.replace("title: t", "titel: t"), r"mine\.yaml: title: Field required"),
        (
            GOOD.replace("zeroshot: a/b", "zeroshot: {url: 'ftp://x/y'}"),
            r"mine\.yaml: pairs\.0\.zeroshot",
        ),
        (GOOD + "sizes: {-b16: {}}\n", r"mine\.yaml: its sizes are '-b16'"),
        (GOOD + "pairs: 3\n", r"mine\.yaml: pairs: expected a list of pairs"),
        ("[", r"mine\.yaml: cannot be read as a suite"),
        ("- 1", r"mine\.yaml: is not a suite"),
    ],
)
def test_a_wrong_file_is_an_error_of_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with one_line(RecipeError, message):
        load_suite(str(tmp_path / "mine.yaml"))
    with one_line(ClipmergeError, r"nowhere\.yaml: cannot be read as a suite"):
        load_suite("nowhere.yaml")


CONTENT = bytes(range(256)) * 9000
DIGEST = hashlib.sha256(CONTENT).hexdigest()
FILE = "acme/soups/releases/download/v1/model_0.pt"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Releases]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    place = tmp_path / "files" / FILE
    place.parent.mkdir(parents=True)
    place.write_bytes(CONTENT)
    with serving_files(tmp_path / "files") as releases:
        monkeypatch.setenv(MIRROR, releases.url)
        yield releases


def release(**known: object) -> Release:
    return Release.model_validate({"url": f"https://github.com/{FILE}", **known})


def test_a_file_is_fetched_once(server: Releases) -> None:
    path = fetch_release(release(sha256=DIGEST, size=len(CONTENT)), Progress())
    assert path.read_bytes() == CONTENT
    assert fetch_release(release(), Progress()) == path
    assert server.asked == [(f"/{FILE}", None)]
    assert size_of(release()) == len(CONTENT)


def test_a_broken_download_goes_on(server: Releases) -> None:
    server.cut_after = 1_000_000
    with pytest.raises(
        HubError, match=r"broke after 1000000 of 2304000 bytes\. The part received is kept"
    ):
        fetch_release(release(sha256=DIGEST), Progress())
    assert not path_of(release()).exists()
    assert fetch_release(release(sha256=DIGEST), Progress()).read_bytes() == CONTENT
    assert server.asked[1] == (f"/{FILE}", "bytes=1000000-")


@pytest.mark.parametrize(
    ("known", "message"),
    [
        (
            {"sha256": "0" * 64},
            rf"came with 2304000 bytes and sha256 {DIGEST}, but sha256 0+ is published",
        ),
        ({"size": 5}, r"but 5 bytes is published"),
    ],
)
def test_other_content_is_refused(server: Releases, known: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        fetch_release(release(**known), Progress())
    assert not path_of(release()).exists()


def test_a_failed_download_is_an_error_of_one_line(
    server: Releases, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(HubError, match=r"no_such\.pt: the server refused \(HTTP 404\)"):
        fetch_release(Release(url="https://github.com/acme/no_such.pt"), Progress())
    monkeypatch.setenv(MIRROR, "http://127.0.0.1:9")
    with one_line(HubError, r"run again\. CLIPMERGE_GITHUB names a mirror"):
        fetch_release(release(), Progress())
    assert size_of(release()) is None


URL = f"https://github.com/{FILE}"
CARD = (
    b"---\ndataset_info:\n- splits:\n  - {name: train, num_examples: 7}\n  - {name: test,"
    b" num_examples: 9}\n---\n"
)


@pytest.fixture
def cars(tmp_path: Path) -> bytes:
    return save_hub_parquet(tmp_path / "x.parquet", [0, 1, 2] * 3, group=3).read_bytes()


def suite(tmp_path: Path, *, finetuned: str, ood: str, zeroshot: str = "acme/base") -> Path:
    file = tmp_path / "mine.yaml"
    pair = f"""\
        title: t
        model: m
        gflops: 2
        alphas: [0, 1]
        zeroshot: {zeroshot}
        finetuned: {{url: "{finetuned}"}}
        id: {{test: "hf://datasets/acme/cars:test"}}
        ood: {{far: "{ood}"}}
        """
    file.write_text(textwrap.dedent(pair))
    return file


def bench_cost(file: Path, limit: int | None = None) -> dict[str, Any]:
    return cost_of(load_suite(str(file)), recipes=0, alphas=2, limit=limit, device="cpu")


def by_name(cost: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {each["what"]: each for each in cost["downloads"]}


@pytest.mark.usefixtures("server")
def test_sizes_counts_and_time_come_from_the_servers(
    hub: FakeHub, cars: bytes, tmp_path: Path, capsys: Any
) -> None:
    weights, config = bytes(1000), b"{}"
    upload(hub, "acme/base", {"model.safetensors": weights, "config.json": config})
    files = {"README.md": CARD, "data/test-0.parquet": cars, "data/train-0.parquet": cars}
    upload(hub, "acme/cars", files, kind="dataset")
    (tmp_path / "local").mkdir()
    file = suite(tmp_path, finetuned=URL, ood=str(tmp_path / "local"))
    cost = bench_cost(file, 4)
    found = by_name(cost)
    assert found["acme/base"]["bytes"] == 1002
    assert found[URL]["bytes"] == len(CONTENT)
    assert found["hf://datasets/acme/cars:test"] | {"problem": None} == {
        "what": "hf://datasets/acme/cars:test",
        "bytes": len(cars),
        "cached": False,
        "images": 9,
        "problem": None,
    }
    assert (found[str(tmp_path / "local")]["bytes"], found[str(tmp_path / "local")]["cached"]) == (
        0,
        True,
    )
    assert cost["bytes"] == 1002 + len(CONTENT) + len(cars)
    assert cost["forward_passes"] == 2 * 4 + 2 * 4  # four images of each source at both ends
    assert cost["seconds"] == pytest.approx(16 * 2e9 / cost["flops_per_second"])
    # without a limit nobody knows how many images the folder has
    cost = bench_cost(file)
    assert (cost["forward_passes"], cost["seconds"]) == (None, None)
    assert main([str(file), "--dry-run"]) == 0
    assert "The time is unknown: a source does not state its number" in capsys.readouterr().out
    assert not hub.requests("GET", r"/resolve/.*\.(safetensors|parquet)")


@pytest.mark.usefixtures("hub", "server")
def test_what_cannot_be_looked_up_is_reported(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "files" / FILE).unlink()
    cost = bench_cost(suite(tmp_path, finetuned=URL, ood="hf://datasets/acme/nothing:test"), 4)
    problems = {what: each["problem"] for what, each in by_name(cost).items()}
    assert problems[URL] == "the server does not state its size, or cannot be reached"
    assert "acme/base: not on the Hub" in str(problems["acme/base"])
    assert "hf://datasets/acme/nothing: not on the Hub" in str(
        problems["hf://datasets/acme/nothing:test"]
    )
    assert cost["bytes"] is None
    file = suite(tmp_path, finetuned=URL, ood="hf://datasets/acme/nothing:test")
    assert main([str(file), "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "In all not known." in told
    assert "the server does not state its size" in told


def test_a_file_that_is_no_tower_with_a_head_is_refused(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"visual.conv1.weight": torch.zeros(8, 3)}, tmp_path / "x.safetensors")
    with pytest.raises(
        CheckpointError, match=r"is not a ViT of OpenAI's CLIP with a head .*is it the right file"
    ):
        write_config(tmp_path / "x.safetensors")


def test_a_part_of_another_file_is_thrown_away(server: Releases) -> None:
    place = path_of(release())
    place.parent.mkdir(parents=True)
    (part := place.with_name(f"{place.name}.part")).write_bytes(CONTENT + b"more")
    with pytest.raises(HubError):
        fetch_release(release(), Progress())
    assert not part.exists()
    assert fetch_release(release(), Progress()).read_bytes() == CONTENT


def test_a_file_larger_than_any_release_is_not_kept(
    server: Releases, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_RELEASE_BYTES", 1 << 20)
    with pytest.raises(HubError, match=r"it is larger than 0 GiB\. Is it the right file\?"):
        fetch_release(release(), Progress())
    assert not path_of(release()).exists()


@pytest.mark.usefixtures("server")
def test_what_is_on_this_machine_costs_nothing(hub: FakeHub, cars: bytes, tmp_path: Path) -> None:
    upload(hub, "acme/base", {"model.safetensors": bytes(1000), "config.json": b"{}"})
    upload(hub, "acme/cars", {"data/test-0.parquet": cars}, kind="dataset")
    download_model(resolve(HubId("acme/base")))
    fetch_release(release(), Progress())
    everything = suite(tmp_path, finetuned=URL, ood="hf://datasets/acme/cars:test")
    cost = bench_cost(everything, 4)
    found = by_name(cost)
    assert found["acme/base"]["cached"]
    assert found[URL]["cached"]
    assert cost["bytes"] == len(cars)
    assert found["hf://datasets/acme/cars:test"]["images"] is None  # its card tells nothing
    assert cost["forward_passes"] == 16
    load_images("hf://datasets/acme/cars:test", whole=True)  # brings the images here
    cost = bench_cost(everything, 4)
    assert cost["bytes"] == 0
    assert by_name(cost)["hf://datasets/acme/cars:test"]["cached"]
    local = bench_cost(
        suite(tmp_path, finetuned=URL, ood=str(tmp_path / "files"), zeroshot=str(tmp_path))
    )
    found = by_name(local)[str(tmp_path)]
    assert (found["bytes"], found["cached"], found["problem"]) == (0, True, None)
