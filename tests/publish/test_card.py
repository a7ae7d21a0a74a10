"""The model card and published accuracies: true, repeatable, and silent about the author's
machine."""

import copy
import json
import re
import shlex
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from clipmerge.planning.provenance import SourceRecord
from huggingface_hub import ModelCard

from clipmerge.errors import UsageError
from clipmerge.hub.ids import dataset_repo
from clipmerge.output.record import PUBLISHED, MergeRecord
from clipmerge.planning.measurements import LossPath
from clipmerge.publish import card, evaluations, public
from clipmerge.report.page import card_pictures, html_page
from clipmerge.report.text import texts_of
from tests.support.command import printed
from tests.support.hub_double import FakeHub, upload
from tests.support.image_files import save_hub_parquet
from tests.support.merge_records import learned
from tests.support.merged_output import RECORD
from tests.support.tiny_clip import Folders, save_images


def model_card(record: dict[str, Any], **about: Any) -> str:
    return card.model_card(MergeRecord.model_validate(record), **about)


def public_record(record: dict[str, Any]) -> dict[str, Any]:
    return public.public_record(MergeRecord.model_validate(record)).as_json()


def test_the_card_files_the_model_where_it_belongs() -> None:
    both = RECORD | {"layers": RECORD["layers"] | {"text.0.mlp": {"alpha": 0.5}}}
    data = ModelCard(model_card(both, repo_id="acme/robust", license="mit")).data
    assert data.base_model == ["acme/base"]
    assert (data.base_model_relation, data.library_name) == ("merge", "transformers")
    assert (data.pipeline_tag, data.license) == ("zero-shot-image-classification", "mit")
    assert data.datasets == ["acme/cars"]
    assert data.tags == ["clip", "merge", "clipmerge"]
    assert data.model_name == "robust"
    assert [(r.dataset_name, r.metric_value) for r in data.eval_results] == [
        ("ImageNet-R", 0.71),
        ("cars", 0.8),
    ]


def test_the_card_says_what_was_done_and_how_to_repeat_it() -> None:
    text = model_card(RECORD, repo_id="acme/robust")
    assert "**One layer of two is a straggler; the layers go 0.25 to 0.5 of the way" in text
    assert "| vision.1.mlp | 0.25 | 0.1 | magnitude | straggler \\| top |" in text
    assert "method:\n  name: straggler-sparse\n  alpha: 0.5" in text
    assert f"clipmerge merge acme/base@{'c' * 40} cars --recipe straggler-sparse" in text
    assert "--push" not in text
    assert "--private" not in text
    assert "cd" * 32 in text
    assert "| cars | 80.00 % |" in text


def test_data_of_the_hub_is_pinned_and_local_data_is_asked_for() -> None:
    part = SourceRecord(source="acme/base@main#ema", revision="c" * 40, files={})
    assert part.pinned == f"acme/base@{'c' * 40}#ema"
    pinned = RECORD | {"calibration": RECORD["calibration"] | {"revision": "e" * 40}}
    assert f"--data hf://datasets/acme/cars@{'e' * 40}:train" in model_card(pinned, repo_id=None)
    with_equals = pinned | {"command": "clipmerge merge a b --data=hf://datasets/acme/cars:train"}
    assert f"--data=hf://datasets/acme/cars@{'e' * 40}:train" in model_card(
        with_equals, repo_id=None
    )
    local = RECORD | {"calibration": RECORD["calibration"] | {"source": "/home/me/val"}}
    assert "bring your own: cars, val." in model_card(local, repo_id=None)


def test_the_picture_is_shown_where_it_lies_beside_the_card() -> None:
    assert "(path.png)" in model_card(RECORD, repo_id=None, pictures=["path.png"])
    assert "path.png" not in model_card(RECORD, repo_id=None)
    record = MergeRecord.model_validate(learned())
    path = LossPath(alphas=(0, 0.5, 1), losses=(1.0, 1.5, 0.5))
    pictures = [card_pictures(record.model_copy(update={"path": path})) for _ in range(2)]
    assert pictures[0] == pictures[1] is not None
    short = LossPath(alphas=(0,), losses=(1.0,))
    assert card_pictures(record.model_copy(update={"path": short})) == {}
    assert card_pictures(record.model_copy(update={"path": None})) == {}


