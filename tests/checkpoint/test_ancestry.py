"""Which checkpoint started from which, on small models that are really trained."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy
from transformers import CLIPModel

from clipmerge.checkpoint import align_checkpoints, open_checkpoint
from clipmerge.checkpoint.ancestry import (
    Ancestry,
    _sample_matrices,
    ancestry_of,
    looks_swapped,
    shrinkage,
)
from clipmerge.checks import check_models
from clipmerge.demo.pair import MODELS
from clipmerge.report.text import texts_of
from tests.support.tasks import inputs_of
from tests.support.tiny_clip import tiny_config, tiny_processor

#: Fine-tunings: rate, weight decay, steps, and which parameters take part.
REGIMES: dict[str, tuple[float, float, int, str]] = {
    "mild": (1e-3, 0.1, 15, ""),
    "far": (1e-2, 0.0, 60, ""),
    "decay": (5e-3, 1.0, 30, ""),
    "vision": (5e-3, 0.5, 20, "vision"),
}
Models = dict[str, Path]


def said_of(folders: Sequence[Path]) -> list[str]:
    """What is said of a pair before anything is measured."""
    return texts_of(check_models(inputs_of(folders)))


def trained(
    model: CLIPModel,
    *,
    rate: float,
    decay: float,
    steps: int,
    part: str = "",
    seed: int = 0,
    kind: type[torch.optim.Optimizer] = torch.optim.AdamW,
) -> None:
    """Train by the contrastive loss on random pictures, each with its own few words."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(8, 3, 32, 32, generator=generator)
    ends = torch.full((8, 1), model.config.text_config.eos_token_id)
    # token 20 and those above occur nowhere
    tokens = torch.cat([torch.randint(20, (8, 5), generator=generator), ends], dim=1)
    parameters = [
        each for name, each in model.named_parameters() if part in name and name != "logit_scale"
    ]
    optimiser = kind(parameters, lr=rate, weight_decay=decay)  # type: ignore[call-arg]
    for _ in range(steps):
        optimiser.zero_grad()
        logits = model(input_ids=tokens, pixel_values=pixels).logits_per_image
        torch.autograd.backward(cross_entropy(logits, torch.arange(8)))
        optimiser.step()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Two pre-trainings of one architecture, each with its fine-tuned models."""
    folder = tmp_path_factory.mktemp("models")
    found = {}
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = CLIPModel(tiny_config(blocks=2, width=32))
        trained(model, rate=2e-3, decay=0.1, steps=30, seed=seed)
        base = found[f"base-{seed}"] = _save(model, folder / f"base-{seed}")
        for name in REGIMES if seed == 0 else ("mild", "vision"):
            rate, decay, steps, part = REGIMES[name]
            tuned = CLIPModel.from_pretrained(base)
            trained(tuned, rate=rate, decay=decay, steps=steps, part=part, seed=10 + seed)
            found[f"{name}-{seed}"] = _save(tuned, folder / f"{name}-{seed}")
    return found


def _save(model: CLIPModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


def _with_weights(like: Path, folder: Path, weights: dict[str, torch.Tensor]) -> Path:
    shutil.copytree(like, folder)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def judged(zeroshot: Path, *finetuned: Path) -> Ancestry:
    return ancestry_of(inputs_of((zeroshot, *finetuned)))


def test_a_fine_tuned_model_started_from_its_base_and_from_no_other(models: Models) -> None:
    for regime in REGIMES:
        found = judged(models["base-0"], models[f"{regime}-0"])
        assert (found.relation, found.evidence) == ("related", ())
        assert all(cosine > 0.3 for cosine in found.cosines.values())
    for pair in (
        ("base-0", "base-1"),
        ("base-0", "mild-1"),
        ("base-1", "far-0"),
        ("far-0", "mild-1"),
    ):
        found = judged(*(models[name] for name in pair))
        assert found.relation == "unrelated"
        assert "as between models trained apart" in found.evidence[0]
        assert all(abs(cosine) < 0.05 for cosine in found.cosines.values())


def test_one_tower_of_another_model_is_named_alone(models: Models, tmp_path: Path) -> None:
    ours, theirs = (load_file(models[name] / "model.safetensors") for name in ("base-0", "mild-1"))
    mixed = {name: (theirs if name.startswith("vision") else ours)[name] for name in ours}
    found = judged(models["base-0"], _with_weights(models["base-0"], tmp_path / "mixed", mixed))
    assert found.relation == "unrelated"
    assert "in the vision tower" in found.evidence[0]
    assert "text" not in found.evidence[0]


def test_the_wrong_order_is_named(models: Models) -> None:
    for regime in ("far-0", "decay-0", "vision-0", "vision-1"):
        found = judged(models[regime], models[f"base-{regime[-1]}"])
        assert found.relation == "swapped"
        if "vision" in regime:  # whose text tower has not moved
            assert [
                each for each in found.evidence if "the further a matrix moved" in each
            ] == list(found.evidence)


def test_weights_that_a_penalty_pulls_back_are_no_sign_of_the_wrong_order(
    models: Models, tmp_path: Path
) -> None:
    tuned = CLIPModel.from_pretrained(models["base-0"])
    trained(tuned, rate=1e-3, decay=0.1, steps=40, seed=10, kind=torch.optim.Adam)
    inputs = inputs_of((models["base-0"], _save(tuned, tmp_path / "tuned")))
    moved = [each for each in _sample_matrices(inputs, 0) if each.block]
    slope, error = shrinkage((each.block, each.moved, each.along) for each in moved) or (0.0, 1.0)
    assert slope > 0.5 + 2 * error  # they shrink, the furthest moved most
    assert ancestry_of(inputs).relation == "related"


@pytest.mark.parametrize("sign", [1, -1])
def test_matrices_that_grew_along_themselves_show_the_wrong_order(
    models: Models, tmp_path: Path, sign: int
) -> None:
    """Decay undone: every matrix is longer by a factor of its own, and points where it pointed."""
    weights = load_file(models["base-0"] / "model.safetensors")
    matrices = [name for name, value in weights.items() if ".layers." in name and value.dim() == 2]
    for number, name in enumerate(matrices):
        weights[name] *= 1 + sign * (0.05 + 0.01 * (number % 7))
    found = judged(models["base-0"], _with_weights(models["base-0"], tmp_path / "scaled", weights))
    assert any("longer along themselves" in each for each in found.evidence) is (sign > 0)
    assert (found.relation == "swapped") is (sign > 0)


@pytest.mark.parametrize(
    ("dtype", "relation"), [(torch.float16, "swapped"), (torch.bfloat16, "related")]
)
def test_half_precision_shows_the_order(
    models: Models, tmp_path: Path, dtype: torch.dtype, relation: str
) -> None:
    """Half precision as OpenAI's; bfloat16 says nothing, for models are trained in it."""
    weights = load_file(models["base-0"] / "model.safetensors")
    rounded = {name: value.to(dtype).float() for name, value in weights.items()}
    base = _with_weights(models["base-0"], tmp_path / "base", rounded)
    tuned = CLIPModel.from_pretrained(base)
    trained(tuned, rate=1e-4, decay=0.0, steps=2, part="vision", seed=5)
    tuned.save_pretrained(tmp_path / "tuned")
    assert judged(base, tmp_path / "tuned").relation == "related"
    found = judged(tmp_path / "tuned", base)
    assert found.relation == relation
    assert relation == "related" or "fit into float16" in found.evidence[0]


