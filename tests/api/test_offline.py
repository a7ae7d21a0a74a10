"""Everything from the Hub's cache, offline: each command tells of the commit that it uses
unchecked."""

from pathlib import Path

import pytest
from huggingface_hub import constants

from clipmerge.images.dataset import load_images
from tests.support.command import done
from tests.support.hub_double import FakeHub, upload
from tests.support.image_files import save_hub_parquet
from tests.support.tiny_clip import Folders

CARS = "hf://datasets/acme/cars"


@pytest.mark.slow
def test_commands_tell_what_they_take_unchecked(
    hub: FakeHub, pair: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    splits = ("test", "train", "validation")
    files = {}
    for at, split in enumerate(splits):
        written = save_hub_parquet(tmp_path / "x.parquet", [0, 1, 2] * 8, first=100 * at)
        files[f"{split}.parquet"] = written.read_bytes()
    upload(hub, "acme/cars", files, kind="dataset")
    models = ("acme/base", "acme/tuned")
    for name, folder in zip(models, pair, strict=True):
        upload(hub, name, folder)
    plan = tmp_path / "plan.json"
    done("plan", *models, "-r", "wise-ft", "-o", plan)
    for split in splits:
        load_images(f"{CARS}:{split}", whole=True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    before = len(hub.log)
    note = "HF_HUB_OFFLINE is set: hf://datasets/acme/cars is the cached commit"

    def notes(*command: object) -> int:
        ended = done(*command)
        return " ".join(ended.err.split()).count(note)

    out = ("--images", "12", "-o")
    assert notes("evaluate", "acme/tuned", "--data", f"test={CARS}:test") == 1
    assert (
        notes(
            "merge",
            *models,
            "-r",
            "wise-ft",
            "--data",
            f"{CARS}:train",
            *out,
            tmp_path / "data-free",
        )
        == 1
    )
    learns = ("-r", "auto", "--set", "measure.steps=2", "--data", f"{CARS}:train")
    # both of its sources are at this commit, and the same line is said once
    assert (
        notes(
            "merge",
            *models,
            *learns,
            "--unlabelled",
            f"{CARS}:validation",
            *out,
            tmp_path / "learned",
        )
        == 1
    )
    assert (
        notes(
            "merge",
            *models,
            "-r",
            "wise-ft",
            "--keep",
            f"cars={CARS}:test",
            "-o",
            tmp_path / "other_tasks",
        )
        == 1
    )
    assert (
        notes("apply", plan, "--output", tmp_path / "applied") == 0
    )  # a plan names the commits of its models
    same = [
        (tmp_path / name / "model.safetensors").read_bytes()
        for name in ("applied", "data-free", "other_tasks")
    ]
    assert same[0] == same[1] == same[2]
    assert len(hub.log) == before
