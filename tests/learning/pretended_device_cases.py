"""Measures, steps of learning, evaluation and retrieval on a device that refuses and counts what a
card does."""

import gc
import re
from functools import partial
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.nn.functional import grid_sample, normalize

from clipmerge.api.merge_models import merge_state_dicts
from clipmerge.checkpoint import open_checkpoint
from clipmerge.distributed import DistributedContext, all_reduce_, device_work, distributed_context
from clipmerge.errors import CheckpointError, MeasureError
from clipmerge.evaluation.accuracy import load_model
from clipmerge.evaluation.moving_model import MovingModel
from clipmerge.evaluation.recall import recall_at, retrieval_ranks
from clipmerge.evaluation.scorer import Scorer
from clipmerge.images.dataset import load_images
from clipmerge.learning import activations, coefficients, descent, learning_loss
from clipmerge.learning.augmentation import AUGMENTATIONS, strong_augment
from clipmerge.learning.coefficients import Coefficients, _largest
from clipmerge.learning.draws import draws_itself, normal_from, normal_like, signs_like
from clipmerge.learning.learn import LearningConfig, learn
from clipmerge.learning.learning_loss import LossConfig
from clipmerge.learning.objective import Objective
from clipmerge.measures.hessian_trace import hessian_trace
from clipmerge.models.building import build_model
from clipmerge.models.precision import dtype_of, passes
from clipmerge.planning.plan import LayerPlan, named_tensors, with_coefficients
from clipmerge.plugins import Augmentation, load_plugin, plugin_names
from clipmerge.progress import Progress
from clipmerge.report.text import texts_of
from clipmerge.request import Calibration
from tests.learning.test_many_processes import check_processes_learn_alike
from tests.support import pretended_device
from tests.support.measure_everything import measured
from tests.support.pretended_device import Pretended, counted
from tests.support.real_sizes import SIZES, hollow_objective
from tests.support.small_objective import Ends, make_batches, objective_for, save_ends
from tests.support.tasks import inputs_of, plan_with, task_of


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> Ends:
    return save_ends(tmp_path_factory.mktemp("ends"), blocks=1)


def objective_on(device: str, ends: Ends, **options: Any) -> Objective:
    context = DistributedContext(torch.device(device))
    return objective_for(ends, make_batches((3, 2)), context=context, **options)


CHANGES: tuple[Augmentation, ...] = ("geometry", "colour", "grey", "blur")
on_cuda = pytest.mark.skipif(pretended_device.NAME != "cuda", reason="only on cuda")


@on_cuda
@pytest.mark.parametrize("labels", ["labels", "no-labels"])
def test_processes_learn_what_one_does(tmp_path: Path, labels: str) -> None:
    """First of all cases: the processes are forked, which autograd's threads would not survive."""
    sizes = (8, 8, 8, 8, 4)
    check_processes_learn_alike(tmp_path, "cuda", 2, sizes, labels, context=get_context("fork"))


def test_the_device_refuses_what_a_card_refuses() -> None:
    there, number = torch.ones(3).to(pretended_device.NAME), torch.tensor(0.5)
    with pytest.raises(RuntimeError, match="on the same device"):
        there + torch.ones(3)
    assert float((there * number).sum()) == 1.5
    for refused in (
        lambda: torch.stack([there[0], number]),
        lambda: there.lerp_(there, number),
        lambda: torch.addcmul(there, there, number),
    ):
        with pytest.raises(RuntimeError, match="on the same device"):
            refused()
    with pytest.raises(RuntimeError, match="a generator of the device"):
        there.uniform_(generator=torch.Generator())
    if pretended_device.NAME == "mps":
        with pytest.raises(TypeError, match="no float64"):
            there.double()
        grid = torch.zeros(1, 2, 2, 2, device=there.device)
        with pytest.raises(RuntimeError, match="Border padding"):
            grid_sample(there.view(1, 1, 1, 3), grid, padding_mode="border", align_corners=False)
        with pytest.raises(RuntimeError, match="shift whole numbers wrongly"):
            there.long() >> 1
    before = pretended_device.taken()
    with counted(most=before + 40), pytest.raises(torch.OutOfMemoryError):
        there.repeat(4)
    assert pretended_device.taken() == before


