"""The measured effect of a merge: against transformers itself, and from the command line to the
card."""

import hashlib
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, CLIPProcessor

import clipmerge as clipmerge_package
from clipmerge.api._merge_effect import broadcast_plan
from clipmerge.api.apply import write_merge
from clipmerge.api.merge import prepare
from clipmerge.distributed import distributed_context
from clipmerge.errors import MeasureError
from clipmerge.evaluation.effect import _takes_all_of
from clipmerge.evaluation.probe import RELATED, UNRELATED, corrupt
from clipmerge.finding import Finding
from clipmerge.images.dataset import load_images
from clipmerge.images.image_set import LabelledImages
from clipmerge.images.split import sample_and_hold_back
from clipmerge.learning.steps import held_out_positions
from clipmerge.output.record import parse_record
from clipmerge.planning.plan import LayerPlan, named_tensors
from clipmerge.progress import Progress
from clipmerge.report.text import effect_facts, text_of, unmeasured_text
from tests.support.claims import words_of
from tests.support.command import clipmerge, done, printed, refused
from tests.support.raw_safetensors import edit_json
from tests.support.tasks import plan_of, request_for
from tests.support.tiny_clip import Folders, save_images, save_pair
from tests.support.told import Told

QUICK = ("measure.nodes=2",)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def losing(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Such a pair whose merge loses accuracy: in the other order, without parameters that no
    training has touched."""
    changed, original = reversed(save_pair(tmp_path_factory.mktemp("losing"), change=1.0))
    model, generator = CLIPModel.from_pretrained(original), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1e-3 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(original)
    return changed, original


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 images, which both models of the pair classify badly and differently."""
    return save_images(tmp_path_factory.mktemp("photos"), each=20)


@cache
def loaded(folder: Path) -> tuple[CLIPModel, CLIPProcessor]:
    return CLIPModel.from_pretrained(folder).eval(), CLIPProcessor.from_pretrained(folder)


def predictions(folder: Path, images: list[Image.Image]) -> list[int]:
    """The best class of each image, by transformers alone."""
    model, processor = loaded(folder)
    prompts = [f"a photo of a {name}." for name in ("bird", "cat", "dog")]
    inputs = processor(text=prompts, images=images, return_tensors="pt", padding=True)
    with torch.no_grad():
        return model(**inputs).logits_per_image.argmax(dim=-1).tolist()


def test_the_finetuned_model_itself_loses_nothing(far: Folders, images: Path) -> None:
    """Few images would not tell; that nothing changed is known."""
    request = request_for((far[1], far[0]), "wise-ft", "method.alpha=1", data=images)
    effect = prepare(replace(request, allow=("at-chance",))).light_plan.effect
    assert (effect.recommendation, effect.reason.kind) == ("either", "same-model")
    assert effect.possible_loss is None


def test_a_layer_that_did_not_change_is_the_fine_tuned_models_too() -> None:
    same = LayerPlan(alpha=0.0, reason=Finding.of("unchanged"))
    for alpha, other, expected in (
        (1.0, same, True),
        (0.9, same, False),
        (1.0, LayerPlan(alpha=0.0), False),
    ):
        learned = LayerPlan(alpha=alpha, alpha_range=(alpha, alpha))
        layers = {"vision.0.mlp": learned, "text.0.mlp": other}
        plan: Any = SimpleNamespace(combine=None, weights=(1.0,), layers=layers)
        assert _takes_all_of(plan, 0, layers) is expected


@pytest.mark.parametrize("recipe", ["straggler-outlier", "wise-ft"])
def test_the_numbers_are_those_of_the_models_written(
    far: Folders, photos: Path, tmp_path: Path, recipe: str
) -> None:
    sets = ["overrides=[{layers: vision.*, alpha: 0.6}]"]
    if recipe == "straggler-outlier":  # the path of `far` would take many points
        sets += ["measure.nodes=1", "measure.tolerance=100"]
    run = prepare(request_for(far, recipe, *sets, data=photos))
    effect = run.light_plan.effect
    write_merge(run, tmp_path / "merged")

    everything = load_images(str(photos))
    held: LabelledImages | None = everything.sample(256, 0)
    if recipe == "straggler-outlier":
        held = sample_and_hold_back(everything, 1024, 0).held_back
    assert effect.images == len(held) == (12 if recipe == "straggler-outlier" else 60)
    images = [held.image(at) for at in range(len(held))]
    scaled = [
        image.resize((32, 36), Image.Resampling.BICUBIC) for image in images
    ]  # 36 x 40, seen at 32
    models = {"zeroshot": far[0], "finetuned": far[1], "merged": tmp_path / "merged"}
    answers = {name: predictions(folder, images) for name, folder in models.items()}
    measured = {
        "zeroshot": effect.zeroshot,
        "finetuned": effect.finetuned[0],
        "merged": effect.merged,
    }
    for name, accuracy in measured.items():
        assert accuracy.clean.value == np.mean(
            [a == b for a, b in zip(answers[name], held.labels, strict=True)]
        )
    assert effect.agreement.value == np.mean(np.equal(answers["merged"], answers["zeroshot"]))
    assert len({accuracy.clean.value for accuracy in measured.values()}) > 1

    per_image = {UNRELATED: 5, RELATED: {12: 5, 60: 4}[len(held)]}
    assert (effect.corruptions_per_image, effect.related_per_image) == tuple(per_image.values())
    assert effect.related == RELATED
    for group, mean in ((UNRELATED, "corrupted"), (RELATED, "related")):
        places = {
            corruption: [
                at
                for at in range(len(held))
                if (number - at * per_image[group]) % 5 < per_image[group]
            ]
            for number, corruption in enumerate(group)
        }
        spoiled = {
            name: [corrupt(scaled[at], name, at) for at in met] for name, met in places.items()
        }
        for name, folder in models.items():
            by_image = np.zeros(len(held))
            for corruption, met in places.items():
                seen = predictions(folder, spoiled[corruption])
                right = [a == held.labels[at] for a, at in zip(seen, met, strict=True)]
                assert measured[name].corruptions[corruption].value == pytest.approx(np.mean(right))
                by_image[met] += right
            assert getattr(measured[name], mean).value == pytest.approx(
                by_image.mean() / per_image[group]
            )


def test_the_decision_never_sees_what_is_held_back(pair: Folders, tmp_path: Path) -> None:
    request = request_for(
        pair, "straggler-outlier", *QUICK, data=save_images(tmp_path / "copy", each=20)
    )
    first = prepare(request).light_plan
    held = sample_and_hold_back(load_images(str(tmp_path / "copy")), 1024, 0).held_back
    assert (first.calibration.images, len(held)) == (48, 12)
    for number, path in enumerate(held.store.paths):  # all different: of copies, one would be used
        Image.new("RGB", (40, 36), (200, number, 200)).save(path)
    second = prepare(request).light_plan
    assert second.measurements == first.measurements
    assert second.layers == first.layers
    assert second.effect != first.effect
    seen = next(
        path for path in (tmp_path / "copy").rglob("*.png") if str(path) not in held.store.paths
    )
    Image.new("RGB", (40, 36), (0, 200, 0)).save(seen)
    assert prepare(request).light_plan.measurements != first.measurements


def test_few_images_that_nothing_was_learned_from_choose_and_judge(
    pair: Folders, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of many, those that learning holds out choose, and the others judge."""
    quick = ("measure.steps=4", "measure.batch=2", "measure.strong_aug=2")
    for most, choosing, judging in ((256, 22, 22), (15, 22, 15), (12, 10, 12)):
        monkeypatch.setattr("clipmerge.api.measure.MAX_HELD_BACK", most)
        run = prepare(request_for(pair, "auto", *quick, data=photos, allow=("at-chance",)))
        samples = sample_and_hold_back(load_images(str(photos)), 1024, 0)
        decided, first = samples.decide, samples.held_back.store.names
        held_out = decided.subset(held_out_positions(decided.labels, 0.2, 0)).store.names
        assert (len(first), len(held_out)) == (12, 10)
        judges = [run.held_back.store.name(at) for at in range(len(run.held_back))]
        assert judges == [*first, *held_out][:judging]
        effect = run.light_plan.effect
        assert effect.images == judging
        assert run.light_plan.measurements.choice.images == choosing
        assert effect.choosers == (0 if most == 12 else judging)
        said = "These images also chose how far to go" in effect_facts(effect)
        assert said is (most > 12)


def test_without_a_verdict_the_decision_sees_every_image(
    pair: Folders, photos: Path, tmp_path: Path
) -> None:
    flags = ("--recipe", "straggler-outlier", "--set", *QUICK, "--data", photos, "--no-verdict")
    ended = done("merge", *pair, *flags, "--output", tmp_path / "out", "--json")
    assert ended.json["effect"] is None
    assert ended.json["calibration"]["images"] == 60
    assert "effect" not in ended.json["seconds"]
    # the report's command does the same
    said = words_of((tmp_path / "out" / "report.html").read_text())
    assert "--no-verdict" in said
    record = parse_record((tmp_path / "out" / "clipmerge.json").read_text(), "record")
    assert "was not measured on held-out images" in unmeasured_text(record)
    assert unmeasured_text(record).replace("`", "") in said


def test_a_warning_that_the_summary_shows_is_not_said_before_it(
    losing: Folders, photos: Path
) -> None:
    for shown in (False, True):
        told = Told()
        told.shows_verdict = shown  # type: ignore[attr-defined]
        effect = prepare(request_for(losing, "wise-ft", data=photos), told).light_plan.effect
        assert (text_of(effect.warnings[0]) in told.lines) is not shown


def test_copies_are_measured_once(far: Folders, photos: Path, tmp_path: Path) -> None:
    twice, told = shutil.copytree(photos, tmp_path / "twice"), Told()
    for file in [*twice.rglob("*.png")]:
        shutil.copyfile(file, file.with_stem(f"{file.stem}-again"))
    assert prepare(request_for(far, "wise-ft", data=twice), told).light_plan.effect.images == 60
    assert sum("copies" in line for line in told.lines) == 1


def test_a_process_that_is_gone_when_the_plan_is_shared_is_named(
    pair: Folders, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(_: list[Any]) -> None:
        raise RuntimeError(
            "[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1"
        )

    context = distributed_context("auto")
    monkeypatch.setattr(context, "world_size", 2)
    monkeypatch.setattr("clipmerge.api._merge_effect.distributed_context", lambda device: context)
    monkeypatch.setattr("accelerate.utils.broadcast_object_list", lost)
    with pytest.raises(MeasureError, match="another process of this run ended"):
        prepare(request_for(pair, "wise-ft", data=photos))


def test_what_every_process_has_learned_is_not_sent(
    pair: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The main process sends the plan, and of its tensors those that others lack."""
    request = request_for(pair, "wise-ft")
    run = prepare(request)
    assert run.plan is not None
    learned, scores = torch.rand(3), torch.rand(2)
    run.learned = {"a": learned}
    run.plan = run.plan.with_tensors(named_tensors({"b": scores}, {"a": learned.clone()}))
    context = distributed_context("cpu")
    monkeypatch.setattr(context, "world_size", 2)
    monkeypatch.setattr("clipmerge.api._merge_effect.distributed_context", lambda device: context)
    packed: list[Any] = []
    monkeypatch.setattr("accelerate.utils.broadcast_object_list", packed.extend)
    sent: list[torch.Tensor] = []
    monkeypatch.setattr(
        "clipmerge.api._merge_effect.broadcast_", lambda _, tensor: sent.append(tensor)
    )
    found = broadcast_plan(run, request.calibration)
    assert not packed[0].loaded_tensors
    assert [each.tolist() for each in sent] == [scores.tolist()]
    assert set(found.loaded_tensors) == set(run.plan.loaded_tensors)


def test_images_that_would_measure_nothing_are_an_error(
    pair: Folders, photos: Path, tmp_path: Path
) -> None:
    bare = []
    for folder in pair:
        (tmp_path / folder.name).mkdir()
        for name in ("model.safetensors", "config.json"):
            shutil.copy(folder / name, tmp_path / folder.name / name)
        bare.append(tmp_path / folder.name)
    flags = ("-r", "wise-ft", "-o", tmp_path / "out")
    line = refused(clipmerge("merge", *bare, *flags, "--data", photos))
    assert "the effect of the merge cannot be measured, so nothing was written" in line
    assert not (tmp_path / "out").exists()
    done("merge", *bare, *flags)


def record_of(folder: Path) -> dict[str, Any]:
    """A checkpoint as a plan names it."""
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    return {"source": str(folder), "revision": None, "files": {"model.safetensors": digest}}


def test_a_plan_keeps_what_was_found_for_a_checkpoint_that_moved(
    pair: Folders, photos: Path, tmp_path: Path
) -> None:
    file = tmp_path / "plan.json"
    planned = printed("plan", *pair, "-r", "wise-ft", "--data", photos, "-o", file)
    assert planned["effect"]
    moved = shutil.copytree(pair[1], tmp_path / "moved")
    edit_json(file, finetuned=[record_of(moved)])
    record = printed("apply", file, "-o", tmp_path / "out")
    assert (record["effect"], record["decision"]) == (planned["effect"], planned["decision"])
    assert record["finetuned"] == [record_of(moved) | {"model": None}]


def test_a_plan_of_a_wrong_pair_is_refused_as_in_merge(pair: Folders, tmp_path: Path) -> None:
    """A base in half precision, as OpenAI's, shows the order."""
    folders = [shutil.copytree(pair[0], tmp_path / name) for name in ("base", "tuned")]
    base = {
        key: value.half().float() for key, value in load_file(pair[0] / "model.safetensors").items()
    }
    tuned = {key: value + 1e-3 * torch.randn(value.shape) for key, value in base.items()}
    for folder, weights in zip(folders, (base, tuned), strict=True):
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    file = tmp_path / "plan.json"
    done("plan", *folders, "-r", "wise-ft", "-o", file)
    edit_json(file, zeroshot=record_of(folders[1]), finetuned=[record_of(folders[0])])
    flags = ("-r", "wise-ft", "-o", tmp_path / "one")
    line = refused(clipmerge("merge", *reversed(folders), *flags))
    assert "probably swapped" in line
    told = clipmerge("merge", *reversed(folders), *flags, "--allow", "swapped", "--json")
    applied = clipmerge("apply", file, "-o", tmp_path / "two", "--json")
    assert told.json["warnings"]
    assert all(warning in applied.json["warnings"] for warning in told.json["warnings"])
    assert told.json["warnings"][0]["text"] in " ".join(applied.err.split())
    edit_json(file, zeroshot=record_of(folders[0]))
    for command in (("merge", folders[0], folders[0], "-r", "wise-ft"), ("apply", file)):
        assert "base: is given twice" in refused(clipmerge(*command, "-o", tmp_path / "three"), 2)


def test_of_several_the_most_accurate_is_the_one_to_compare_with(
    family: list[Path], photos: Path
) -> None:
    effect = plan_of(family, "uniform-soup", data=photos).effect
    everything = load_images(str(photos)).sample(256, 0)
    images = [everything.image(at) for at in range(len(everything))]
    shares = [
        np.mean(
            [a == b for a, b in zip(predictions(folder, images), everything.labels, strict=True)]
        )
        for folder in family[1:]
    ]
    assert [accuracy.clean.value for accuracy in effect.finetuned] == shares
    assert effect.reference == shares.index(max(shares))
    assert effect.over_finetuned.clean.value == pytest.approx(
        effect.merged.clean.value - max(shares)
    )


def test_preprocessed_pixels_cannot_be_corrupted_and_that_is_reported(
    pair: Folders, photos: Path
) -> None:
    from torchvision.datasets import ImageFolder

    processor = CLIPProcessor.from_pretrained(pair[0])
    data = ImageFolder(
        photos,
        transform=lambda image: processor.image_processor(image, return_tensors="pt")[
            "pixel_values"
        ][0],
    )
    plan = clipmerge_package.plan(
        *pair, "straggler-outlier", data=data, set=list(QUICK), progress=Progress()
    )
    assert plan.effect is None
    assert any("holds preprocessed pixels" in str(warning) for warning in plan.warnings)
