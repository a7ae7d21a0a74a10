"""Blocks that are compiled learn the same, and what cannot be compiled runs as it is."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from clipmerge.learning import compiling
from clipmerge.learning.coefficients import Coefficients
from clipmerge.learning.compiling import Compiling, pays
from clipmerge.learning.learn import LearningConfig, learn
from clipmerge.learning.learning_loss import LossConfig
from clipmerge.learning.objective import Objective
from tests.support.small_objective import Ends, make_batches, objective_for, save_ends


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> Ends:
    return save_ends(tmp_path_factory.mktemp("ends"), blocks=3)


def learned(ends: Ends, how: Compiling) -> tuple[Objective, dict[str, Tensor]]:
    objective = objective_for(ends, make_batches((4, 4)))
    values = Coefficients(objective, "entry")
    learn(objective, values, LearningConfig(LossConfig(0.7), 3, 0.05, batch=4, compiling=how))
    return objective, values.by_parameter()


def compiled_by(monkeypatch: pytest.MonkeyPatch, backend: Any) -> None:
    torch.compiler.reset()
    monkeypatch.setattr(compiling, "_BACKEND", backend)


@pytest.mark.slow
def test_compiled_blocks_learn_the_same(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tower's blocks share what was compiled: there are as many graphs with three as with one."""
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    _, expected = learned(ends, "never")
    compiled_by(monkeypatch, backend)
    objective, found = learned(ends, "always")
    assert objective.notes == []
    towers, kinds = 2, 3  # steps, teachers, and their numbers of images
    assert 0 < len(graphs) <= towers * kinds
    for name, value in expected.items():
        if not name.endswith("k_proj.bias"):
            assert torch.allclose(found[name], value, atol=1e-4), name
    assert all("forward" not in vars(each) for each in objective.criterion.model.module.modules())


@pytest.mark.slow
def test_what_cannot_be_compiled_runs_as_it_is(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    def backend(_: torch.fx.GraphModule, __: Any) -> Any:
        raise OSError("no compiler is installed")

    _, expected = learned(ends, "never")
    compiled_by(monkeypatch, backend)
    objective, found = learned(ends, "always")
    (note,) = objective.notes
    assert note.startswith("the model's blocks cannot be compiled (")
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_compiling_pays_for_large_models_on_a_card_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """320 steps of 80 images of an L/14 at 336 pixels and of a B/32."""
    large, small, images = 680_000_000, 45_000_000, 320 * 80
    objective: Any = SimpleNamespace(
        data=SimpleNamespace(context=SimpleNamespace(device=torch.device("cuda")))
    )
    monkeypatch.setattr(compiling, "find_spec", lambda _: object())
    assert pays(objective, large, images)
    assert not pays(objective, large, images // 32)
    assert not pays(objective, small, images)
    monkeypatch.setattr(compiling, "find_spec", lambda _: None)
    assert not pays(objective, large, images)
    objective.data.context.device = torch.device("cpu")
    assert not pays(objective, large, images)
