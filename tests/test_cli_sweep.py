"""`clipmerge sweep` from the command line: its flags, and what goes where."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from clipmerge.cli import app
from clipmerge.cli_sweep import parse_alphas
from clipmerge.errors import UsageError
from tests.command import clipmerge, refused
from tests.command_line import invoke
from tests.tiny_clip import save_images

Pair = tuple[Path, Path]


@pytest.fixture(scope="module")
def shifted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_images(tmp_path_factory.mktemp("shifted"), each=7, seed=5)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0,0.1,...,1", tuple(n / 10 for n in range(11))),
        ("0, 0.5,1", (0.0, 0.5, 1.0)),
        ("1,0", (0.0, 1.0)),
        ("0,0.1,...,0.3,0.5,...,0.9", (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)),
        ("0,0.4,...,1", (0.0, 0.4, 0.8, 1.0)),
        ("-0.5,0,1.5", (-0.5, 0.0, 1.5)),
    ],
)
def test_alphas_are_read(text: str, expected: tuple[float, ...]) -> None:
    assert parse_alphas(text) == expected


@pytest.mark.parametrize(
    "text", ["", "a", "0,,1", "0,...,1", "0,0,...,1", "0,1,...,-1", "0,nan", "0,inf", "0,0.1,...", "0,1e-9,...,1"]
)
def test_alphas_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--alphas"):
        parse_alphas(text)


def arguments(pair: Pair, images: Path, shifted: Path, output: Path, *more: str) -> list[str]:
    words = ["sweep", *map(str, pair), "--id", f"val={images}", "--ood", f"far={shifted}", "--alphas", "0,1"]
    return [*words, "--output", str(output), *more]


def test_json_is_all_that_stdout_carries(pair: Pair, images: Path, shifted: Path, tmp_path: Path) -> None:
    code, out, err = invoke(app, arguments(pair, images, shifted, tmp_path / "out", "--format", "json"))
    assert code == 0, err
    record = json.loads(out)
    assert set(record["curve"][0]["accuracy"]) == {"val", "far"}
    assert record["output"] == str(tmp_path / "out")


def test_quiet_is_quiet_and_human_has_a_row_a_point(pair: Pair, images: Path, shifted: Path, tmp_path: Path) -> None:
    code, out, _ = invoke(app, arguments(pair, images, shifted, tmp_path / "q", "--format", "quiet"))
    assert (code, out) == (0, "")
    code, out, _ = invoke(app, arguments(pair, images, shifted, tmp_path / "h", "--recipe", "lines"))
    assert code == 0
    heads = [line.split("  ")[0] for line in out.splitlines()]
    assert [head for head in heads if head.startswith(("alpha", "lines"))] == [
        "alpha 0 (zero-shot)",
        "alpha 1 (fine-tuned)",
        "lines",
    ]


def test_a_refusal_is_one_line_and_leaves_nothing(pair: Pair, images: Path, shifted: Path, tmp_path: Path) -> None:
    more = ["--data", str(shifted), "--recipe", "straggler-sparse"]
    code, out, err = invoke(app, arguments(pair, images, shifted, tmp_path / "out", *more))
    assert code == 2
    assert out == ""
    assert err.startswith("error: --ood far: 21 images are also in the calibration source")
    assert len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_two_names_alike_are_refused(pair: Pair, images: Path, shifted: Path, tmp_path: Path) -> None:
    code, _, err = invoke(app, arguments(pair, images, shifted, tmp_path / "out", "--ood", f"far={images}"))
    assert code == 2
    assert "two --ood have the same name" in err


@pytest.mark.slow
def test_two_processes_find_the_same(pair: Pair, images: Path, shifted: Path, tmp_path: Path) -> None:
    words = [
        *arguments(pair, images, shifted, tmp_path / "out"),
        "--data",
        str(save_images(tmp_path / "calibration", each=6, seed=6)),
        "--device",
        "cpu",
    ]
    words += ["--recipe", "straggler-sparse", "--recipe", "lines", "--batch-size", "4"]
    launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--cpu", "--num_processes", "2"]
    ended = subprocess.run([*launch, "-m", "clipmerge", *words], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    two = json.loads((tmp_path / "out" / "sweep.json").read_text())
    code, out, err = invoke(app, [*words, "--overwrite", "--format", "json"])
    assert code == 0, err
    one = json.loads(out)
    for record in (one, two):
        for key in ("seconds", "command"):
            record.pop(key)
    assert one == two


@pytest.mark.parametrize("what", ["--ood", "--recipe"])
def test_overwrite_deletes_nothing_that_is_read(pair: Pair, images: Path, tmp_path: Path, what: str) -> None:
    output = tmp_path / "swept"
    output.mkdir()
    (output / "sweep.json").write_text("{}")
    held = save_images(output / "ood", each=7, seed=5)
    recipe = output / "mine.yaml"
    recipe.write_text("method: {name: wise-ft}\n")
    flags = {"--ood": ["--ood", f"far={held}"], "--recipe": ["--ood", f"far={images.parent}", "--recipe", recipe]}[what]
    line = refused(clipmerge("sweep", *pair, "--id", f"near={images}", *flags, "-o", output, "--overwrite"))
    assert f"holds {held if what == '--ood' else recipe}, which this command reads" in line
    assert sorted(path.name for path in output.iterdir()) == ["mine.yaml", "ood", "sweep.json"]
