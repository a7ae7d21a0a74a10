"""The files that CONTRIBUTING shows work in a folder of plugins, and nothing else is touched."""

import re
from pathlib import Path

import numpy as np
import pytest

from clipmerge.plugins import load_plugin
from tests.support.command import printed

PAGE = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
SHOWN = re.compile(
    r"`(?:clipmerge/)?(?P<folder>\w+)/(?P<name>[\w-]+\.\w+)`[^`]*```\w+\n(?P<content>.*?)```",
    re.DOTALL,
)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """The files by name, in a folder of plugins."""
    written = {}
    for shown in SHOWN.finditer(PAGE):
        written[shown["name"]] = file = tmp_path / "plugins" / shown["folder"] / shown["name"]
        file.parent.mkdir(parents=True)
        file.write_text(shown["content"])
    assert set(written) == {"vision_only.py", "vision-only.yaml", "tilt.py", "positive.py"}
    monkeypatch.setenv("CLIPMERGE_PLUGINS", str(tmp_path / "plugins"))
    return written


def test_the_method_merges_one_tower(
    files: dict[str, Path], pair: tuple[Path, Path], tmp_path: Path
) -> None:
    record = printed("merge", *pair, "--recipe", "vision-only", "-o", tmp_path / "out")
    alphas = {name: layer["alpha"] for name, layer in record["plan"]["layers"].items()}
    assert {alpha for name, alpha in alphas.items() if name.startswith("vision.")} == {0.5}
    assert {alpha for name, alpha in alphas.items() if not name.startswith("vision.")} == {0.0}


def test_the_mask_keeps_what_grows(files: dict[str, Path]) -> None:
    change = load_plugin("masks", "positive")(np.array([[1.0, -1.0, 0.5]]))
    assert change.tolist() == [[1.0, 0.0, 0.5]]


def test_the_measure_reaches_the_page_and_the_rule_for_stragglers(
    files: dict[str, Path], pair: tuple[Path, Path], images: Path, tmp_path: Path
) -> None:
    """In logarithms, the rule would leave out values below zero."""
    (tmp_path / "recipe.yaml").write_text(
        "measure: {name: tilt}\nmethod: {name: straggler-outlier, statistic: tilt, mask: magnitude,"
        " mirror: 0}\n"
    )
    few = ("--data", images, "--images", "12", "--batch-size", "3", "--no-verdict")
    record = printed("merge", *pair, "-r", tmp_path / "recipe.yaml", *few, "-o", tmp_path / "out")
    values = {layer: row["tilt"] for layer, row in record["measurements"].items()}
    assert min(values.values()) < 0
    assert record["measured"]["straggler_scores"].keys() == values.keys() - {"logit_scale"}
    assert record["measured"]["statistics"]["tilt"]["signed"] is True
    page = (tmp_path / "out" / "report.html").read_text()
    assert "tilt of the layer" in page
