"""The cost of a suite, looked up on a Hub and a server of release files without downloading anything."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clipmerge.api.bench import bench_cost
from clipmerge.errors import CheckpointError
from clipmerge.evaluation.suites.release import MIRROR, path_of, write_config
from clipmerge.evaluation.suites.suite import Release
from clipmerge.hub.download import fetch
from clipmerge.hub.ids import HubId
from clipmerge.images.dataset import load_images
from tests.support.command import clipmerge
from tests.support.hub_double import FakeHub, serving, upload
from tests.support.image_files import save_hub_parquet
from tests.support.public_pairs import serving_files

FILE = "acme/soups/releases/download/v1/model_0.pt"
URL = f"https://github.com/{FILE}"
CARD = (
    b"---\ndataset_info:\n- splits:\n  - name: train\n    num_examples: 7\n  - name: test\n    num_examples: 9\n---\n"
)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "releases" / FILE).parent.mkdir(parents=True)
    (tmp_path / "releases" / FILE).write_bytes(bytes(5000))
    with serving(tmp_path, monkeypatch) as server, serving_files(tmp_path / "releases") as releases:
        monkeypatch.setenv(MIRROR, releases.url)
        yield server


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


def by_name(cost: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {each["what"]: each for each in cost["downloads"]}


def test_sizes_counts_and_time_come_from_the_servers(hub: FakeHub, cars: bytes, tmp_path: Path) -> None:
    weights, config = bytes(1000), b"{}"
    upload(hub, "acme/base", {"model.safetensors": weights, "config.json": config})
    upload(
        hub, "acme/cars", {"README.md": CARD, "data/test-0.parquet": cars, "data/train-0.parquet": cars}, kind="dataset"
    )
    (tmp_path / "local").mkdir()
    file = suite(tmp_path, finetuned=URL, ood=str(tmp_path / "local"))
    cost = bench_cost(file, {"limit": 4})
    found = by_name(cost)
    assert found["acme/base"]["bytes"] == 1002
    assert found[URL]["bytes"] == 5000
    assert found["hf://datasets/acme/cars:test"] | {"problem": None} == {
        **{"what": "hf://datasets/acme/cars:test", "bytes": len(cars), "cached": False, "images": 9, "problem": None},
    }
    assert (found[str(tmp_path / "local")]["bytes"], found[str(tmp_path / "local")]["cached"]) == (0, True)
    assert cost["bytes"] == 1002 + 5000 + len(cars)
    assert cost["forward_passes"] == 2 * 4 + 2 * 4  # four images of each source at both ends
    assert cost["seconds"] == pytest.approx(16 * 2e9 / cost["flops_per_second"])
    # without a limit nobody knows how many images the folder has
    cost = bench_cost(file, {})
    assert (cost["forward_passes"], cost["seconds"]) == (None, None)
    told = clipmerge("bench", file, "--dry-run")
    assert "The time is unknown: a source does not state its number of images" in told.out
    assert not hub.requests("GET", r"/resolve/.*\.(safetensors|parquet)")


def test_what_is_on_this_machine_costs_nothing(hub: FakeHub, cars: bytes, tmp_path: Path) -> None:
    upload(hub, "acme/base", {"model.safetensors": bytes(1000), "config.json": b"{}"})
    upload(hub, "acme/cars", {"data/test-0.parquet": cars}, kind="dataset")
    fetch(HubId("acme/base"), endpoint=hub.url)
    place = path_of(Release(url=URL))
    place.parent.mkdir(parents=True)
    place.write_bytes(bytes(5000))
    everything = suite(tmp_path, finetuned=URL, ood="hf://datasets/acme/cars:test")
    cost = bench_cost(everything, {"limit": 4})
    found = by_name(cost)
    assert found["acme/base"]["cached"]
    assert found[URL]["cached"]
    assert cost["bytes"] == len(cars)
    assert found["hf://datasets/acme/cars:test"]["images"] is None  # its card tells nothing
    assert cost["forward_passes"] == 16
    load_images("hf://datasets/acme/cars:test", whole=True)  # brings the images here
    cost = bench_cost(everything, {"limit": 4})
    assert cost["bytes"] == 0
    assert by_name(cost)["hf://datasets/acme/cars:test"]["cached"]
    local = bench_cost(suite(tmp_path, finetuned=URL, ood=str(tmp_path / "releases"), zeroshot=str(tmp_path)), {})
    found = by_name(local)[str(tmp_path)]
    assert (found["bytes"], found["cached"], found["problem"]) == (0, True, None)


def test_what_cannot_be_looked_up_is_told(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "releases" / FILE).unlink()
    cost = bench_cost(suite(tmp_path, finetuned=URL, ood="hf://datasets/acme/nothing:test"), {"limit": 4})
    problems = {what: each["problem"] for what, each in by_name(cost).items()}
    assert problems[URL] == "the server does not state its size, or cannot be reached"
    assert "acme/base: not on the Hub" in str(problems["acme/base"])
    assert "hf://datasets/acme/nothing: not on the Hub" in str(problems["hf://datasets/acme/nothing:test"])
    assert cost["bytes"] is None
    told = clipmerge("bench", suite(tmp_path, finetuned=URL, ood="hf://datasets/acme/nothing:test"), "--dry-run")
    assert told.code == 0, told.err
    assert "In all not known." in told.out
    assert "the server does not state its size" in " ".join(told.out.split())


@pytest.mark.parametrize("shape", [(), (4, 3, 8, 0), (8, 3)])
def test_a_file_that_is_no_tower_with_a_head_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"visual.conv1.weight": torch.zeros(shape)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=r"is not a ViT of OpenAI's CLIP with a head .*is it the right file"):
        write_config(tmp_path / "x.safetensors")
