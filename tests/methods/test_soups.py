"""Soups, Model Stock and the alpha chosen on target data, against plain averages through
transformers' own model."""

import shutil
from itertools import combinations
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy

from clipmerge.planning.measurements import LossPath, Measurements, Mixture
from clipmerge.plugins import load_plugin
from tests.support.raw_safetensors import edit
from tests.support.small_objective import Reference, joined, make_batches, objective_for
from tests.support.tasks import decide, task_of
from tests.support.tiny_clip import Folders, save_family

State = dict[str, Tensor]
BATCHES = make_batches((9, 9, 6), seed=3)
IMAGES = joined(BATCHES)


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Checkpoints far enough from each other to classify images differently."""
    return save_family(tmp_path_factory.mktemp("far"), change=2.0)


def states(folders: list[Path]) -> list[State]:
    return [
        {k: v.double() for k, v in load_file(folder / "model.safetensors").items()}
        for folder in folders
    ]


def tried(folder: Path, state: State) -> tuple[float, float]:
    """Accuracy and loss over all images, by ``CLIPModel.forward`` in float64."""
    reference = Reference((folder, folder))
    reference.model.load_state_dict(state, strict=False)
    inputs = {"pixel_values": IMAGES.pixels.double(), **reference.tokens}
    with torch.no_grad():
        logits = reference.model(**inputs).logits_per_image
    loss = cross_entropy(logits, IMAGES.labels)
    return float((logits.argmax(dim=1) == IMAGES.labels).double().mean()), float(loss)


def mixed(base: State, others: list[State], weights: list[float]) -> State:
    return {
        name: (
            value + sum(w * (other[name] - value) for w, other in zip(weights, others, strict=True))
        )
        for name, value in base.items()
    }


def test_a_greedy_soup_is_the_plain_greedy_loop(far: list[Path]) -> None:
    base, *others = states(far)

    def accuracy(chosen: list[int]) -> float:
        weights = [(i in chosen) / len(chosen) for i in range(3)]
        return tried(far[0], mixed(base, others, weights))[0]

    single = [accuracy([i]) for i in range(3)]
    order = sorted(range(3), key=lambda i: (-single[i], i))
    soup, rejected = order[:1], 0
    for i in order[1:]:
        if accuracy([*soup, i]) >= accuracy(soup):
            soup.append(i)
        else:
            rejected += 1
    # otherwise the images do not test both branches of the loop
    assert rejected
    assert len(soup) > 1

    found = load_plugin("measures", "soup-accuracy")(objective_for(far, BATCHES))
    assert [mixture.accuracy for mixture in found.mixtures[:3]] == pytest.approx(single)
    decision = decide(task_of(far, found), "greedy-soup")
    assert decision.weights == tuple(1 / len(soup) if i in soup else 0.0 for i in range(3))
    assert decision.found.startswith(f"{len(soup)} of 3 fine-tuned checkpoints are in the greedy")


@pytest.mark.parametrize("count", [1, 2])
def test_losses_and_accuracies_along_the_path_are_those_of_transformers(
    far: list[Path], count: int
) -> None:
    folders = far[: 1 + count]
    found = load_plugin("measures", "path-accuracy")(objective_for(folders, BATCHES), steps=4)
    base, *others = states(folders)
    assert found.path is not None
    assert found.path.alphas == (0, 0.25, 0.5, 0.75, 1)
    for alpha, loss, mixture in zip(
        found.path.alphas, found.path.losses, found.mixtures, strict=True
    ):
        accuracy, expected = tried(far[0], mixed(base, others, [alpha / count] * count))
        assert mixture.loss == loss == pytest.approx(expected, rel=1e-5)
        assert mixture.accuracy == pytest.approx(accuracy)
    assert len({mixture.accuracy for mixture in found.mixtures}) > 1


def test_of_equally_accurate_alphas_the_smallest_is_chosen(pair: Folders) -> None:
    path = LossPath(alphas=(0, 0.25, 0.5, 0.75, 1), losses=(3, 2, 1.5, 1, 2))
    points = zip(path.alphas, path.losses, (0.2, 0.6, 0.8, 0.8, 0.7), strict=True)
    tries = tuple(
        Mixture(weights=(at,), loss=loss, accuracy=accuracy) for at, loss, accuracy in points
    )
    task = task_of(list(pair), Measurements(measure="path-accuracy", path=path, mixtures=tries))
    decision = decide(task, "wise-ft-id")
    assert {layer.alpha for layer in decision.layers.values()} == {0.5}
    assert decision.layers.keys() == task.layers.keys()


def test_model_stock_is_its_formula_on_every_layer(family: list[Path]) -> None:
    folders, count = family, len(family) - 1
    base, *others = states(folders)
    task = task_of(folders)
    decision = decide(task, "model-stock")
    for layer, names in task.layers.items():
        vectors = [
            torch.cat([(other[name] - base[name]).flatten() for name in names]) for other in others
        ]
        cosines = [float(cosine_similarity(a, b, dim=0)) for a, b in combinations(vectors, 2)]
        cosine = sum(cosines) / len(cosines)
        expected = count * cosine / ((count - 1) * cosine + 1)
        near = pytest.approx(min(max(expected, 0), 1), abs=1e-9)
        assert decision.layers[layer].alpha == near, layer
    assert decision.weights == (1 / count,) * count


def test_model_stock_of_opposed_checkpoints_stays_and_of_equal_ones_goes(
    family: list[Path], tmp_path: Path
) -> None:
    folders = [Path(shutil.copytree(family[0], tmp_path / f"{i}")) for i in range(3)]
    state = load_file(family[0] / "model.safetensors")
    scale, projection = "logit_scale", "text_projection.weight"
    for folder, sign in zip(folders[1:], (1, -1), strict=True):
        edit(folder, **{scale: state[scale] + 0.25, projection: state[projection] + sign * 0.5})
    layers = decide(task_of(folders), "model-stock").layers
    assert layers["logit_scale"].alpha == 1
    assert layers["text.projection"].alpha == 0
