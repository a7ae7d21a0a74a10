from __future__ import annotations

import json
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from benchmarks.emoji_shift import glyphs
from benchmarks.fashion_shift import clothes
from benchmarks.shifts import claims, claims_page, command, pictures, ranks, report, standing
from benchmarks.shifts.evaluation import Evaluation, contestants, evaluate_pair, packed, unpacked
from benchmarks.shifts.experiment import Shift, Source, TrainedPair, prepare
from benchmarks.shifts.laboratory import Laboratory
from benchmarks.shifts.training import Drawings, Pretraining, Regime, pretrain
from clipmerge.errors import DataError, RecipeError, UsageError
from clipmerge.evaluate import evaluate_sources
from clipmerge.recipe import load_recipe
from clipmerge.run import Silent
from tests.tiny_clip import CLASSES, save_pair

STILL = pictures.Strength(degrees=0, zoom=(1, 1), shift=0, background=1, contrast=0, noise=0, blur=0)
SIZE = 32
SMALL = Evaluation(alphas=(0.0, 0.5, 1.0), images=24)


# --- pictures


def test_a_still_picture_is_the_drawing_on_white_at_half_the_size() -> None:
    drawings = torch.rand(2, 4, 2 * SIZE, 2 * SIZE, generator=torch.Generator().manual_seed(0))
    taken = pictures.photographed(drawings, STILL, torch.Generator().manual_seed(1))
    for image, channel, row, column in [(0, 0, 0, 0), (0, 2, 31, 31), (1, 1, 7, 20)]:
        total = 0.0
        for down in (0, 1):
            for right in (0, 1):
                at = (2 * row + down, 2 * column + right)
                cover = drawings[image, 3][at].item()
                total += drawings[image, channel][at].item() * cover + (1 - cover)
        assert taken[image, channel, row, column].item() == pytest.approx(total / 4, abs=1e-5)


def test_every_style_is_drawn_from_the_seed_and_stays_a_picture() -> None:
    drawings = torch.rand(40, 4, 2 * SIZE, 2 * SIZE, generator=torch.Generator().manual_seed(0))
    for strength in (pictures.PLAIN, pictures.STRONG):
        one, same, other = (
            pictures.photographed(drawings, strength, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)
        )
        assert torch.equal(one, same)
        assert not torch.equal(one, other)
        assert one.shape == (40, 3, SIZE, SIZE)
        assert one.min() >= 0
        assert one.max() <= 1


@pytest.mark.parametrize("corruption", clothes.CORRUPTIONS, ids=lambda change: change.__name__)
def test_corruptions_change_every_picture(corruption: pictures.Change) -> None:
    taken = torch.rand(5, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    changed = corruption(taken, torch.Generator().manual_seed(1))
    assert changed.shape == taken.shape
    assert torch.equal(changed, corruption(taken, torch.Generator().manual_seed(1)))
    assert ((changed - taken).abs().amax(dim=(1, 2, 3)) > 0.1).all()


# --- emoji


def test_names_of_emoji_become_class_folders() -> None:
    assert glyphs.class_folder(glyphs.plain("A_button_(blood_type)")) == "a_button_blood_type"
    assert glyphs.class_folder(glyphs.plain("piñata")) == "pinata"
    assert glyphs._slug("", "woman\u2019s_hat") == "womans-hat"
    assert glyphs._upper_code("☂️", "umbrella") == "2602"


def test_a_missing_npm_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(DataError, match=r"no `npm`; install Node"):
        glyphs.fetch_packages(tmp_path)
    with pytest.raises(DataError, match="no `apt-get`"):
        clothes.fetch_package(tmp_path)


# --- training


@pytest.fixture(scope="module")
def tiny_shift() -> Shift:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (9, 4, 2 * SIZE, 2 * SIZE), generator=generator, dtype=torch.uint8)
    labels = torch.arange(3).repeat(3)
    ones = Source(pixels[:3], labels[:3])
    return Shift(
        name="tiny",
        folders=("bird", "cat", "red_dog"),
        pretraining=Source(pixels, labels),
        finetuning=ones,
        calibration=Source(pixels[:3], labels[:3], copies=2),
        test=Source(pixels[:3], labels[:3], copies=4),
        ood={"others": Source(pixels[3:], labels[3:], copies=2, change=clothes.inversion)},
        zeroshot=Pretraining(steps=2, batch=4, width=32, vision_layers=1, text_layers=1),
        regimes={"both": Regime(steps=2, rate=1e-2, batch=4), "image": Regime(steps=2, rate=1e-2, text=False, batch=4)},
        seeds={"both": (0, 1), "image": (0,)},
    )


