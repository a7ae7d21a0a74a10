"""The files that CONTRIBUTING shows: each works where its package looks for it, and nothing else is
touched."""

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from clipmerge import merge_state_dicts
from clipmerge.plugins import load_plugin, plugin_names
from tests.support.command import printed
from tests.support.small_objective import Ends, make_batches, objective_for

PAGE = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
SHOWN = re.compile(
    r"`(?:clipmerge/)?(?P<folder>\w+)/(?P<name>[\w-]+\.\w+)`[^`]*```\w+\n(?P<content>.*?)```",
    re.DOTALL,
)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Path]]:
    """The files by name, each found beside those of its package."""
    written = {}
    for shown in SHOWN.finditer(PAGE):
        written[shown["name"]] = file = tmp_path / shown["folder"] / shown["name"]
        file.parent.mkdir()
        file.write_text(shown["content"])
    assert set(written) == {"vision_only.py", "vision-only.yaml", "tilt.py", "positive.py"}
    found = [file for file in written.values() if file.suffix == ".py"]
    for folder in {file.parent for file in found}:
        package = importlib.import_module(f"clipmerge.{folder.name}")
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    forget()
    yield written
    for file in found:
        sys.modules.pop(f"clipmerge.{file.parent.name}.{file.stem}", None)
    forget()


def forget() -> None:
    """Let every package look for its files again."""
    plugin_names.cache_clear()
    load_plugin.cache_clear()
    importlib.invalidate_caches()


def test_the_method_merges_one_tower(files: dict[str, Path], pair: tuple[Path, Path]) -> None:
    record = printed("merge", *pair, "--recipe", files["vision-only.yaml"], "--dry-run")
    alphas = {name: layer["alpha"] for name, layer in record["layers"].items()}
    assert {alpha for name, alpha in alphas.items() if name.startswith("vision.")} == {0.5}
    assert {alpha for name, alpha in alphas.items() if not name.startswith("vision.")} == {0.0}


def test_the_mask_keeps_what_grows(files: dict[str, Path]) -> None:
    ends = ({"a": torch.tensor([[1.0, 2.0, 3.0]])}, {"a": torch.tensor([[2.0, 1.0, 3.5]])})
    merged = merge_state_dicts(*ends, alpha=1, mask="positive")
    assert torch.equal(merged["a"], torch.tensor([[2.0, 2.0, 3.5]]))


def test_the_measure_is_the_slope_of_the_loss(files: dict[str, Path], ends: Ends) -> None:
    objective = objective_for(ends, make_batches((4, 3)))
    (tilt,) = load_plugin("measures", "tilt")(objective, at=0.5).statistics
    step = 1e-2
    rises = []
    for alpha in (0.5 - step, 0.5 + step):
        objective.path.move_to(alpha)
        losses = objective.losses()
        rises.append(sum(losses[number] * size for number, size in ((0, 4), (1, 3))) / 7)
    assert sum(tilt.values.values()) == pytest.approx(
        (rises[1] - rises[0]) / (2 * step), rel=1e-2, abs=1e-5
    )


def test_the_measure_reaches_the_page_and_the_rule_for_stragglers(
    files: dict[str, Path], pair: tuple[Path, Path], images: Path, tmp_path: Path
) -> None:
    """Its column, its sum and its sign: in logarithms, the rule would leave values below zero
    out."""
    (tmp_path / "recipe.yaml").write_text(
        "measure: {name: tilt}\nmethod: {name: straggler-outlier, statistic: tilt, mask: magnitude,"
        " mirror: 0}\n"
    )
    few = ("--data", images, "--images", "12", "--batch-size", "3", "--no-verdict")
    record = printed("merge", *pair, "-r", tmp_path / "recipe.yaml", *few, "-o", tmp_path / "out")
    values = {layer: row["tilt"] for layer, row in record["measurements"].items()}
    assert min(values.values()) < 0
    assert record["straggler_scores"].keys() == values.keys() - {"logit_scale"}
    assert record["statistics"]["tilt"]["signed"] is True
    page = (tmp_path / "out" / "report.html").read_text()
    assert (
        '<th scope="col" class="number">tilt of the layer<span><i>T</i><sub>l</sub>,'
        " nats</span></th>" in page
    )
    assert (
        "<b>Tilt of the layer <i>T</i><sub>l</sub></b>: slope of the loss when this layer alone"
        " moves on" in page
    )
    assert 'class="bar neg"' in page
    vision = sum(value for layer, value in values.items() if layer.startswith("vision."))
    assert f"sum of <i>T</i><sub>l</sub>: {vision:+.4f} nats" in page.replace("\N{MINUS SIGN}", "-")