def test_an_open_clip_output_gets_open_clips_snippet() -> None:
    names = ("open_clip_model.safetensors", "open_clip_config.json")
    layers = RECORD["layers"] | {"text.0.mlp": {"alpha": 0.5}}
    record = RECORD | {"files": dict.fromkeys(names, "ab" * 32), "layers": layers}
    shown = ModelCard(model_card(record, repo_id="acme/robust"))
    assert shown.data.library_name == "open_clip"
    snippet = re.search(r"```python\n(.*?)```", shown.text, re.S)
    assert snippet is not None
    compile(snippet[1], "snippet", "exec")
    assert 'create_model_from_pretrained("hf-hub:acme/robust")' in snippet[1]


SECRET = '/home/me & you/my "secret" <runs>/it\'s'


def test_paths_with_blanks_quotes_and_ampersands_do_not_leave_it() -> None:
    command = shlex.join(
        [
            "clipmerge",
            "merge",
            f"{SECRET}/base",
            f"{SECRET}/cars",
            f"--data={SECRET}/val",
            "-o",
            SECRET,
        ]
    )
    held = RECORD | {
        "zeroshot": {"source": f"{SECRET}/base", "revision": None, "files": {}},
        "finetuned": [{"source": f"{SECRET}/cars", "revision": None, "files": {}}],
        "calibration": RECORD["calibration"] | {"source": f"{SECRET}/val"},
        "output": f"{SECRET}/out",
        "warnings": [
            f"{SECRET}/cars: odd",
            f"{SECRET}/else/where.json: odd",
            "C:\\Users\\me\\x: odd",
            "plain",
        ],
        "command": command + " --set method.token=hf_abcdefghijklmnop",
    }
    shown = public_record(held)
    for text in (json.dumps(shown), model_card(held, repo_id="acme/robust")):
        assert not any(
            word in text for word in ("secret", "home", "runs", "partner", "Users", "abcdefgh")
        )
    removed = "a note was removed because it names files on the author's machine"
    warnings = MergeRecord.model_validate(shown).warnings
    assert texts_of(warnings) == ["cars: odd", removed, "plain"]
    assert shown["command"].startswith("clipmerge merge base cars --data=val -o ")


@pytest.mark.parametrize(
    "path",
    [
        "/home/my secret/runs",
        "~/my secret/runs",
        "C:\\Users\\secret\\runs",
        "file:///secret/runs",
        "\\\\host\\secret\\runs",
        "$HOME/secret/runs",
        "%USERPROFILE%\\secret\\runs",
        "/a\nsecret/runs",
        "../secret/runs",
        "/it's secret/runs",
    ],
)
def test_no_way_to_write_a_path_leaves_it_in_any_text(path: str) -> None:
    """In the recipe, prompts, reasons and names of results, of which none is known to be a path."""
    recipe = RECORD["recipe"] | {"name": f"from {path}"}
    calibration = RECORD["calibration"] | {"templates": [f"{{}} ({path}", path]}
    layers = {
        name: layer | {"reason": f"like {path}, and {path}"}
        for name, layer in RECORD["layers"].items()
    }
    about = {"change": {"title": path, "unit": f"see:{path}"}}
    held = RECORD | {
        "recipe": recipe,
        "calibration": calibration,
        "layers": layers,
        "statistics": about,
    }
    held |= {"decision": path, "warnings": [path], "accuracy": {path: 0.5}, "images": {path: 4}}
    held |= {"sources": {path: {"source": "cars"}}}
    text = json.dumps(public_record(held)) + model_card(held, repo_id="acme/robust")
    assert "secret" not in text
    assert "runs" in text