@pytest.fixture(scope="module")
def prepared(tiny_shift: Shift, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[TrainedPair]]:
    folder = tmp_path_factory.mktemp("shift")
    return folder, list(prepare(tiny_shift, folder, tuple(tiny_shift.regimes)))


def test_pairs_come_first_seeds_first(prepared: tuple[Path, list[TrainedPair]]) -> None:
    assert [pair.name for pair in prepared[1]] == ["both-0", "image-0", "both-1"]


def test_a_second_run_trains_nothing_anew(tiny_shift: Shift, prepared: tuple[Path, list[TrainedPair]]) -> None:
    folder, first = prepared
    times = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    assert list(prepare(tiny_shift, folder, tuple(tiny_shift.regimes))) == first
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == times


def test_a_regime_that_is_not_there_is_refused(tiny_shift: Shift, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no regime 'mild' \(regimes: both, image\)"):
        list(prepare(tiny_shift, tmp_path, ["mild"]))


def test_a_frozen_text_tower_does_not_move(prepared: tuple[Path, list[TrainedPair]]) -> None:
    for pair in prepared[1]:
        theta_0, theta_1 = (load_file(folder / "model.safetensors") for folder in (pair.zeroshot, pair.finetuned))
        moved = {name for name in theta_0 if not torch.equal(theta_0[name], theta_1[name])}
        assert "logit_scale" not in moved
        assert any(name.startswith("vision_model") for name in moved)
        assert any(name.startswith("text_") for name in moved) == (pair.regime == "both")


def test_seeds_of_one_regime_differ(prepared: tuple[Path, list[TrainedPair]]) -> None:
    weights = [
        load_file(prepared[1][place].finetuned / "model.safetensors")["visual_projection.weight"] for place in (0, 2)
    ]
    assert not torch.equal(*weights)


def test_sources_have_the_pictures_they_say(prepared: tuple[Path, list[TrainedPair]]) -> None:
    pair = prepared[1][0]
    counts = {
        folder.name: len(list(folder.rglob("*.png"))) for folder in (pair.calibration, pair.test, pair.ood["others"])
    }
    assert counts == {"calibration": 6, "test": 12, "others": 12}
    contents = [file.read_bytes() for folder in (pair.calibration, pair.test) for file in folder.rglob("*.png")]
    assert len(set(contents)) == len(contents)
    with Image.open(next(pair.test.rglob("red_dog/*.png"))) as picture:
        assert picture.size == (SIZE, SIZE)


def test_zero_shot_training_learns(tmp_path: Path, tiny_shift: Shift) -> None:
    """Nine drawings, told apart after some steps far better than by chance."""
    source = tiny_shift.pretraining
    flat = torch.zeros_like(source.pixels)
    flat[:, 3] = 255
    flat[torch.arange(9), source.labels] = 255  # red, green and blue
    pretrain(
        Drawings(tiny_shift.classes, flat, source.labels),
        Pretraining(steps=60, batch=16, rate=3e-3, width=32, vision_layers=1, text_layers=1),
        tmp_path / "zeroshot",
    )
    pictures.write_pictures(tmp_path / "plain", tiny_shift.folders, pictures.Pictures(flat, source.labels, 10, seed=5))
    told = evaluate_sources(
        str(tmp_path / "zeroshot"), [f"plain={tmp_path / 'plain'}"], templates=("a photo of a {}.",), progress=Silent()
    )
    assert told["accuracy"]["plain"] > 0.9


# --- evaluation


def pair_of(folder: Path, images: dict[str, Path]) -> TrainedPair:
    zeroshot, finetuned = save_pair(folder, change=1.0)
    return TrainedPair(
        "aggressive", 1, zeroshot, finetuned, images["calibration"], images["test"], {"odd": images["odd"]}
    )


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainedPair, Path]:
    folder = tmp_path_factory.mktemp("evaluated")
    generator = torch.Generator().manual_seed(0)
    drawings = torch.randint(0, 256, (12, 4, 2 * SIZE, 2 * SIZE), generator=generator, dtype=torch.uint8)
    for seed, name in enumerate(("calibration", "test", "odd")):
        taken = pictures.Pictures(drawings, torch.arange(12) % 3, 2, seed)
        pictures.write_pictures(folder / name, CLASSES, taken)
    pair = pair_of(folder, {name: folder / name for name in ("calibration", "test", "odd")})
    file = folder / "results" / "aggressive-1.json"
    evaluate_pair(pair, contestants(only=("wise-ft", "lines", "monosoup")), file, SMALL)
    return pair, file