@pytest.mark.parametrize("regime", ["far-0", "decay-0", "vision-0"])
def test_a_fine_tuned_model_that_was_once_rounded_is_not_swapped(
    models: Models, tmp_path: Path, regime: str
) -> None:
    """Saved in float16 and then in float32: its lengths tell the order."""
    weights = load_file(models[regime] / "model.safetensors")
    rounded = {name: value.half().float() for name, value in weights.items()}
    tuned = _with_weights(models[regime], tmp_path / "tuned", rounded)
    found = judged(models["base-0"], tuned)
    assert (found.relation, found.evidence) == ("related", ())


def test_half_precision_on_disk_is_read_as_numbers(models: Models, tmp_path: Path) -> None:
    paths = {}
    for name in ("base-0", "mild-0", "mild-1"):
        weights = {
            key: value.bfloat16()
            for key, value in load_file(models[name] / "model.safetensors").items()
        }
        paths[name] = _with_weights(models[name], tmp_path / name, weights)
    assert judged(paths["base-0"], paths["mild-0"]).relation == "related"
    assert judged(paths["base-0"], paths["mild-1"]).relation == "unrelated"


def test_a_broken_matrix_is_left_to_the_merge(models: Models, tmp_path: Path) -> None:
    weights = load_file(models["mild-0"] / "model.safetensors")
    weights["visual_projection.weight"][0, 0] = torch.nan
    assert (
        judged(models["base-0"], _with_weights(models["mild-0"], tmp_path / "x", weights)).relation
        == "related"
    )


