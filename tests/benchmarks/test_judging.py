"""One small pair, judged as the commands do it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from open_clip.model import CLIP
from PIL import Image

import clipmerge
from benchmarks.__main__ import main
from benchmarks.equal_labels import split
from benchmarks.judge import judge
from benchmarks.make_pairs import hub
from benchmarks.make_pairs.backbone import config_of
from benchmarks.make_pairs.distilled import distil
from benchmarks.make_pairs.pair import Pair, Places
from benchmarks.make_pairs.pictures import Source
from benchmarks.models import Regime, load, save_open_clip
from benchmarks.page import PAGES, table, write_pages
from benchmarks.pair_results import CURVE, every_result
from benchmarks.tables import TABLES

pytestmark = pytest.mark.slow


def test_curve_is_that_of_sweep(pair: Pair, judged: Path, tmp_path: Path) -> None:
    """The judge loads models by their own library; `sweep` has code of its own."""
    (results,) = every_result(judged)
    correct = results.correct(CURVE)
    swept = clipmerge.sweep(
        str(pair.zeroshot),
        str(pair.finetuned),
        id={"test": str(pair.file("test"))},
        ood={name: str(pair.file(f"ood-{name}")) for name in pair.ood},
        template=[pair.template],
        alphas=[0, 0.5, 1],
        device="cpu",
    )
    for row in swept.record["curve"]:
        at = results.methods[CURVE]["alphas"].index(row["alpha"])
        assert correct["test"][at].mean() == pytest.approx(row["accuracy"]["test"], abs=1e-9)
        for name in pair.ood:
            assert correct[name][at].mean() == pytest.approx(row["accuracy"][name], abs=1e-9)


def test_every_method_is_in_every_table(judged: Path) -> None:
    every = every_result(judged)
    learned, kept = {"anew", "continued"}, {"ensemble", "dawin", "vrf"}
    assert set(every[0].methods) == {CURVE, "lines", *learned, *kept}
    for name in TABLES:
        assert table(name, every)
    told = table("leaderboard", every)
    assert "| lines |" in told
    assert "| a test |" in told
    # more pictures of the target help on the target
    anew, start = (every[0].correct(method)["test"] for method in ("anew", CURVE))
    assert anew[-1].mean() > start[0].mean()


def test_pages_are_those_of_the_results(tmp_path: Path) -> None:
    for page in PAGES:
        copy = tmp_path / page.name
        copy.write_text(page.read_text(encoding="utf-8"), encoding="utf-8")
        assert write_pages([copy]) == [], f"{page}: run `python -m benchmarks page`"


def test_unknown_pair_and_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["judge", "lines", "aggresive-digits-0"]) == 1
    assert "Did you mean 'aggressive-digits-0'?" in capsys.readouterr().err
    assert main(["pairs"]) == 0
    assert "mild-photo-0" in capsys.readouterr().out


def test_near_copies_stay_on_one_side() -> None:
    things = np.array([at // 3 for at in range(60)])
    val = Source([], torch.arange(60), things, ("a",))
    val = Source(list(range(60)), val.labels, things, val.classes)  # type: ignore[arg-type]
    learn, choose = split(val)
    assert not {*learn.things.tolist()} & {*choose.things.tolist()}
    assert sorted([*learn.labels.tolist(), *choose.labels.tolist()]) == list(range(60))
    assert len(choose.labels) == 12


def test_pair_of_the_hub_on_a_stand_in(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything but the weights and the pictures: roles, fine-tuning, merging, the row."""
    own = pair.source("test")
    domains = ["Real World"] * 60 + ["Art"] * 20
    columns = {"image": own.images[:80], "label": own.labels[:80].tolist(), "domain": domains}
    features = datasets.Features(
        image=datasets.Image(),
        label=datasets.ClassLabel(names=[name.title() for name in own.classes]),
        domain=datasets.Value("string"),
    )
    data = datasets.Dataset.from_dict(columns, features)
    monkeypatch.setattr(hub.datasets, "load_dataset", lambda *_, **__: data)
    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: str(pair.zeroshot))
    monkeypatch.setattr(hub, "_TEST", 20)
    monkeypatch.setattr(hub, "_VAL", 15)
    spec = replace(hub.PAIRS[0], regime=Regime(1e-4, 1, batch=1))
    made = hub.make_pair(spec, Places(tmp_path))
    counts = {name: len(made.source(name).labels) for name in ("train", "val", "test", "ood-art")}
    assert counts == {"train": 25, "val": 15, "test": 20, "ood-art": 20}
    assert made.source("val").classes == own.classes
    assert (made.finetuned / "config.json").is_file()
    judge(made, "lines", who="a test", folder=tmp_path / "results")
    (results,) = every_result(tmp_path / "results")
    assert set(results.methods) == {CURVE, "lines"}
    assert "| office-home |" in table("leaderboard", [results])


def test_distilled_transformer_speaks_as_its_teacher(tmp_path: Path) -> None:
    tower = {"image_size": 32, "timm_model_name": "tf_efficientnet_lite0"}
    config = config_of({**tower, "timm_model_pretrained": False, "timm_proj": "linear"})
    network = CLIP(**config["model_cfg"]).eval()
    save_open_clip(network, config, tmp_path / "teacher")
    pixels = np.random.default_rng(0).integers(0, 256, (6, 40, 40, 3), dtype=np.uint8)
    pictures = [Image.fromarray(each) for each in pixels]
    distil(tmp_path / "teacher", pictures, tmp_path / "vit", steps=2)
    teacher, student = load(tmp_path / "teacher"), load(tmp_path / "vit")
    prompts = ["a picture of a dog", "a picture of a house"]
    assert torch.equal(teacher.texts(prompts), student.texts(prompts))
    features = student.embedded(student.input(pictures))
    assert features.shape == (6, 512)
    assert features.isfinite().all()