def test_the_device_counts_kernels_and_waits() -> None:
    there = torch.ones(3).to(pretended_device.NAME)
    with counted() as counts:
        assert float((there + 1).sum()) == 6
        assert (counts.waits, counts.kernels) == (1, {"add": 1, "sum": 1})
    with counted() as counts:
        torch.ones(3).to(pretended_device.NAME)
        there.copy_(torch.ones(3))
        there[torch.tensor([0])]
        assert counts.waits == 3
        mask = there > 0  # its entries are counted
        there[mask]
        there[mask] = 1.0
        there.masked_select(mask)
        assert counts.waits == 6
        there.cpu()
        assert counts.waits == 7
        there.to("cpu", non_blocking=True)
        torch.ones(3).to(pretended_device.NAME, non_blocking=True)
        there.copy_(torch.ones(3), non_blocking=True)
        there[torch.tensor([0]).to(pretended_device.NAME, non_blocking=True)]
        assert counts.waits == 7


def test_a_copy_that_is_not_waited_for_happens_late() -> None:
    source = torch.ones(3)
    there = source.to(pretended_device.NAME, non_blocking=True)
    source.fill_(5.0)  # too early
    assert there.tolist() == [5.0] * 3
    back = there.to("cpu", non_blocking=True)
    assert back.isnan().all()  # too early
    there.sum().item()
    assert back.tolist() == [5.0] * 3


@pytest.mark.parametrize("count", [1, 3, 7, 10])
def test_the_largest_entries_are_those_of_the_cpu(count: int) -> None:
    scores = torch.tensor([0.5, 1.0, 0.2, 0.5, 0.5, 0.0, 0.9, 0.2, 0.2, 1.0])
    with counted() as counts:
        found = _largest(scores.to(pretended_device.NAME, non_blocking=True), count)
        assert counts.waits == 0
        assert "kthvalue" not in counts.kernels
    assert torch.equal(found.cpu(), _largest(scores, count))