def test_the_file_holds_each_points_bits(evaluated: tuple[TrainedPair, Path]) -> None:
    record = json.loads(evaluated[1].read_text())
    for name in ("test", "odd"):
        curve = unpacked(record["correct"][name])
        assert curve.shape == (3, 12, 2)
        assert [right.mean() for right in curve] == [row["accuracy"][name] for row in record["curve"]]
        for row in record["recipes"]:
            assert unpacked(row["correct"][name]).shape == (1, 12, 2)
            assert unpacked(row["correct"][name]).mean() == row["accuracy"][name]
        # wise-ft is the curve's alpha 0.5
        assert np.array_equal(unpacked(record["recipes"][0]["correct"][name])[0], curve[1])


def test_bits_are_in_the_order_of_the_drawings(evaluated: tuple[TrainedPair, Path]) -> None:
    pair, file = evaluated
    bits = unpacked(json.loads(file.read_text())["correct"]["odd"])[2]
    for drawing in (0, 7):
        right = 0.0
        for picture in pair.ood["odd"].rglob(f"{drawing:05d}-*.png"):
            alone = file.parent / f"{drawing}-{picture.stem}"
            for name in CLASSES:
                (alone / name).mkdir(parents=True)
                shutil.copy(picture, alone / name / "only.png")
            # the same picture under every label is right once if it is any class; ask for its own label's share
            told = evaluate_sources(
                str(pair.finetuned), [str(alone)], templates=("a photo of a {}.",), batch_size=1, progress=Silent()
            )
            assert told["accuracy"][alone.name] == pytest.approx(1 / 3)
            right += _is_recognised(pair.finetuned, picture)
        assert bits[drawing].sum() == right


def _is_recognised(checkpoint: Path, picture: Path) -> bool:
    from transformers import CLIPModel, CLIPProcessor

    model, processor = CLIPModel.from_pretrained(checkpoint), CLIPProcessor.from_pretrained(checkpoint)
    texts = [f"a photo of a {name}." for name in CLASSES]
    with Image.open(picture) as opened:
        inputs = processor(text=texts, images=opened.convert("RGB"), return_tensors="pt", padding=True)
    with torch.no_grad():
        return CLASSES[int(model(**inputs).logits_per_image.argmax())] == picture.parent.name


def test_only_what_is_missing_or_changed_is_evaluated(evaluated: tuple[TrainedPair, Path], tmp_path: Path) -> None:
    pair, first = evaluated
    file = tmp_path / "again.json"
    shutil.copy(first, file)
    recipes = contestants(only=("wise-ft", "lines", "monosoup"))
    before = file.stat().st_mtime_ns
    evaluate_pair(pair, recipes, file, SMALL)
    assert file.stat().st_mtime_ns == before
    planted = json.loads(file.read_text())
    planted["recipes"][1]["verdict"] = planted["curve"][1]["id"] = "kept"
    planted["recipes"][2]["verdict"] = "not kept"
    file.write_text(json.dumps(planted))
    changed = [*recipes[:2], load_recipe("monosoup", ["method.rank=energy"]).model_copy(update={"name": "monosoup"})]
    evaluate_pair(pair, changed, file, SMALL)
    record = json.loads(file.read_text())
    assert [row["name"] for row in record["recipes"]] == ["wise-ft", "lines", "monosoup"]
    assert record["recipes"][1]["verdict"] == record["curve"][1]["id"] == "kept"
    assert record["recipes"][2]["verdict"] != "not kept"
    evaluate_pair(pair, changed, file, SMALL, again=["lines"])
    assert "kept" not in [row["verdict"] for row in json.loads(file.read_text())["recipes"]]


