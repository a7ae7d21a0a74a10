"""WiSE-FT classifiers: an image encoder and a head, merged with a zero-shot model without or with a
head."""

import json
import shutil
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import normalize

import clipmerge as api
from clipmerge.errors import CheckpointError, DataError
from clipmerge.families.open_clip import OPEN_CLIP
from clipmerge.images.dataset import load_images
from clipmerge.models.headed_tower import HeadedTower, group_logits
from clipmerge.progress import Progress
from tests.support.command import anywhere, clipmerge, done, refused
from tests.support.tiny_clip import save_images
from tests.support.tiny_open_clip import load, model_config, save_open_clip_pair

CLASSES = ("bird", "cat", "dog")
TEMPLATES = ("a photo of a {}", "a drawing of a {}")
WEIGHT, BIAS = "classification_head.weight", "classification_head.bias"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zero-shot OpenCLIP folder, and beside it ``classifier.pt``, fine-tuned from it."""
    folder = tmp_path_factory.mktemp("heads")
    zeroshot, finetuned = save_open_clip_pair(folder, model_config())
    torch.manual_seed(3)
    head = {WEIGHT: torch.randn(len(CLASSES), 16), BIAS: torch.randn(len(CLASSES))}
    tensors = load_file(finetuned / "open_clip_model.safetensors")
    # what WiSE-FT leaves when it deletes the text transformer
    encoder = {k: v for k, v in tensors.items() if not k.startswith("transformer.")}
    wrapped = {f"image_encoder.model.{key}": value for key, value in encoder.items()}
    torch.save({**wrapped, **head}, folder / "classifier.pt")
    (folder / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return zeroshot


def merge(base: Path, output: Path, *flags: object, alpha: float = 0.25) -> dict[str, Tensor]:
    inputs = (base, base.parent / "classifier.pt")
    settings = (
        "--recipe",
        "wise-ft",
        "--set",
        f"method.alpha={alpha}",
        "--output",
        output,
        "-q",
    )
    done("merge", *inputs, *settings, *flags)
    return load_file(output / "open_clip_model.safetensors")


def ends(base: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    theta_1 = torch.load(base.parent / "classifier.pt", weights_only=True)  # noqa: TID251
    return load_file(base / "open_clip_model.safetensors"), theta_1


@torch.no_grad()
def zeroshot_head(base: Path) -> Tensor:
    """Class by class and prompt by prompt, by open_clip alone."""
    model = load(base)
    tokenizer = open_clip.get_tokenizer(f"local-dir:{base}")
    rows = []
    for name in CLASSES:
        features = [
            normalize(model.encode_text(tokenizer([t.format(name)]))[0], dim=0) for t in TEMPLATES
        ]
        rows.append(normalize(torch.stack(features).mean(0), dim=0) * model.logit_scale.exp())
    return torch.stack(rows)


def is_merged_encoder(base: Path, merged: dict[str, Tensor], alpha: float) -> bool:
    theta_0, theta_1 = ends(base)
    visual = [key for key in theta_0 if key.startswith("visual.")]
    assert set(merged) == {*visual, WEIGHT, BIAS}
    changed = {key: theta_1[f"image_encoder.model.{key}"] for key in visual}
    return all(
        torch.equal(merged[k], theta_0[k] + alpha * (changed[k] - theta_0[k])) for k in visual
    )


def test_the_zero_shot_side_is_built_from_class_prompts_or_the_head_is_kept(
    base: Path, tmp_path: Path
) -> None:
    flags = ["--classes", base.parent / "classes.txt"]
    templates = [word for template in TEMPLATES for word in ("--template", template)]
    theta_1, built = ends(base)[1], zeroshot_head(base)
    for alpha in (0, 0.25):
        merged = merge(base, tmp_path / f"at-{alpha}", *flags, *templates, alpha=alpha)
        assert merged[WEIGHT] == pytest.approx(torch.lerp(built, theta_1[WEIGHT], alpha), abs=1e-5)
        assert torch.equal(merged[BIAS], alpha * theta_1[BIAS])
        assert is_merged_encoder(base, merged, alpha)
    merged = merge(
        base, tmp_path / "override", *flags, "--set", "overrides=[{layers: head, alpha: 1}]"
    )
    assert torch.equal(merged[WEIGHT], theta_1[WEIGHT])
    merged = merge(base, tmp_path / "without names")
    assert is_merged_encoder(base, merged, 0.25)
    assert all(torch.equal(merged[key], theta_1[key]) for key in (WEIGHT, BIAS))


def test_a_plan_builds_the_same_head(base: Path, tmp_path: Path) -> None:
    merge(base, tmp_path / "merged", "--classes", base.parent / "classes.txt", alpha=0.5)
    inputs = (
        base,
        base.parent / "classifier.pt",
        "--recipe",
        "wise-ft",
        "--classes",
        base.parent / "classes.txt",
    )
    done("plan", *inputs, "--output", tmp_path / "plan.json")
    done("apply", tmp_path / "plan.json", "--output", tmp_path / "applied")
    merged, applied = (
        tmp_path / name / "open_clip_model.safetensors" for name in ("merged", "applied")
    )
    assert merged.read_bytes() == applied.read_bytes()


def test_both_heads_are_merged(base: Path, tmp_path: Path) -> None:
    theta_0 = {k: v for k, v in ends(base)[0].items() if k.startswith("visual.")}
    theta_0 |= {WEIGHT: torch.ones(3, 16), BIAS: torch.ones(3)}
    torch.save(
        {f"model.{k}" if k.startswith("visual.") else k: v for k, v in theta_0.items()},
        tmp_path / "soup.pt",
    )
    inputs = (tmp_path / "soup.pt", base.parent / "classifier.pt", "--recipe", "wise-ft")
    outcome = done("merge", *inputs, "--output", tmp_path / "out", "--json")
    merged, theta_1 = load_file(tmp_path / "out" / "open_clip_model.safetensors"), ends(base)[1]
    assert all(
        torch.equal(merged[k], theta_0[k] + 0.5 * (theta_1[k] - theta_0[k])) for k in (WEIGHT, BIAS)
    )
    assert outcome.json["layers"]["head"]["alpha"] == 0.5


def test_another_number_of_classes_or_of_features_is_refused(base: Path, tmp_path: Path) -> None:
    classes, theta_1 = tmp_path / "classes.txt", ends(base)[1]
    classes.write_text("bird\ncat\n")
    two = save_images(tmp_path / "two", each=1, classes=("bird", "cat"))
    torch.save(theta_1 | {WEIGHT: torch.zeros(3, 8)}, tmp_path / "narrow.pt")
    whole = base.parent / "classifier.pt"
    for finetuned, flags, message in (
        (whole, ("--classes", classes), "has 2 class names, there are 3 classes"),
        (
            whole,
            ("--data", two),
            "its head has 3 classes, but 2 were named; give --classes with one line per class",
        ),
        (
            tmp_path / "narrow.pt",
            ("--classes", base.parent / "classes.txt"),
            "its head takes 8 features, but the zero-shot model's embeddings have 16",
        ),
    ):
        more = ("--recipe", "wise-ft", "--output", tmp_path / "out")
        assert message in refused(clipmerge("merge", base, finetuned, *flags, *more))
    assert not (tmp_path / "out").exists()


def test_what_is_learned_leaves_the_head_fine_tuned(
    base: Path, images: Path, tmp_path: Path
) -> None:
    flags = (
        "--recipe",
        "auto",
        "--set",
        "measure.steps=2",
        "--data",
        images,
        "--images",
        6,
        *anywhere(),
    )
    outcome = done("merge", base, base.parent / "classifier.pt", *flags, "--json")
    head = outcome.json["layers"]["head"]
    assert (head["alpha"], head["reason"]["kind"]) == (1, "unmeasured-head")


def test_a_head_that_does_not_fit_its_tower_or_its_classes_is_refused(
    base: Path, tmp_path: Path
) -> None:
    config = json.loads((base / "open_clip_config.json").read_text())
    with pytest.raises(
        CheckpointError, match=r"the head has shape \(3, 8\), the tower 16 features"
    ):
        HeadedTower(OPEN_CLIP, config, base, (3, 8))
    tower = HeadedTower(OPEN_CLIP, config, base, (3, 16))
    assert [rows.tolist() for rows in tower.rows_for("here", 3, ())] == [[0], [1], [2]]
    assert [rows.tolist() for rows in tower.rows_for("here", 2, [(2, 0), (1,)])] == [[2, 0], [1]]
    for classes, rows in ((2, ()), (2, [(0,), (3,)])):
        with pytest.raises(
            DataError, match=r"here: has 2 classes, and the model's head 3; their correspondence"
        ):
            tower.rows_for("here", classes, rows)


def test_a_head_needs_the_configuration_beside_it(base: Path, images: Path, tmp_path: Path) -> None:
    for name in ("zeroshot", "finetuned"):
        head = torch.load(base.parent / "classifier.pt", weights_only=True)  # noqa: TID251
        torch.save(head, tmp_path / f"{name}.pt")
    flags = (
        "--id",
        f"test={images}",
        "--ood",
        f"far={images}",
        "--alphas",
        "0,1",
        "--output",
        tmp_path / "out",
    )
    line = refused(clipmerge("sweep", tmp_path / "zeroshot.pt", tmp_path / "finetuned.pt", *flags))
    assert "evaluating a head needs open_clip_config.json beside the weights" in line


def test_a_sweep_of_two_heads_is_what_open_clip_computes(base: Path, tmp_path: Path) -> None:
    """Images as files, and preprocessed in memory."""
    shutil.copyfile(base / "open_clip_config.json", tmp_path / "open_clip_config.json")
    tuned = torch.load(base.parent / "classifier.pt", weights_only=True)  # noqa: TID251
    base_weights = load_file(base / "open_clip_model.safetensors")
    prefix = "image_encoder.model."
    start = {n: base_weights.get(n.removeprefix(prefix), v) for n, v in tuned.items()}
    start[WEIGHT] = tuned[WEIGHT].flip(0)
    for name, state in (("zeroshot", start), ("finetuned", tuned)):
        torch.save(state, tmp_path / f"{name}.pt")
    folder = save_images(tmp_path / "images", classes=CLASSES)
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{base}")
    images = load_images(str(folder))
    pixels = torch.stack([preprocess(images.image(at)) for at in range(len(images))])
    swept = api.sweep(
        tmp_path / "zeroshot.pt",
        tmp_path / "finetuned.pt",
        id={"files": folder},
        ood={"memory": [*zip(pixels, map(CLASSES.__getitem__, images.labels), strict=True)]},
        alphas="0,1",
        progress=Progress(),
    )
    for row, state in zip(swept.record["curve"], (start, tuned), strict=True):
        encoder = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        model.load_state_dict(encoder, strict=False)
        with torch.inference_mode():
            features = normalize(model.encode_image(pixels), dim=-1)
        answers = (features @ state[WEIGHT].T + state[BIAS]).argmax(1)
        accuracy = float((answers == torch.tensor(images.labels)).double().mean())
        assert row["accuracy"] == {"files": accuracy, "memory": accuracy}


def test_a_head_that_no_prompts_made_is_not_swept(base: Path, images: Path) -> None:
    sources = {"id": images, "ood": {"other": images}}
    with pytest.raises(
        CheckpointError, match="is a classifier with a head of its own, and a sweep"
    ):
        api.sweep(base, base.parent / "classifier.pt", **sources, progress=Progress())
    ended = done("merge", base, base.parent / "classifier.pt", "-r", "wise-ft", *anywhere())
    assert "clipmerge cannot evaluate" in ended.out


def test_a_class_of_several_rows_has_their_largest_score() -> None:
    logits = torch.tensor([[1.0, 5.0, 3.0], [2.0, 0.0, 1.0]])
    rows = [torch.tensor([0, 2]), torch.tensor([1])]
    assert group_logits(logits, rows).tolist() == [[3.0, 5.0], [2.0, 0.0]]
    assert group_logits(logits, [rows[1], rows[1]]).tolist() == [[5.0, 5.0], [0.0, 0.0]]
