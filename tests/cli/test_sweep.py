"""`clipmerge sweep` from the command line: its flags and its outputs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from clipmerge.api._requests import alphas_from
from clipmerge.errors import UsageError
from clipmerge.evaluation.scorer import write_correct
from tests.support.command import clipmerge, done, refused
from tests.support.counted import counted
from tests.support.tiny_clip import save_images

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
    assert alphas_from(text) == expected


MANY = "would stand for more than 1000 numbers, the limit; use larger steps"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        *((text, "") for text in ("", "a", "0,,1", "0,...,1", "0,0,...,1", "0,1,...,-1", "0,0.1,...")),
        *((text, MANY) for text in ("0,0.00001,...,1", "0,1e-9,...,1", "0,1e-999999,...,1", "0,1,...,1002")),
        *((text, f"{text}: expected finite numbers") for text in ("0,1e400", "-1e400,1", "0,inf", "nan,1", "0,nan")),
    ],
)
def test_alphas_that_are_none_are_refused(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=f"^--alphas .*{said}"):
        alphas_from(text)
    assert len(alphas_from("0,1,...,1001")) == 1002


@pytest.mark.parametrize(
    ("flag", "name", "said"),
    [
        *((flag, "__metadata__", "'__metadata__', which safetensors reserves") for flag in ("--id", "--ood")),
        *((flag, "\udcff", r"'\udcff', which is not UTF-8") for flag in ("--id", "--ood", "--point")),
    ],
)
def test_a_name_that_no_tensor_can_have_is_refused(flag: str, name: str, said: str, tmp_path: Path) -> None:
    flags = {"--id": "x", "--ood": "x", "--point": "p"} | {flag: name}
    words = [word for each, called in flags.items() for word in (each, f"{called}={tmp_path}")]
    places = Path(__file__).parents[:2]  # any folders: whether they exist is checked first
    ended = clipmerge("sweep", *places, *words, "-o", str(tmp_path / "out"))
    assert ended.code == 2
    assert f"a source cannot be named {said}" in ended.err
    assert len(ended.err.splitlines()) == 1
    with pytest.raises(UsageError, match="cannot be named"):
        write_correct(tmp_path / "correct.safetensors", {name: np.zeros((1, 2), dtype=np.bool_)})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flag", ["--id", "--ood", "--data"])
def test_an_output_among_the_images_is_refused(
    pair: Pair, images: Path, shifted: Path, tmp_path: Path, flag: str
) -> None:
    source = save_images(tmp_path / "images", each=2, seed=9)
    sources = {"--id": f"val={images}", "--ood": f"far={shifted}"} | {flag: str(source)}
    before = sorted(tmp_path.rglob("*"))
    words = ["sweep", *pair, *(word for each in sources.items() for word in each), "-o", source / "sweep"]
    line = refused(clipmerge(*words, "--alphas", "0,1"))
    assert f"{source / 'sweep'}: lies inside {source}, which this command reads as images; choose another" in line
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("command", ["merge", "sweep", "plan", "convert"])
def test_a_name_that_is_too_long_is_one_line(pair: Pair, images: Path, tmp_path: Path, command: str) -> None:
    output = tmp_path / ("x" * 300)
    words = {
        "merge": ["merge", *pair, "--recipe", "wise-ft", "-o", output],
        "sweep": ["sweep", *pair, "--id", f"a={images}", "--ood", f"b={images}", "-o", output],
        "plan": ["plan", *pair, "--recipe", "wise-ft", "-o", f"{output}.json"],
        "convert": ["convert", pair[1], output, "--to", "open-clip"],
    }[command]
    line = refused(clipmerge(*words))
    assert f"{output}{'.json' if command == 'plan' else ''}: the name is too long; choose a shorter --output" in line
    assert list(tmp_path.iterdir()) == []


def arguments(pair: Pair, images: Path, shifted: Path, output: Path, *more: str) -> list[str]:
    words = ["sweep", *map(str, pair), "--id", f"val={images}", "--ood", f"far={shifted}", "--alphas", "0,1"]
    return [*words, "--output", str(output), *more]


def test_each_format_carries_what_it_is_for(pair: Pair, images: Path, shifted: Path, tmp_path: Path) -> None:
    ended = done(*arguments(pair, images, shifted, tmp_path / "j", "--format", "json"))
    assert set(ended.json["curve"][0]["accuracy"]) == {"val", "far"}
    assert ended.json["output"] == str(tmp_path / "j")
    ended = clipmerge(*arguments(pair, images, shifted, tmp_path / "q", "--format", "quiet"))
    assert (ended.code, ended.out) == (0, "")
    ended = clipmerge(*arguments(pair, images, shifted, tmp_path / "h", "--recipe", "lines"))
    assert ended.code == 0
    heads = [line.split("  ")[0] for line in ended.out.splitlines()]
    assert [head for head in heads if head.startswith("alpha") or head == "lines"] == [
        "alpha 0 (zero-shot)",
        "alpha 1 (fine-tuned)",
        "lines",
    ]
    ended = clipmerge(*arguments(pair, images, shifted, tmp_path / "out", "--ood", f"far={images}"))
    assert "two --ood have the same name" in refused(ended, 2)


@pytest.mark.slow
def test_two_processes_find_the_same(pair: Pair, images: Path, shifted: Path, tmp_path: Path) -> None:
    data = str(save_images(tmp_path / "calibration", each=6, seed=6))
    more = ("--data", data, "--device", "cpu", "--recipe", "straggler-outlier", "--recipe", "lines")
    words = [*arguments(pair, images, shifted, tmp_path / "out"), *more, "--batch-size", "4"]
    launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--cpu", "--num_processes", "2"]
    ended = subprocess.run(
        [*launch, "-m", "clipmerge", *words], env=counted(), capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    two = json.loads((tmp_path / "out" / "sweep.json").read_text())
    ended = done(*words, "--overwrite", "--format", "json")
    one = ended.json
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