def test_no_folder_of_this_machine_gets_into_the_results(evaluated: tuple[TrainedPair, Path]) -> None:
    assert str(evaluated[1].parents[1]) not in evaluated[1].read_text()


def test_contestants_that_do_not_exist_are_told(tmp_path: Path) -> None:
    assert {"auto", "wise-ft", "lines", "monosoup"} <= {recipe.name for recipe in contestants()}
    (tmp_path / "list.yaml").write_text("mine: [no-such-recipe]\n")
    with pytest.raises(RecipeError, match=r"list.yaml: no recipe 'no-such-recipe' \(recipes: auto"):
        contestants(tmp_path / "list.yaml")
    with pytest.raises(RecipeError, match="no contestant 'wise'"):
        contestants(only=("wise",))


# --- standing


def record_of(correct: dict[str, Any], recipes: dict[str, int], *, curve: int = 3, **told: Any) -> dict[str, Any]:
    def part(points: list[int]) -> dict[str, Any]:
        return {name: packed(right[points].reshape(len(points), -1), right.shape[2]) for name, right in correct.items()}

    rows = [{"name": name, "correct": part([point])} for name, point in recipes.items()]
    base = {"regime": "mild", "seed": 1, "tuning": False, "id": ["test"], "ood": [n for n in correct if n != "test"]}
    return {**base, "correct": part(list(range(curve))), "recipes": rows, "curve": [{}] * curve, **told}


def bits(shares: list[float], drawings: int = 50, copies: int = 2) -> Any:
    """The first share of the drawings is recognised."""
    return np.array([[[place < share * drawings] * copies for place in range(drawings)] for share in shares])


def test_gain_and_oracle_by_hand() -> None:
    # curve: (0.4, 0.8), (0.6, 0.9), (1.0, 0.5); the recipe at ID 0.8 has OOD 0.76, the curve 0.7 there
    correct = {"test": bits([0.4, 0.6, 1.0, 0.8]), "a": bits([0.8, 0.9, 0.5, 0.7]), "b": bits([0.8, 0.9, 0.5, 0.82])}
    pair = standing.resampled(record_of(correct, {"ours": 3}), resamples=20)
    assert pair.gain("ours")[0] == pytest.approx(0.06)
    assert pair.oracle == 1
    id_, ood = pair.above_oracle("ours")
    assert (id_[0], ood[0]) == (pytest.approx(0.2), pytest.approx(-0.14))
    assert not pair.has("theirs")


def test_copies_of_a_drawing_do_not_narrow_the_interval() -> None:
    """Ten copies of each drawing that agree tell no more than one."""
    widths = []
    for copies in (1, 10):
        correct = {"test": bits([0.5, 0.5, 0.5], copies=copies), "odd": bits([0.5, 0.3, 0.2], copies=copies)}
        pair = standing.resampled(record_of(correct, {}), resamples=400)
        widths.append(np.quantile(pair.ood[1:, 0], [0.025, 0.975]))
    assert np.allclose(widths[0], widths[1])
    # as wide as a binomial's: 2 * 1.96 * sqrt(0.25 / 50) = 0.277
    assert widths[0][1] - widths[0][0] == pytest.approx(0.277, rel=0.2)


def test_pairs_share_the_drawings_that_are_drawn() -> None:
    """What two pairs have in common cancels in no difference: equal pairs average to the spread of one."""
    correct = {"test": bits([0.5, 0.5, 0.5]), "odd": bits([0.5, 0.3, 0.2])}
    values = [standing.resampled(record_of(correct, {}, seed=seed), resamples=200).ood[:, 0] for seed in (1, 2)]
    assert np.array_equal(values[0], values[1])
    assert standing.over_pairs(values) == standing.over_pairs(values[:1]).__class__(
        0.5, standing.over_pairs(values[:1]).interval, 2
    )


