"""The command line on good input: its output on the terminal and on disk, and that plan and apply
equal merge."""

import contextlib
import hashlib
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.support.command import clipmerge, done, printed, python, refused
from tests.support.raw_safetensors import edit, edit_json
from tests.support.tiny_clip import Folders, layer_of, save_pair

pytestmark = pytest.mark.draws
# flags what stands out at all, so that masks have something to do
STRAGGLER = "vision.1.mlp"
FLAG_MANY = ("--set", "method.threshold=0.5", "--set", "method.stability=0")
KEYS = {
    "output",
    "files",
    "recipe",
    "zeroshot",
    "finetuned",
    "layers",
    "stragglers",
    "measurements",
    "path",
    "seconds",
}


def hashes(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


@pytest.fixture(scope="module")
def straggling(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """A pair in which fine-tuning moved one layer far."""
    folders = save_pair(tmp_path_factory.mktemp("straggling"))
    tensors = load_file(folders[1] / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    thrown = {name: tensor for name, tensor in tensors.items() if layer_of(name) == STRAGGLER}
    noise = {
        name: torch.randn(tensor.shape, generator=generator) for name, tensor in thrown.items()
    }
    edit(
        folders[1],
        **{
            name: tensor + 0.5 * tensor.abs().mean() * noise[name]
            for name, tensor in thrown.items()
        },
    )
    return folders


def merge_in(folder: Path, inputs: Folders, *flags: object) -> dict[str, Any]:
    """Merge into ``merged`` in a folder, with relative paths as a user would; returns the printed
    text."""
    folder.mkdir(exist_ok=True)
    with contextlib.chdir(folder):
        return printed("merge", *inputs, *flags, "-o", "merged")


@pytest.fixture(scope="module")
def measuring(images: Path) -> tuple[object, ...]:
    """Flags of a merge that finds a straggler."""
    few = (
        "--set",
        "measure.nodes=1",
        "--set",
        "measure.tolerance=100",
        "--set",
        "method.bootstraps=5",
    )
    return ("--recipe", "straggler-outlier", "--data", images, *FLAG_MANY, *few)


@pytest.fixture(scope="module")
def sparse(
    straggling: Folders, measuring: tuple[object, ...], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """Output folder and printed record of one straggler-outlier merge."""
    folder = tmp_path_factory.mktemp("sparse")
    return folder / "merged", merge_in(folder, straggling, *measuring)


def test_the_record_has_what_the_design_names_and_every_files_hash(
    sparse: tuple[Path, dict[str, Any]], straggling: Folders
) -> None:
    output, record = sparse
    assert json.loads((output / "clipmerge.json").read_text()) == record
    found = hashes(output)
    assert record["files"].items() <= found.items()
    assert found.keys() - record["files"].keys() == {
        "clipmerge.json",
        "README.md",
        "report.html",
        "path.png",
    }
    assert record.keys() >= KEYS
    assert record["output"] == "merged"
    assert record["format"] == "clipmerge-record/3"
    for source, folder in zip((record["zeroshot"], *record["finetuned"]), straggling, strict=True):
        assert source == {
            "source": str(folder),
            "revision": None,
            "model": None,
            "files": {
                "model.safetensors": (
                    hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
                )
            },
        }
    assert record["stragglers"] == [STRAGGLER]
    for name, layer in record["layers"].items():
        assert layer.keys() >= {"alpha", "density", "mask", "reason"}
        assert (layer["mask"] == "saliency") is (name in record["stragglers"])
        assert layer["reason"]
    assert record["measurements"].keys() == record["layers"].keys()
    assert all(
        values.keys() >= {"barrier", "loss_drop"} for values in record["measurements"].values()
    )
    assert {0, 0.5, 1} <= set(record["path"]["alphas"])
    assert len(record["path"]["losses"]) == len(record["path"]["alphas"])
    assert record["seconds"].keys() >= {"read", "measure", "plan", "apply"}


def test_all_files_but_the_record_are_equal_between_runs(
    sparse: tuple[Path, dict[str, Any]],
    straggling: Folders,
    measuring: tuple[object, ...],
    tmp_path: Path,
) -> None:
    again = merge_in(tmp_path, straggling, *measuring)
    assert again["files"] == sparse[1]["files"]
    first, second = hashes(sparse[0]), hashes(tmp_path / "merged")
    assert first.keys() == second.keys()
    assert {name for name in first if first[name] != second[name]} == {"clipmerge.json"}


def test_plan_then_apply_is_merge(
    sparse: tuple[Path, dict[str, Any]],
    straggling: Folders,
    measuring: tuple[object, ...],
    tmp_path: Path,
) -> None:
    plan = tmp_path / "plans" / "plan.json"
    planned = printed("plan", *straggling, *measuring, "--output", plan)
    assert sorted(path.name for path in plan.parent.iterdir()) == [
        "plan.json",
        "plan.tensors.safetensors",
    ]
    assert len({path.stat().st_mode for path in plan.parent.iterdir()}) == 1
    applied = printed("apply", plan, "--output", tmp_path / "out")
    assert planned["layers"] == applied["layers"] == sparse[1]["layers"]
    assert applied["files"] == sparse[1]["files"]
    assert hashes(tmp_path / "out").keys() == hashes(sparse[0]).keys()


def test_the_command_that_applies_a_plan_can_be_pasted(pair: Folders, tmp_path: Path) -> None:
    plan = tmp_path / "my plan.json"
    line = done("plan", *pair, "--recipe", "wise-ft", "--output", plan).out.partition(
        "apply it with: "
    )[2]
    assert shlex.split(line.splitlines()[0]) == ["clipmerge", "apply", str(plan), "--output", "DIR"]


def test_a_home_folder_is_expanded_in_outputs(
    pair: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    done("plan", *pair, "-r", "wise-ft", "--output=~/plan.json")
    again = clipmerge("plan", *pair, "--recipe=wise-ft", "--output=~/plan.json")
    assert "plan.json: already exists" in refused(again)
    done("apply", "~/plan.json", "--output=~/out")
    done("recipes", "copy", "wise-ft", "~/mine.yaml")
    assert sorted(path.name for path in (tmp_path / "home").iterdir()) == [
        "mine.yaml",
        "out",
        "plan.json",
    ]
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize(("alpha", "which"), [("0", 0), ("1", 1)])
def test_both_ends_are_the_inputs(pair: Folders, tmp_path: Path, alpha: str, which: int) -> None:
    done(
        "merge",
        *pair,
        "--recipe",
        "wise-ft",
        "--set",
        f"method.alpha={alpha}",
        "-o",
        tmp_path / "out",
    )
    merged, source = (
        load_file(folder / "model.safetensors") for folder in (tmp_path / "out", pair[which])
    )
    assert merged.keys() == source.keys()
    assert all(
        torch.equal(
            merged[name].view(-1).view(torch.uint8), source[name].view(-1).view(torch.uint8)
        )
        for name in source
    )


@pytest.mark.parametrize("words", [[], ["merge"]])
def test_help_imports_nothing_heavy_and_no_other_command(words: list[str]) -> None:
    """Typer itself imports pydantic, when it reads the words of a command."""
    code = (
        "import sys\nfrom clipmerge.cli.app import COMMANDS, main\nwords = sys.argv[1:]\nsys.argv ="
        " ['clipmerge', *words, '--help']\ntry: main()\nexcept SystemExit as ended: assert not"
        " ended.code\nheavy = {'torch', 'transformers', 'datasets', 'numpy', 'huggingface_hub'} &"
        " set(sys.modules)\nassert not heavy, heavy\nassert words or 'pydantic' not in"
        " sys.modules\nassert [each for each in COMMANDS if f'clipmerge.cli.{each}' in sys.modules]"
        " == words"
    )
    python("-c", code, *words, check=True)


def test_inspect_says_how_far_each_layer_moved(pair: Folders) -> None:
    record = printed("inspect", *pair)
    zeroshot, finetuned = (load_file(folder / "model.safetensors") for folder in pair)
    assert record["mismatches"] == []
    for name, layer in record["layers"].items():
        names = [parameter for parameter in zeroshot if layer_of(parameter) == name]
        moved = sum(float(((finetuned[n] - zeroshot[n]).double() ** 2).sum()) for n in names)
        size = sum(float((zeroshot[n].double() ** 2).sum()) for n in names)
        assert layer["change"] == pytest.approx((moved / size) ** 0.5, rel=1e-5)
    assert "The two match: they can be merged." in done("inspect", *pair).out
    assert done("inspect", *pair, "--no-weights").out.endswith(
        "dtypes match; the weights were not read.\n"
    )


def test_inspect_lists_what_does_not_fit(pair: Folders, tmp_path: Path) -> None:
    other = save_pair(tmp_path, blocks=2)[1]
    edit_json(other / "config.json", vision_config={"hidden_act": "gelu"})
    record = printed("inspect", pair[0], other)
    assert any("hidden_act" in problem for problem in record["mismatches"])
    assert any(
        "keys are only in the zero-shot checkpoint" in problem for problem in record["mismatches"]
    )
    assert record["layers"]["vision.2.mlp"]["change"] is None
    assert "mismatch: " in done("inspect", pair[0], other).out


def test_recipes_are_listed_shown_and_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    listed = done("recipes", "list").out
    assert "straggler-outlier" in listed
    record = printed("recipes", "list")
    assert [line.split() for line in listed.splitlines()[1:]] == [
        [name, "needed" if record["needs_images"][name] else "no", *about.split()]
        for name, about in record["recipes"].items()
    ]
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "bare.yaml").write_text("method: {name: wise-ft}\n")
    monkeypatch.setenv("CLIPMERGE_PLUGINS", str(tmp_path))
    assert "bare" in [line.split()[0] for line in done("recipes", "list").out.splitlines()]
    monkeypatch.delenv("CLIPMERGE_PLUGINS")
    shown = done("recipes", "show", "wise-ft").out
    done("recipes", "copy", "wise-ft")
    assert (tmp_path / "wise-ft.yaml").read_text() == shown
    done("recipes", "copy", "wise-ft", tmp_path / "new" / "x.yaml")
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refused(
        clipmerge("recipes", "copy", "wise-ft", tmp_path / "file" / "x.yaml")
    )
    assert "wise-ft.yaml: already exists" in refused(clipmerge("recipes", "copy", "wise-ft"))
    assert "Did you mean 'wise-ft'" in refused(clipmerge("recipes", "show", "wise-tf"))