def test_a_path_does_not_become_public_by_a_revision() -> None:
    """The record of a stranger, or of a model in the Hub's cache, may give a folder one."""
    held = {"source": "/home/my secret/base", "revision": "a" * 40, "files": {}}
    calibration = RECORD["calibration"] | {"source": "../secret/val", "revision": "a" * 40}
    command = "clipmerge merge '/home/my secret/base' x --data ../secret/val -o y"
    record = RECORD | {
        "zeroshot": held,
        "finetuned": [held],
        "calibration": calibration,
        "command": command,
    }
    assert "secret" not in json.dumps(public_record(record)) + model_card(
        record, repo_id="acme/robust"
    )


def test_names_from_strangers_are_text_in_the_card() -> None:
    evil = "<img src=x onerror=alert(1)>|`a`[b](javascript:c)"
    layer = RECORD["layers"]["vision.0.attn"] | {"reason": evil}
    held = RECORD | {"layers": {"vision.0.attn": layer}, "decision": evil, "warnings": [evil]}
    text = model_card(held | {"accuracy": {evil: 0.5}}, repo_id="acme/robust")
    body = text.partition("# robust")[2]
    assert "<img" not in body
    assert not re.search(r"(?<!\\)\]\(javascript", body)
    assert r"&lt;img src=x onerror=alert(1)&gt;\|\`a\`\[b\](javascript:c)" in body


def test_a_recipe_cannot_leave_its_block_of_code() -> None:
    recipe = RECORD["recipe"] | {"name": "x\n```\n<script>"}
    text = model_card(RECORD | {"recipe": recipe}, repo_id="acme/robust")
    assert re.search(r"^````yaml\n(.*\n)*?````$", text, re.MULTILINE)


def test_a_command_that_no_shell_reads_names_nothing() -> None:
    """The record of a merge by the API holds any text."""
    broken = RECORD | {"command": "clipmerge merge '/home/me/base tuned"}
    assert "/home/me" not in model_card(public_record(broken), repo_id="acme/robust")
    assert public_record(broken)["command"] == ""


@pytest.mark.parametrize("word", ["1", "a_", "a/", "\\", "<b>"])
def test_a_text_of_100_000_characters_takes_seconds_at_most(word: str) -> None:
    text = (word * 100_000)[:100_000]
    record = MergeRecord.model_validate(RECORD | {"warnings": [text], "decision": text})
    begin = time.process_time()
    card.model_card(record, repo_id=None)
    html_page(record)
    assert time.process_time() - begin < 20  # a quarter of a second on an idle core


WEIGHTS = {"model.safetensors": "ab" * 32}


def add_results(record: dict[str, Any], files: list[Path]) -> dict[str, Any]:
    return evaluations.add_results(MergeRecord.model_validate(record), files).as_json()


def test_evaluate_then_push_puts_accuracies_on_the_hub(
    hub: FakeHub, pair: Folders, images: Path, tmp_path: Path
) -> None:
    content = save_hub_parquet(tmp_path / "x.parquet", [0, 1, 2] * 4).read_bytes()
    sha = upload(hub, "acme/cars", {"data/test-00000-of-00001.parquet": content}, kind="dataset")
    out = tmp_path / "out"
    printed("merge", *pair, "-r", "wise-ft", "-o", out)
    far = "hf://datasets/acme/cars:test"
    told = printed("evaluate", out, "--data", f"Cars far={far}", "--data", f"val={images}")
    (tmp_path / "e.json").write_text(json.dumps(told))
    (out / "report.html").unlink()
    printed("push", out, "alice/robust", "--evaluation", tmp_path / "e.json")
    assert "report.html" not in hub.files("alice/robust")
    card = ModelCard(hub.content("alice/robust", "README.md").decode())
    results = {result.dataset_name: result for result in card.data.eval_results}
    assert {name: result.metric_value for name, result in results.items()} == told["accuracy"]
    assert (results["Cars far"].dataset_type, results["Cars far"].dataset_revision) == (
        "acme/cars",
        sha,
    )
    assert results["Cars far"].dataset_split == "test"
    assert card.data.datasets == ["acme/cars"]
    assert f"| Cars far | {100 * told['accuracy']['Cars far']:.2f} % | 12 |" in card.text
    (entry,) = yaml.safe_load(hub.content("alice/robust", ".eval_results/cars-far.yaml"))
    assert entry["dataset"] == {"id": "acme/cars", "task_id": "default", "revision": sha}
    assert entry["value"] == told["accuracy"]["Cars far"]
    assert entry["date"] == told["sources"]["Cars far"]["date"]
    assert entry["source"]["url"] == "https://huggingface.co/alice/robust"
    assert sorted(file for file in hub.files("alice/robust") if file[:2] == ".e") == [
        ".eval_results/cars-far.yaml"
    ]
    record = json.loads(hub.content("alice/robust", "clipmerge.json"))
    assert record["accuracy"] == told["accuracy"]
    assert str(images) not in json.dumps(record)
    again = printed("push", out, "alice/robust")
    assert not again["changed"]
    assert len(hub.requests("POST", "/models/alice/robust/commit/")) == 1