@pytest.mark.parametrize("name", plugin_names("measures"))
def test_a_measure_is_that_of_the_cpu(
    ends: Ends, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Also where there is no float64, as on Apple's. The CPU gets the numbers that a card draws;
    for Apple's it draws them."""

    def normal(objective: Objective, parameters: list[Tensor], draw: int) -> list[Tensor]:
        seed = objective.seed * 100_003 + draw
        return [normal_like(each, seed, place) for place, each in enumerate(parameters)]

    def signs(objective: Objective, probe: int) -> dict[str, Tensor]:
        parameters = objective.weights.parameters
        return {
            key: signs_like(parameters[key], objective.seed * 100_003 + probe, place)
            for place, key in enumerate(objective.weights.task_vector)
        }

    with monkeypatch.context() as patch:
        if draws_itself(torch.device(pretended_device.NAME)):
            patch.setattr(import_module("clipmerge.measures.average_case"), "_draw_noise", normal)
            patch.setattr(import_module("clipmerge.measures.hessian_trace"), "_rademacher", signs)
        expected = measured(name, objective_on("cpu", ends))
    with counted():
        found = measured(name, objective_on(pretended_device.NAME, ends))
    learns = bool(expected.coefficients)
    for statistic, other in zip(found.statistics, expected.statistics, strict=True):
        largest = max(map(abs, other.values.values()), default=0.0)
        for layer, value in other.values.items():
            # noise is drawn by the device, so that what was learned differs a little
            limit = 0.35 * largest if learns else 1e-4 * largest
            assert statistic.values[layer] == pytest.approx(value, abs=limit + 1e-7), (
                statistic.name,
                layer,
            )
    for mixture, other_mixture in zip(found.mixtures, expected.mixtures, strict=True):
        assert mixture.loss == pytest.approx(other_mixture.loss, rel=1e-4)
    for kind, tensors in expected.tensors.items():
        for key in tensors.keys() - {
            key for key in tensors if key.endswith("k_proj.bias")
        }:  # rounding alone
            tensor = tensors[key]
            assert torch.allclose(
                found.tensors[kind][key], tensor, rtol=1e-3, atol=1e-4 * float(tensor.abs().max())
            )
    for key, value in expected.coefficients.items():
        assert not isinstance(found.coefficients[key], Pretended)
        assert found.coefficients[key].shape == value.shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_steps_of_learning_are_the_cpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    """Also where the device holds both ends in 16 bits, and where weights do not move all at
    once."""
    monkeypatch.setattr(coefficients, "LARGE", 1000)
    ends = save_ends(tmp_path, dtype=dtype)
    loss_config = LossConfig(0.7, weak_aug=1.0, strong_aug=4, augmentations=CHANGES)
    learned, placed = {}, {}
    for device in ("cpu", pretended_device.NAME):
        with counted():
            objective = objective_on(device, ends)
            values = Coefficients(objective, "entry", 0.3)
            values.place()
            placed[device] = {
                name: each.detach().clone().cpu()
                for name, each in objective.weights.parameters.items()
            }
            learn(objective, values, LearningConfig(loss_config, 2, 0.05))
            learned[device] = values.by_parameter()
            moving = sum(value.numel() for value in learned[device].values())
            if device != "cpu":
                assert objective.weights.endpoint_nbytes == 2 * dtype.itemsize * moving
    assert all(
        torch.equal(placed[pretended_device.NAME][name], value)
        for name, value in placed["cpu"].items()
    )
    for name, value in learned["cpu"].items():
        if not name.endswith("k_proj.bias"):  # a softmax does not see it: its gradient is rounding
            assert torch.allclose(learned[pretended_device.NAME][name], value, atol=2e-3), name


@on_cuda
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["learned-coefficients", "learned-sparse"])
def test_learning_in_16_bits_is_near_the_cpus(ends: Ends, name: str, half: torch.dtype) -> None:
    """A coefficient moves by 0.04 on average, and in 16 bits it ends up some 0.003 from float32's
    (root mean square); in float16 the scale falls until gradients fit."""
    options = {
        **{"steps": 4, "held_back": 0.0, "augmentations": list(CHANGES), "batch": 4},
        **({"share": 0.3} if name == "learned-sparse" else {}),
    }
    measure = load_plugin("measures", name)
    expected = measure(objective_on("cpu", ends), precision="float32", **options)
    with counted(has_bfloat16=half == torch.bfloat16) as counts:
        objective = objective_on(pretended_device.NAME, ends)
        assert dtype_of(objective.data.context.device, "auto") == half
        found = measure(objective, **options)
        assert counts.kernels["_to_copy"] > 100  # weights are cast
    for name, losses in expected.trace.items():  # of four images
        assert found.trace[name] == pytest.approx(losses, rel=0.2)
    kept = [key for key in expected.coefficients if not key.endswith("k_proj.bias")]
    one, other = (
        torch.cat([each.coefficients[key].flatten() for key in kept]) for each in (found, expected)
    )
    same = (one == 0) == (other == 0)  # of the sparse ones
    assert same.float().mean() > 0.97
    assert (one - other)[same].square().mean().sqrt() < 0.006
    assert (other[same] - 0.5).abs().mean() > 0.02