def test_the_interval_over_pairs_covers_their_spread() -> None:
    rng = random.Random(0)
    pairs = [np.full(401, rng.gauss(0, 1)) for _ in range(40)]
    found = standing.over_pairs(pairs)
    means = [pair[0] for pair in pairs]
    assert found.value == pytest.approx(sum(means) / 40)
    assert found.interval is not None
    error = np.std(means, ddof=1) / 40**0.5
    assert found.interval[1] - found.interval[0] == pytest.approx(2 * 1.96 * error, rel=0.25)


def test_pairs_without_a_value_are_counted_out() -> None:
    found = standing.over_pairs([np.full(11, np.nan), np.full(11, 2.0)])
    assert (found.value, found.interval, found.pairs) == (2.0, (2.0, 2.0), 1)
    assert standing.over_pairs([np.full(11, np.nan)]).value is None


# --- page


def test_the_page_is_made_from_the_files_alone(evaluated: tuple[TrainedPair, Path], tmp_path: Path) -> None:
    record = json.loads(evaluated[1].read_text())
    (tmp_path / "results" / "emoji_shift").mkdir(parents=True)
    for seed in (1, 2):
        text = json.dumps({**record, "seed": seed})
        (tmp_path / "results" / "emoji_shift" / f"aggressive-{seed}.json").write_text(text)
    (tmp_path / "docs").mkdir()
    written = report.write_page(tmp_path / "results", tmp_path / "docs")
    page = (tmp_path / "docs" / "results.md").read_text()
    assert [file.relative_to(tmp_path).as_posix() for file in written] == [
        "docs/results.md",
        "docs/results/emoji_shift-aggressive.png",
    ]
    ends = [record["curve"][0][axis] for axis in ("id", "ood")]
    assert f"| zero-shot | {100 * ends[0]:.1f} / {100 * ends[1]:.1f} |" in page
    row = record["recipes"][2]
    assert f"{100 * row['id']:.1f} / {100 * row['ood']:.1f}" in page
    with Image.open(written[1]) as picture:
        assert picture.width > 500