def test_a_sweeps_point_is_found_by_its_recipe(pair: Folders, images: Path, tmp_path: Path) -> None:
    far = save_images(tmp_path / "far", each=4, seed=9)
    flags = (
        "--id",
        f"val={images}",
        "--ood",
        f"far={far}",
        "--alphas",
        "0,1",
        "-r",
        "wise-ft",
        "-r",
        "lines",
    )
    swept = printed("sweep", *pair, *flags, "--seed", "3", "-o", tmp_path / "sweep")
    record = printed("merge", *pair, "-r", "lines", "--seed", "3", "-o", tmp_path / "out")
    assert set(record) == set(MergeRecord.model_fields) - set(PUBLISHED)
    told = add_results(record, [tmp_path / "sweep" / "sweep.json"])
    assert told["accuracy"] == swept["recipes"][1]["accuracy"]
    assert told["images"] == {"val": 30, "far": 12}
    (tmp_path / "new.json").write_text(json.dumps(swept | {"format": "clipmerge-sweep/4"}))
    with pytest.raises(
        UsageError, match=r"'clipmerge-sweep/4', but this version .* 'clipmerge-sweep/3'; update"
    ):
        add_results(record, [tmp_path / "new.json"])
    others = [
        record | {"seed": 4},
        record | {"recipe": record["recipe"] | {"method": {"name": "lines", "alpha": 0.1}}},
        record | {"calibration": RECORD["calibration"] | {"images": 9}},
        record | {"finetuned": [record["finetuned"][0] | {"files": WEIGHTS}]},
    ]
    for other in others:
        with pytest.raises(
            UsageError, match=r"holds no point of this merge \(recipes: wise-ft, lines\)"
        ):
            add_results(other, [tmp_path / "sweep" / "sweep.json"])


BAD: dict[str, tuple[str, str]] = {
    "not there": ("", "cannot be read as JSON"),
    "a list": ("[]", "is not a JSON object"),
    "another": (
        '{"accuracy": 1}',
        r"not written by `clipmerge evaluate --json` or `sweep` \(it has no 'checkpoint'\)",
    ),
    "no checkpoint": (
        '{"checkpoint": 1, "accuracy": {}}',
        r"not written by .* \('int' object is not subscriptable\)",
    ),
    "half of a pair": (
        r'{"accuracy": {"\ud800": 1}}',
        r"cannot be read as JSON \(a string with half of a surrogate",
    ),
    "other weights": (
        json.dumps(
            {
                "checkpoint": {"source": "x", "files": {"model.safetensors": "cd" * 32}},
                "accuracy": {},
            }
        ),
        r"measured x, whose weights are not these \(model\.safetensors differs\)",
    ),
}


@pytest.mark.parametrize("how", BAD)
def test_evaluations_that_are_not_of_this_model(tmp_path: Path, how: str) -> None:
    text, message = BAD[how]
    file = tmp_path / "e.json"
    if text:
        file.write_text(text)
    record = copy.deepcopy(RECORD) | {"files": WEIGHTS}
    with pytest.raises(UsageError, match=f"`evaluations` .*e.json: {message}"):
        add_results(record, [file])


def test_what_is_no_data_set_of_the_hub_has_no_id() -> None:
    assert dataset_repo("hf://datasets/acme") is None
    assert dataset_repo("hf://datasets/acme/cars@v1:test") == "acme/cars"
