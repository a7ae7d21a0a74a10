"""Benchmarks of speed, of a GPU, of ancestry, and the demo's models: their pages are what their
results say."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPConfig, CLIPModel

from benchmarks.ancestry.__main__ import counts, further_pairs, judge
from benchmarks.digits import __main__ as command
from benchmarks.digits.training import Training
from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import count
from benchmarks.gpu.__main__ import cases, run, table
from benchmarks.speed import checkpoints
from benchmarks.speed.decide_cases import PAGE, page_with, rows, totals
from clipmerge.errors import UsageError


@pytest.mark.parametrize("size", ["b32", "l14"])
def test_shapes_are_those_of_transformers(size: str) -> None:
    config = checkpoints.clip_config(size)
    with torch.device("meta"):
        model = CLIPModel(CLIPConfig(**config))
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert checkpoints.clip_shapes(config) == expected


def test_the_page_has_the_table_of_the_results() -> None:
    page = PAGE.read_text(encoding="utf-8")
    # the page is wrapped, the table's lines are not
    assert page_with(page, [*rows(), "", *totals()]).split() == page.split()


def test_the_page_has_the_table_of_gpus() -> None:
    page = gpu.PAGE.read_text(encoding="utf-8")
    assert page.partition(gpu.BEGIN)[2].partition(gpu.FINISH)[0] == table(
        sorted(gpu.RESULTS.glob("*.json"))
    )
    assert table([]) == "Not measured: no GPU has been at hand.\n"


def test_the_page_has_the_counts() -> None:
    part = count.PAGE.read_text(encoding="utf-8").partition(count.BEGIN)[2]
    assert part.partition(count.FINISH)[0] == count.table(count.COUNTED)


def test_a_learning_is_repeated_only_if_every_entry_is() -> None:
    one = {"a": torch.tensor([0.2, 0.4])}
    assert gpu.are_equal(one, {"a": torch.tensor([0.2, 0.4])})
    assert not gpu.are_equal(one, {"a": torch.tensor([0.4, 0.2])})  # with the same mean
    assert not gpu.are_equal({}, {})


def no_memory() -> dict[str, Any]:
    raise UsageError("no memory")


@pytest.mark.nightly
@pytest.mark.uncounted
def test_every_case_is_measured_or_says_why_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CLIPMERGE_PLUGINS")  # controls are no cases of this benchmark
    every = cases(tmp_path, "cpu", ["tiny"], images=24, jpegs=20, steps=2)
    every["a size that does not fit"] = no_memory
    run(
        every,
        tmp_path / "a.json",
        {"device": "none", "torch": "0", "tests": "1 passed"},
        minutes=30,
    )
    found = json.loads((tmp_path / "a.json").read_text())["cases"]
    assert {name: case for name, case in found.items() if "not_run" in case} == {
        "a size that does not fit": {"not_run": "no memory"}
    }
    assert found["`auto` twice: equal coefficients"]["equal"]
    assert all(case["seconds"] > 0 for case in found.values() if "said" in case)
    run(
        {"late": lambda: {}},
        tmp_path / "b.json",
        {"device": "none", "torch": "0", "tests": ""},
        minutes=-1,
    )
    rows = table([tmp_path / "a.json", tmp_path / "b.json"]).splitlines()
    assert len([row for row in rows if row.startswith("| ")]) == len(found) + 1 + 2
    assert rows[-1] == "| late |  |  |  | -1 minutes were over |"


def test_pairs_from_elsewhere_are_judged(pair: tuple[Path, Path], tmp_path: Path) -> None:
    rows = [{"name": "tiny", "zeroshot": str(pair[0]), "finetuned": str(pair[1])}]
    (tmp_path / "pairs.json").write_text(json.dumps(rows))
    found = judge(further_pairs(tmp_path / "pairs.json"))
    assert [(row["truth"], row["judged"]) for row in found] == [
        ("related", "related"),
        ("swapped", "related"),
    ]


def test_the_published_result_has_no_false_alarm_and_misses_nothing() -> None:
    for file in (Path(__file__).parents[2] / "benchmarks" / "results" / "ancestry").glob("*.json"):
        record = json.loads(file.read_text())
        assert record["counts"] == counts(record["pairs"])
        assert set(record["counts"]["related"]) == {"related"}
        assert set(record["counts"]["unrelated"]) == {"unrelated"}
        assert set(record["counts"]["swapped"]) == {"swapped"}
        assert len(record["pairs"]) >= 40


@pytest.mark.slow
def test_training_is_seeded_and_moves_towers_but_not_the_scale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file

    brief = Training(zeroshot_steps=3, zeroshot_batch=8, finetune_steps=2, finetune_batch=8)
    monkeypatch.setattr(command, "Training", lambda **_: brief)
    written = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        monkeypatch.setattr(command, "MODELS", folder)
        command.main()
        written.append(
            {
                path.relative_to(folder): path.read_bytes()
                for path in folder.rglob("*")
                if path.is_file()
            }
        )
    assert written[0] == written[1]
    before, after = (
        load_file(tmp_path / "one" / f"{name}.safetensors") for name in ("zeroshot", "finetuned")
    )
    assert before.keys() == after.keys()
    assert torch.equal(before["logit_scale"], after["logit_scale"])
    for name in (
        "text_model.encoder.layers.0.mlp.fc1.weight",
        "vision_model.encoder.layers.5.mlp.fc1.weight",
    ):
        assert not torch.equal(before[name], after[name])