@on_cuda
@pytest.mark.parametrize(
    ("moves", "half"),
    [(("",), torch.float16), (("vision_model", "visual_projection"), torch.bfloat16)],
    ids=["both towers", "vision"],
)
def test_a_step_starts_few_kernels_and_waits_at_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moves: tuple[str, ...], half: torch.dtype
) -> None:
    """As many tensors as a ViT-B/32 has; two steps more, less what the model itself does in two
    steps."""
    ends = save_ends(tmp_path, blocks=12, moves=moves)
    monkeypatch.setattr(descent, "_FIRST_SCALE", 128.0)  # no step is computed twice
    loss_config = LossConfig(0.7, weak_aug=1.0, strong_aug=4, precision="auto")
    waits, kernels = [], []

    def unwaited(*args: Any, **options: Any) -> Tensor:
        before = counts.waits
        sums = learning_loss.backpropagate(*args, **options)
        assert counts.waits == before
        return sums

    monkeypatch.setattr(import_module("clipmerge.learning.learn"), "backpropagate", unwaited)
    for steps in (1, 3):
        with counted(has_bfloat16=half == torch.bfloat16) as counts:
            objective = objective_on(pretended_device.NAME, ends)
            counts.kernels, counts.waits = {}, 0
            learn(
                objective,
                Coefficients(objective, "entry", 0.3),
                LearningConfig(loss_config, steps, 0.05),
            )
            waits.append(counts.waits)
            kernels.append(sum(counts.kernels.values()))
    assert kernels[0] > 0
    assert all(
        isinstance(parameter.data, Pretended) for parameter in objective.weights.parameters.values()
    )
    assert (waits[1] - waits[0]) / 2 == (2 if half == torch.bfloat16 else 3)
    pixels = objective.data.batches[0].pixels
    with counted() as counts, passes(pixels.device, "bfloat16"):
        with torch.no_grad():
            objective.criterion.embed(pixels)
        classes = objective.criterion.class_features().float()
        loss = objective.criterion.model.logits(
            objective.criterion.embed(torch.cat([pixels] * 2)).float(), classes
        )
        loss.sum().backward()
        objective.weights.clear_gradients()
        own = sum(counts.kernels.values())
    assert (kernels[1] - kernels[0]) / 2 - own <= 400


def learned_with(
    ends: Ends, most: int | None, sizes: tuple[int, ...], changes: tuple[Augmentation, ...] = ()
) -> tuple[list[str], dict[str, Tensor], int]:
    """Learn on a device with so much memory: what was said, the coefficients, and the most that was
    taken."""
    gc.collect()
    with counted(most=most) as counts:
        before = pretended_device.taken()
        said: list[str] = []
        objective = objective_for(
            ends,
            make_batches(sizes),
            context=DistributedContext(torch.device(pretended_device.NAME)),
            say=said.append,
        )
        values = Coefficients(objective, "entry", 0.3)
        learn(objective, values, LearningConfig(LossConfig(0.7, changes, weak_aug=1.0), 2, 0.05))
        return said, values.by_parameter(), counts.peak - before