def test_equal_weights_are_named_and_unequal_ones_are_not(models: Models, tmp_path: Path) -> None:
    weights = load_file(models["base-0"] / "model.safetensors")
    copy = _with_weights(models["base-0"], tmp_path / "copy", weights)
    expected = f"{models['base-0']} and {copy} are equal in all weights that can be merged"
    assert said_of((models["base-0"], copy)) == [f"{expected}, so merging them changes nothing"]
    weights["logit_scale"] += 1e-3
    changed = _with_weights(models["base-0"], tmp_path / "changed", weights)
    assert said_of((models["base-0"], changed)) == []
    several = [
        models["mild-0"],
        changed,
        Path(shutil.copytree(models["mild-0"], tmp_path / "again")),
    ]
    (warning,) = said_of((models["base-0"], *several))
    equal = "are equal in all weights that can be merged"
    assert warning == f"{several[0]} and {several[2]} {equal}, so that model counts twice"


def drawn(
    slope: float, seed: int = 0, *, blocks: int = 6, matrices: int = 5
) -> list[tuple[str, float, float]]:
    """Matrices that lose length in proportion to their squared movement, and in each block by its
    own decay."""
    rng = np.random.default_rng(seed)
    rows = []
    for block in range(blocks):
        decay = rng.uniform(-0.05, 0.05)
        for moved in rng.uniform(0.05, 0.3, matrices):
            noise = rng.normal(0, 0.01) * moved
            rows.append((f"vision.{block}", float(moved), float(-slope * moved**2 - decay + noise)))
    return rows


def test_the_slope_is_that_of_a_regression_with_a_constant_per_block() -> None:
    rows = drawn(0.7)
    names = sorted({block for block, _, _ in rows})
    design = np.array(
        [[moved**2, *(float(block == name) for name in names)] for block, moved, _ in rows]
    )
    weight = np.array([1 / moved for _, moved, _ in rows])
    target = np.array([-along for _, _, along in rows]) * weight
    design = design * weight[:, None]
    found, *_ = np.linalg.lstsq(design, target, rcond=None)
    rest = target - design @ found
    spread = rest @ rest / (len(rows) - design.shape[1]) * np.linalg.inv(design.T @ design)[0, 0]
    assert shrinkage(rows) == pytest.approx((found[0], spread**0.5), rel=1e-9)
    # of few matrices, nothing is said
    assert shrinkage(drawn(1.0, blocks=3, matrices=3)) is None
    assert shrinkage([(f"vision.{number}", 0.1, 0.0) for number in range(50)]) is None
    assert shrinkage([]) is None


def test_small_matrices_that_moved_at_random_do_not_look_swapped() -> None:
    """A slope of noise is far from 0 and as far from 1: without an upper end 12 of these 600 pairs
    would be called swapped."""
    chance, swapped = np.random.default_rng(0), 0
    for _ in range(600):
        moved = 0.03 * chance.uniform(0.95, 1.05, 36)
        along = moved * chance.normal(size=36) / np.sqrt(512)
        blocks = [f"vision.{number // 6}" for number in range(36)]
        found = shrinkage(zip(blocks, moved, along, strict=True))
        assert found is not None
        swapped += looks_swapped(*found)
    assert swapped == 0


def test_the_order_of_the_demos_pair_is_known() -> None:
    """Its slope is 1.6: an upper end must leave real pairs their due."""
    zeroshot, finetuned = (
        open_checkpoint(str(MODELS / f"{name}.safetensors")) for name in ("zeroshot", "finetuned")
    )
    assert ancestry_of(align_checkpoints(zeroshot, [finetuned])).relation == "related"
    assert ancestry_of(align_checkpoints(finetuned, [zeroshot])).relation == "swapped"
