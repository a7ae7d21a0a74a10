"""Trace estimates against the exact Hessian of a really tiny CLIP."""

import importlib

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from clipmerge.learning.objective import Objective
from clipmerge.measures.hessian_trace import hessian_trace
from tests.support.small_objective import Ends, Reference, make_batches, objective_for, save_ends
from tests.support.tiny_clip import layer_of

SIZES = (4, 3)
MOVES = (
    "vision_model.encoder.layers.0.self_attn.q_proj",
    "vision_model.post_layernorm",
    "vision_model.embeddings.class_embedding",
    "text_model.encoder.layers.0.mlp.fc2.bias",
    "text_model.final_layer_norm",
    "logit_scale",
)


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> Ends:
    return save_ends(tmp_path_factory.mktemp("ends"), blocks=1, width=4, moves=MOVES)


@pytest.fixture
def objective(ends: Ends) -> Objective:
    return objective_for(ends, make_batches(SIZES))


class Exact:
    """The Hessian of every batch at alpha 0.5, (entries, entries) in float64, by a loop of double
    backward passes."""

    def __init__(self, ends: Ends) -> None:
        reference = Reference(ends).at(0.5)
        moving = {name: p for name, p in reference.parameters.items() if name.startswith(MOVES)}
        self.names = list(moving)
        self.layer = np.array(
            [layer_of(name) for name, p in moving.items() for _ in range(p.numel())]
        )
        self.theta = torch.cat([p.detach().flatten() for p in moving.values()]).numpy()
        self.batches = []
        for batch in make_batches(SIZES):
            with sdpa_kernel(SDPBackend.MATH):
                grads = torch.autograd.grad(
                    reference.loss(batch), list(moving.values()), create_graph=True
                )
                flat = torch.cat([g.flatten() for g in grads])
                rows = [
                    torch.autograd.grad(e, list(moving.values()), retain_graph=True) for e in flat
                ]
            self.batches.append(
                np.array([torch.cat([r.flatten() for r in row]).numpy() for row in rows])
            )
        self.mean = np.average(self.batches, axis=0, weights=SIZES)

    def scaled(self, hessian: np.ndarray, adaptive: bool) -> np.ndarray:
        scale = np.abs(self.theta) if adaptive else np.ones_like(self.theta)
        return scale[:, None] * hessian * scale


@pytest.fixture(scope="module")
def exact(ends: Ends) -> Exact:
    return Exact(ends)


def feed(monkeypatch: pytest.MonkeyPatch, exact: Exact, probes: np.ndarray) -> None:
    """Make the measure use these probes, one per row, in the order of the exact Hessian."""

    def given(objective: Objective, probe: int) -> dict[str, Tensor]:
        pieces = torch.tensor(probes[probe], dtype=torch.float32)
        vectors, start = {}, 0
        for name in exact.names:
            parameter = objective.path.parameters[name]
            vectors[name] = pieces[start : start + parameter.numel()].view(parameter.shape)
            start += parameter.numel()
        return {name: vectors[name] for name in objective.path.names}

    monkeypatch.setattr(
        importlib.import_module("clipmerge.measures.hessian_trace"), "_draw_signs", given
    )


def hadamard(size: int) -> np.ndarray:
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


@pytest.mark.slow
@pytest.mark.parametrize("adaptive", [False, True])
def test_probes_are_quadratic_forms_whose_mean_is_the_exact_trace(
    objective: Objective, exact: Exact, adaptive: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows of a Hadamard matrix are signs whose outer products average to the identity."""
    probe = np.random.default_rng(0).choice([-1.0, 1.0], size=(1, len(exact.theta)))
    feed(monkeypatch, exact, probe)
    found = hessian_trace(objective, probes=1, adaptive=adaptive, at=0.5)
    for layer, values in found["hessian_trace"].batches.items():
        terms = [
            probe[0] * (exact.scaled(hessian, adaptive) @ probe[0]) for hessian in exact.batches
        ]
        expected = [term[exact.layer == layer].sum() for term in terms]
        assert values == pytest.approx(expected, rel=1e-4, abs=1e-4), layer
    probes = hadamard(len(exact.theta))
    feed(monkeypatch, exact, probes)
    found = hessian_trace(objective, probes=len(probes), adaptive=adaptive, at=0.5)
    assert set(found.layers) == set(exact.layer)
    for layer, means in found.layers.items():
        inside = exact.layer == layer
        trace = float(np.diag(exact.scaled(exact.mean, adaptive))[inside].sum())
        assert means["hessian_trace"] == pytest.approx(trace, rel=1e-3, abs=1e-4), layer
        assert means["hessian_trace_mean"] == pytest.approx(
            means["hessian_trace"] / inside.sum(), rel=1e-12
        )