def test_memory_that_runs_out_halves_the_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = save_ends(tmp_path, blocks=3, width=64)
    monkeypatch.setattr(activations, "_SHARE_OF_FREE", 1e6)  # expects far more than there is
    _, expected, peak = learned_with(ends, None, (16,))
    said, found, _ = learned_with(ends, pretended_device.taken() + peak * 2 // 3, (16,))
    assert "memory does not suffice for 32 images at once: going on with 16" in said
    for name, value in expected.items():
        if not name.endswith("k_proj.bias"):
            assert torch.allclose(found[name], value, atol=2e-3), name
    with (
        pytest.raises(
            MeasureError, match=r"too little memory .* lower `images_at_once` or `batch_size`"
        ),
        device_work(),
    ):
        learned_with(ends, pretended_device.taken() + peak // 10, (16,))


def test_products_with_the_hessian_are_tried_again(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory runs out in a forward pass: torch aborts if Python raises in a second derivative on a
    device."""

    def enough(_: str) -> None:
        pretended_device.counts.most = None

    objective = objective_on(pretended_device.NAME, ends, say=enough)
    found = [hessian_trace(objective, probes=1)["hessian_trace"].values]
    module = import_module("clipmerge.measures.hessian_trace")
    draw = module._rademacher

    def drawn(*args: Any) -> Any:
        vectors = draw(*args)
        pretended_device.counts.most = pretended_device.taken() + 1000
        return vectors

    monkeypatch.setattr(module, "_rademacher", drawn)
    with counted():
        found.append(hessian_trace(objective, probes=1)["hessian_trace"].values)
    assert texts_of(objective.notes) == [
        "memory does not suffice for 3 images at once: going on with 1"
    ]
    assert found[1] == pytest.approx(found[0], rel=1e-3)


def test_pieces_are_as_small_as_what_is_free(tmp_path: Path) -> None:
    """With a device that others have filled nothing has to be tried twice."""
    ends = save_ends(tmp_path, blocks=3, width=64)
    peak = learned_with(ends, None, (16,))[2]
    for share, fits in ((1.5, True), (0.6, False)):
        said, _, _ = learned_with(ends, pretended_device.taken() + int(share * peak), (16,))
        assert not any("does not suffice" in line for line in said)
        assert ("; 32 of the 32 images" in said[-1]) == fits, said


def test_prompts_that_do_not_fit_are_embedded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = save_ends(tmp_path, blocks=1)
    with counted():
        objective = objective_for(
            ends,
            make_batches((2,)),
            context=DistributedContext(torch.device(pretended_device.NAME)),
        )
        whole = activations.Activations(objective, "float32", 3)
        monkeypatch.setattr(activations, "_SHARE_OF_PROMPTS", 1e-12)
        few = activations.Activations(objective, "float32", 3)
    assert whole.prompts_at_once >= 3
    assert few.prompts_at_once == 1
    assert whole.prompts > few.prompts == 0


def test_any_accelerator_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "false")
    assert distributed_context("auto").device.type == pretended_device.NAME
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert (
        distributed_context("auto").device
        == distributed_context("cpu").device
        == torch.device("cpu")
    )


@on_cuda  # attention without a kernel of its own holds more
@pytest.mark.parametrize(
    ("images", "whole", "dtype"), [(40, False, torch.float32), (8, True, torch.float16)]
)
def test_the_memory_of_learning_is_foretold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: int, whole: bool, dtype: torch.dtype
) -> None:
    """Mostly activations with many images, mostly weights with few."""
    ends = save_ends(tmp_path, blocks=3, width=64, dtype=dtype)
    if not whole:
        monkeypatch.setattr(activations.Activations, "images", lambda self: 4)
    said, _, peak = learned_with(ends, None, (images,), AUGMENTATIONS)
    told = re.search(r"about ([\d.]+) MB", said[-1])
    assert told, said
    assert float(told[1]) * 1e6 == pytest.approx(peak, rel=0.1), said


@on_cuda
def test_no_shape_depends_on_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A measure and a step of two blocks as wide as a ViT-B/32's, by tensors that have shapes alone;
    `benchmarks.gpu.count` takes steps of whole models."""
    monkeypatch.setitem(SIZES, "two", ((768, 3072, 2, 12, 32), (512, 2048, 2, 8), 512, 224))
    moves = ("vision_model", "visual_projection", "text_model", "text_projection", "logit_scale")
    loss = LossConfig(0.5, distill="both", weak_aug=1.0, strong_aug=40, precision="auto")
    with counted(hollow=True, most=23 << 30) as counts:
        objective = hollow_objective(tmp_path, "two", images=40, classes=10, moves=moves)
        measured("first-order", objective)
        learn(objective, Coefficients(objective, "entry"), LearningConfig(loss, 1, 0.03, batch=40))
    assert not objective.notes  # all images went through at once
    weights = sum(each.numel() for each in objective.weights.parameters.values())
    assert counts.peak > 10 * weights  # bytes


def test_noise_is_normal_and_independent_of_what_else_is_drawn() -> None:
    keys = torch.randint(1 << 32, (50,), generator=torch.Generator().manual_seed(0))
    noise = normal_from(keys, 4001)
    assert torch.equal(noise[7:9], normal_from(keys[7:9], 4001))
    assert abs(float(noise.mean())) < 0.01
    assert float(noise.std()) == pytest.approx(1, abs=0.01)
    assert float((noise**4).mean()) == pytest.approx(3, abs=0.1)
    others = [noise[1:], noise[:, 1:], noise[:, 2:]]
    mates = [noise[:-1], noise[:, :-1], noise[:, :-2]]
    for one, other in zip(others, mates, strict=True):
        assert abs(float((one * other).mean())) < 0.01


def test_changes_are_those_of_the_cpu_but_for_noise(ends: Ends) -> None:
    pixels = make_batches((6,))[0].pixels
    kinds = ("geometry", "colour", "grey", "blur")
    with counted() as counts:
        there = pixels.to(pretended_device.NAME)
        assert torch.allclose(
            strong_augment(there, 3, kinds).cpu(), strong_augment(pixels, 3, kinds), atol=1e-6
        )
        counts.waits = 0
        noisy = strong_augment(there, 3, ("noise",))
        # Apple's would read what is sent when it may be gone, so that is waited for
        assert counts.waits == (2 if pretended_device.NAME == "mps" else 0)
    spread = (noisy.cpu() - pixels).std((1, 2, 3))
    assert torch.allclose(
        spread, (strong_augment(pixels, 3, ("noise",)) - pixels).std((1, 2, 3)), rtol=0.05
    )


def test_evaluation_is_that_of_the_cpu(pair: tuple[Path, Path], images: Path) -> None:
    loaded, accuracies = load_images(str(images), None, whole=True), []
    for device in ("cpu", pretended_device.NAME):
        with counted():
            model = load_model(open_checkpoint(str(pair[0])))
            scorer = Scorer(model, None, Calibration(device=cast(Any, device)))
            accuracies.append(scorer.score_one(loaded, Progress()).correct.mean())
    assert accuracies[0] == accuracies[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_points_are_classified_as_on_the_cpu(
    tmp_path: Path, images: Path, dtype: torch.dtype
) -> None:
    """Pictures are sent once for all points; weights in float64 stay on the CPU, as Apple's devices
    have none."""
    loaded, answers = load_images(str(images), None, whole=True), []
    moves = [partial(MovingModel.interpolate, alpha=alpha) for alpha in (0.0, 0.5, 1.0)]
    inputs = inputs_of(save_ends(tmp_path, blocks=1, dtype=dtype))
    for device in ("cpu", pretended_device.NAME):
        with (
            counted(),
            torch.inference_mode(),
        ):  # the device makes no views of others in it
            scorer = Scorer(
                build_model(inputs),
                inputs,
                Calibration(device=cast(Any, device), batch_size=7),
            )
            found = scorer.score(moves, {"a": loaded}, Progress())["a"]
            answers.append([outcome.best.tolist() for outcome in found])
    assert answers[0] == answers[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_plan_is_placed_bit_for_bit_as_on_the_cpu(tmp_path: Path, dtype: torch.dtype) -> None:
    """One coefficient per entry, per row and per layer; a masked layer's come from the CPU."""
    ends = save_ends(tmp_path, blocks=2, dtype=dtype, moves=("vision_model",))
    task = task_of(ends)
    generator = torch.Generator().manual_seed(0)
    learned = {}
    for name in [*task.layers["vision.0.attn"], *task.layers["vision.0.mlp"]]:
        shape = task.shapes[name] if "mlp" in name else task.shapes[name][:1]
        rows = torch.rand(shape, generator=generator).round(decimals=1)  # 0 and 1 among them
        learned[name] = rows.view(*shape, *[1] * (len(task.shapes[name]) - len(shape)))
    layers = {name: LayerPlan(alpha=0.3) for name in task.layers}
    layers["vision.1.attn"] = LayerPlan(alpha=0.3, density=0.5, mask="magnitude")
    layers = with_coefficients(layers, learned, task.layers, task.shapes)
    plan = plan_with(layers).checked(task.layers).with_tensors(named_tensors({}, learned))
    placed = []
    for device in ("cpu", pretended_device.NAME):
        with counted() as counts:
            model = MovingModel(build_model(task.inputs), task.inputs, torch.device(device))
            counts.kernels = {}
            model.set_plan(plan)
            placed.append(
                {name: each.detach().cpu() for name, each in model.model.parameters.items()}
            )
            assert counts.kernels.get("sub", 0) >= (0 if device == "cpu" else len(learned))
    for name, expected in placed[0].items():
        assert torch.equal(placed[1][name].view(torch.int32), expected.view(torch.int32)), name


def test_a_weight_that_overflows_is_told_as_on_the_cpu(tmp_path: Path) -> None:
    task = task_of(save_ends(tmp_path, blocks=1))
    plan = plan_with({layer: LayerPlan(alpha=1e40) for layer in task.layers})
    told = []
    for device in ("cpu", pretended_device.NAME):
        with counted():
            model = MovingModel(build_model(task.inputs), task.inputs, torch.device(device))
            with pytest.raises(CheckpointError) as refusal:
                model.set_plan(plan)
        told.append(str(refusal.value))
    assert told[0] == told[1]


def test_retrieval_is_that_of_the_cpu() -> None:
    generator = torch.Generator().manual_seed(0)
    images, texts = (
        normalize(torch.randn(count, 8, generator=generator), dim=-1) for count in (6, 12)
    )
    owners = torch.arange(6).repeat(2)
    expected = recall_at(*retrieval_ranks(images, texts, owners)[:2])
    with counted():
        there = (tensor.to(pretended_device.NAME) for tensor in (images, texts, owners))
        assert recall_at(*retrieval_ranks(*there)[:2]) == expected


@pytest.mark.parametrize("mask", ["magnitude", "random"])
def test_state_dicts_on_the_device_are_merged_there(mask: str) -> None:
    generator = torch.Generator().manual_seed(0)
    ends = [{"w": torch.randn(40, 3, generator=generator), "n": torch.tensor(3)} for _ in range(2)]
    expected = merge_state_dicts(*ends, alpha=0.4, density=0.5, mask=mask)
    with counted():
        there = [
            {name: tensor.to(pretended_device.NAME) for name, tensor in end.items()} for end in ends
        ]
        found = merge_state_dicts(*there, alpha=0.4, density=0.5, mask=mask)
    assert all(tensor.device.type == pretended_device.NAME for tensor in found.values())
    assert all(torch.equal(found[name].cpu(), tensor) for name, tensor in expected.items())


@on_cuda
def test_collectives_get_tensors_on_the_device_of_their_group(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes with equal tensors, and a group that refuses those on the CPU, as NCCL's
    does."""
    sent = []

    def all_reduce(tensor: torch.Tensor) -> None:
        if tensor.device.type == "cpu":
            raise RuntimeError("No backend type associated with device type cpu")
        sent.append(tensor.numel())
        tensor.mul_(2)

    def broadcast(tensor: torch.Tensor, _source: int) -> None:
        assert tensor.device.type != "cpu"

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    monkeypatch.setattr(torch.distributed, "broadcast", broadcast)
    objective = objective_on("cpu", ends)
    processes: Any = objective.data.context
    processes.world_size, processes.state = (
        2,
        SimpleNamespace(device=torch.device(pretended_device.NAME)),
    )
    sums = torch.ones(3, dtype=torch.float64)
    all_reduce_(processes, sums)
    assert sums.tolist() == [2, 2, 2]
    totals = objective.data.total({"a": sums})
    assert (totals["a"].tolist(), sums.tolist()) == ([4, 4, 4], [2, 2, 2])
    values = Coefficients(objective, "entry", 0.3)
    for number, value in enumerate(values.values.values()):
        value.grad = torch.full_like(value, number)
    sent.clear()
    values.all_reduce_()
    assert sent == [sum(value.numel() for value in values.values.values())]  # all at once
    for number, value in enumerate(values.values.values()):
        assert torch.equal(cast(Tensor, value.grad), torch.full_like(value, 2 * number))
    monkeypatch.setattr(coefficients, "_BUCKET", 1)
    values.all_reduce_(2)  # both had all of them
    for number, value in enumerate(values.values.values()):
        assert torch.equal(cast(Tensor, value.grad), torch.full_like(value, 2 * number))
    assert len(sent) == 1 + len(values.values)
    # a step with fewer images than processes, which both take whole: their coefficients stay equal
    sent.clear()
    learn(objective, values, LearningConfig(LossConfig(0.0), 1, 0.05, batch=1))
    assert sum(sent) == sum(value.numel() for value in values.values.values())