def test_the_shipped_page_is_what_the_shipped_files_make(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    report.write_page(docs=tmp_path / "docs")
    assert (tmp_path / "docs" / "results.md").read_text() == (report.DOCS / "results.md").read_text()


# --- the whole


@pytest.mark.slow
@pytest.mark.parametrize("name", ["emoji_shift", "fashion_shift"])
def test_the_quick_size_runs_from_nothing(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks.emoji_shift.shift import emoji_shift
    from benchmarks.fashion_shift.shift import fashion_shift

    layout = {"emoji_shift": emoji_shift, "fashion_shift": fashion_shift}[name]
    try:
        layout(tmp_path, True)
    except (DataError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"the data cannot be fetched here: {error}")
    assert command.run(name, layout, ["--quick", "--cache", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "results" / "aggressive-0.json").read_text())
    assert {row["name"] for row in record["recipes"]} == set(command._QUICK_RECIPES)
    assert str(tmp_path / "results" / "aggressive-0.json") in capsys.readouterr().out


def test_the_command_tells_errors_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks.fashion_shift.shift import fashion_shift

    arguments = ["--quick", "--cache", str(tmp_path), "--recipes", "nobody"]
    assert command.run("fashion_shift", fashion_shift, arguments) == 1
    assert capsys.readouterr().err.startswith("error: contestants.yaml has no contestant 'nobody'")


# --- claims


def test_kendall_by_counting_pairs() -> None:
    rng = random.Random(3)
    x, y, z = ([float(rng.randint(0, 6)) for _ in range(15)] for _ in range(3))

    def slow(one: list[float], two: list[float]) -> float:
        signs = [
            ((one[i] > one[j]) - (one[i] < one[j]), (two[i] > two[j]) - (two[i] < two[j]))
            for i in range(15)
            for j in range(i)
        ]
        ties = [sum(1 for pair in signs if pair[side]) for side in (0, 1)]
        return sum(a * b for a, b in signs) / (ties[0] * ties[1]) ** 0.5

    assert ranks.kendall(np.array(x), np.array(y)) == pytest.approx(slow(x, y))
    xy, xz, yz = slow(x, y), slow(x, z), slow(y, z)
    expected = (xy - xz * yz) / ((1 - xz**2) * (1 - yz**2)) ** 0.5
    assert ranks.partial_kendall(np.array(x), np.array(y), np.array(z)) == pytest.approx(expected)
    assert np.isnan(ranks.kendall(np.ones(4), np.arange(4.0)))
    assert np.isnan(ranks.partial_kendall(np.arange(4.0), np.array([1.0, 3, 2, 4]), np.arange(4.0)))


@pytest.fixture(scope="module")
def laboratory(evaluated: tuple[TrainedPair, Path]) -> Laboratory:
    return Laboratory(evaluated[0])


def test_an_edited_layer_is_evaluated_as_if_it_had_been_written(laboratory: Laboratory, tmp_path: Path) -> None:
    layer = next(name for name in laboratory.layers if name.startswith("vision") and "." in name)
    written = laboratory.altered(tmp_path / "altered", layer, 0.0)
    point = laboratory.planned({layer: {"alpha": 0.0}}, alpha=1.0)
    id_, ood = laboratory.accuracy([point], draws=2)
    named = [f"test={laboratory.trained.test}", f"odd={laboratory.trained.ood['odd']}"]
    told = evaluate_sources(str(written), named, templates=("a photo of a {}.",), progress=Silent())["accuracy"]
    assert (id_[0, 0], ood[0, 0]) == (pytest.approx(told["test"]), pytest.approx(told["odd"]))


def test_a_placebo_has_the_length_of_the_change_it_replaces(laboratory: Laboratory, tmp_path: Path) -> None:
    layer, names = list(laboratory.layers.items())[1]
    before = load_file(laboratory.trained.zeroshot / "model.safetensors")
    after = load_file(laboratory.trained.finetuned / "model.safetensors")
    for factor, length, cosine in ((4.0, 4.0, 1.0), (-1.0, 1.0, -1.0), (None, 1.0, None)):
        altered = load_file(laboratory.altered(tmp_path / "altered", layer, factor) / "model.safetensors")
        for name, weight in altered.items():
            old, new = after[name] - before[name], weight - before[name]
            if name not in names:
                assert torch.equal(weight, after[name])
            elif old.norm() > 0:
                assert (new.norm() / old.norm()).item() == pytest.approx(length, rel=1e-3)
                assert cosine is None or ((new * old).sum() / new.norm() / old.norm()).item() == pytest.approx(
                    cosine, abs=1e-3
                )


def test_matched_layers_are_others_of_nearly_the_same_length() -> None:
    names = [f"vision.{n}" for n in range(12)]
    lengths = np.arange(12.0)
    for seed in range(20):
        picked = claims._matched(names, lengths, ["vision.0", "vision.6"], np.random.default_rng(seed))
        assert len({*picked, "vision.0", "vision.6"}) == 4
        for chosen, other in zip((0, 6), picked, strict=True):
            assert abs(chosen - int(other.partition(".")[2])) <= 5


def test_claims_are_examined_once_and_written_out(
    evaluated: tuple[TrainedPair, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "DRAWS", 12)
    monkeypatch.setattr(claims, "_CALIBRATION_SEEDS", (0, 1))
    monkeypatch.setattr(claims, "_PLANTED", 1)
    monkeypatch.setattr(claims, "_BARRIER", {"name": "path-barrier", "nodes": 1, "tolerance": 1e9})
    file = tmp_path / "claims.json"
    claims.examine(evaluated[0], file, claims.PARTS)
    written = file.stat().st_mtime_ns
    claims.examine(evaluated[0], file, claims.PARTS)
    assert file.stat().st_mtime_ns == written
    found = json.loads(file.read_text())
    record = json.loads(evaluated[1].read_text())
    page = claims_page.claims_section(found, [standing.resampled({**record, "seed": seed}) for seed in (1, 2)])
    share = found["aggressive-1"]["stability"]["jaccard of top"]
    assert f"| {share:.2f} |" in page
    for title in ("Does it matter which layers", "Masks against a smaller alpha", "Are planted stragglers found"):
        assert title in page
