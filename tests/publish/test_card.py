"""The model card: true, repeatable, and silent about the author's machine."""

from __future__ import annotations

import copy
import json
import re
import shlex
import time
from typing import Any

import pytest
from huggingface_hub import ModelCard

from clipmerge.output.record import MergeRecord
from clipmerge.planning.measurements import LossPath
from clipmerge.publish import card, public
from clipmerge.publish.evaluations import hub_dataset_of
from clipmerge.report.merge_pictures import path_png
from clipmerge.report.page import html_page
from tests.support.merged_output import RECORD


def model_card(record: dict[str, Any], **about: Any) -> str:
    return card.model_card(MergeRecord.model_validate(record), **about)


def public_record(record: dict[str, Any]) -> dict[str, Any]:
    return public.public_record(MergeRecord.model_validate(record)).as_json()


def test_the_card_files_the_model_where_it_belongs() -> None:
    data = ModelCard(model_card(RECORD, repo_id="acme/robust", license="mit", datasets=["acme/extra"])).data
    assert data.base_model == ["acme/base"]
    assert (data.base_model_relation, data.library_name) == ("merge", "transformers")
    assert (data.pipeline_tag, data.license) == ("zero-shot-image-classification", "mit")
    assert data.datasets == ["acme/extra", "acme/cars"]
    assert data.tags == ["clip", "merge", "clipmerge"]
    assert data.model_name == "robust"
    assert [(r.dataset_name, r.metric_value) for r in data.eval_results] == [("ImageNet-R", 0.71), ("cars", 0.8)]


def test_both_base_models_and_none() -> None:
    tuned = {"source": "hf://acme/tuned@v1", "revision": "d" * 40, "files": {}}
    both = ModelCard(model_card(RECORD | {"finetuned": [tuned]}, repo_id=None)).data
    assert both.base_model == ["acme/base", "acme/tuned"]
    local = {"source": "base", "revision": None, "files": {}}
    none = ModelCard(model_card(RECORD | {"zeroshot": local}, repo_id=None)).data
    assert (none.base_model, none.license) == (None, None)


def test_the_card_says_what_was_done_and_how_to_repeat_it() -> None:
    text = model_card(RECORD, repo_id="acme/robust")
    assert "**One layer of two is a straggler.**" in text
    assert "| vision.1.mlp | 0.25 | 0.1 | magnitude | straggler \\| top |" in text
    assert "method:\n  name: straggler-sparse\n  alpha: 0.5" in text
    assert f"clipmerge merge acme/base@{'c' * 40} cars --recipe straggler-sparse" in text
    assert "--push" not in text
    assert "--private" not in text
    assert "cd" * 32 in text
    assert "| cars | 80.00 % |" in text


def test_data_of_the_hub_is_pinned_and_local_data_is_asked_for() -> None:
    pinned = RECORD | {"calibration": RECORD["calibration"] | {"revision": "e" * 40}}
    assert f"--data hf://datasets/acme/cars@{'e' * 40}:train" in model_card(pinned, repo_id=None)
    with_equals = pinned | {"command": "clipmerge merge a b --data=hf://datasets/acme/cars:train"}
    assert f"--data=hf://datasets/acme/cars@{'e' * 40}:train" in model_card(with_equals, repo_id=None)
    local = RECORD | {"calibration": RECORD["calibration"] | {"source": "/home/me/val"}}
    assert "bring your own: cars, val." in model_card(local, repo_id=None)


def test_the_picture_is_shown_where_it_lies_beside_the_card() -> None:
    assert "(path.png)" in model_card(RECORD, repo_id=None, picture=True)
    assert "path.png" not in model_card(RECORD, repo_id=None)
    path = LossPath(alphas=(0, 0.5, 1), losses=(1.0, 1.5, 0.5))
    assert path_png(path) == path_png(path.model_copy())
    assert path_png(LossPath(alphas=(0,), losses=(1.0,))) is None
    assert path_png(None) is None


def test_a_record_with_the_needed_keys_alone_and_one_of_another_run() -> None:
    other = copy.deepcopy(RECORD) | {"seconds": {"read": 9.0}, "output": "elsewhere"}
    assert model_card(RECORD, repo_id=None) == model_card(other, repo_id=None)
    needed = {key: RECORD[key] for key in ("layers", "recipe", "zeroshot", "finetuned")}
    shown = ModelCard(model_card(needed, repo_id=None))
    assert shown.data.eval_results is None
    assert "clipmerge merge acme/base@" in shown.text


def test_an_open_clip_output_gets_open_clips_snippet() -> None:
    record = RECORD | {"files": {"open_clip_model.safetensors": "ab" * 32}}
    shown = ModelCard(model_card(record, repo_id="acme/robust"))
    assert shown.data.library_name == "open_clip"
    snippet = re.search(r"```python\n(.*?)```", shown.text, re.S)
    assert snippet is not None
    compile(snippet[1], "snippet", "exec")
    assert 'create_model_from_pretrained("hf-hub:acme/robust")' in snippet[1]


SECRET = '/home/me & you/my "secret" <runs>/it\'s'


def test_paths_with_blanks_quotes_and_ampersands_do_not_leave_it() -> None:
    command = shlex.join(
        ["clipmerge", "merge", f"{SECRET}/base", f"{SECRET}/cars", f"--data={SECRET}/val", "-o", SECRET]
    )
    held = RECORD | {
        "zeroshot": {"source": f"{SECRET}/base", "revision": None, "files": {}},
        "finetuned": [{"source": f"{SECRET}/cars", "revision": None, "files": {}}],
        "calibration": RECORD["calibration"] | {"source": f"{SECRET}/val"},
        "output": f"{SECRET}/out",
        "warnings": [f"{SECRET}/cars: odd", f"{SECRET}/else/where.json: odd", "C:\\Users\\me\\x: odd", "plain"],
        "command": command + " --set method.token=hf_abcdefghijklmnop",
    }
    shown = public_record(held)
    for text in (json.dumps(shown), model_card(held, repo_id="acme/robust")):
        assert not any(word in text for word in ("secret", "home", "runs", "partner", "Users", "abcdefgh"))
    assert shown["warnings"] == [
        "cars: odd",
        "a note was removed because it names files on the author's machine",
        "plain",
    ]
    assert shown["command"].startswith("clipmerge merge base cars --data=val -o ")


def test_paths_and_tokens_that_no_field_names_do_not_leave_it() -> None:
    """In a text of the record, where nothing tells which of its words is a path."""
    layer = RECORD["layers"]["vision.0.attn"] | {"reason": "as in /srv/secret/runs/7, by hf_abcdefghijklmnop"}
    held = RECORD | {"verdict": "better than ~/secret/old", "layers": RECORD["layers"] | {"vision.0.attn": layer}}
    shown = public_record(held)
    assert shown["verdict"] == "better than old"
    assert shown["layers"]["vision.0.attn"]["reason"] == "as in 7, by hf_..."
    assert "secret" not in model_card(held, repo_id="acme/robust")


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/home/my secret/runs",
            "~/my secret/runs",
            "C:\\Users\\secret\\runs",
            "file:///secret/runs",
            "../secret/runs",
        ),
        *("\\\\host\\secret\\runs", "$HOME/secret/runs", "%USERPROFILE%\\secret\\runs", "/a\nsecret/runs"),
        "/it's secret/runs",
    ],
)
def test_no_way_to_write_a_path_leaves_it_in_any_text(path: str) -> None:
    """In the recipe, prompts, reasons and names of results, of which none is known to be a path."""
    recipe = RECORD["recipe"] | {"name": f"from {path}"}
    calibration = RECORD["calibration"] | {"templates": [f"{{}} ({path}", path]}
    layers = {name: layer | {"reason": f"like {path}, and {path}"} for name, layer in RECORD["layers"].items()}
    about = {"change": {"title": path, "unit": f"see:{path}"}}
    held = RECORD | {"recipe": recipe, "calibration": calibration, "layers": layers, "statistics": about}
    held |= {
        "verdict": path,
        "accuracy": {path: 0.5},
        "sources": {path: {"source": "cars"}},
        "images": {path: 4},
        "warnings": [path],
    }
    text = json.dumps(public_record(held)) + model_card(held, repo_id="acme/robust")
    assert "secret" not in text
    assert "runs" in text


def test_a_path_does_not_become_public_by_a_revision() -> None:
    """The record of a stranger, or of a model in the Hub's cache, may give a folder one."""
    held = {"source": "/home/my secret/base", "revision": "a" * 40, "files": {}}
    calibration = RECORD["calibration"] | {"source": "../secret/val", "revision": "a" * 40}
    command = "clipmerge merge '/home/my secret/base' x --data ../secret/val -o y"
    record = RECORD | {"zeroshot": held, "finetuned": [held], "calibration": calibration, "command": command}
    assert "secret" not in json.dumps(public_record(record)) + model_card(record, repo_id="acme/robust")


def test_names_from_strangers_are_text_in_the_card() -> None:
    evil = "<img src=x onerror=alert(1)>|`a`[b](javascript:c)"
    layer = RECORD["layers"]["vision.0.attn"] | {"reason": evil}
    held = RECORD | {"layers": {"vision.0.attn": layer}, "verdict": evil, "warnings": [evil]}
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


def test_without_a_command_the_card_words_one_that_a_shell_reads() -> None:
    recipe = RECORD["recipe"] | {"name": "what's mine"}
    text = model_card(RECORD | {"command": "", "recipe": recipe}, repo_id="acme/robust")
    (line,) = [line for line in text.splitlines() if line.startswith("clipmerge merge ")]
    assert shlex.split(line)[-4:] == ["--recipe", "what's mine", "--output", "merged"]


@pytest.mark.parametrize("source", ["hf://datasets/acme", "hf://datasets/a/b/c/d:x", "hf://models/a/b", "", None])
def test_what_is_no_data_set_of_the_hub_has_no_id(source: str | None) -> None:
    assert hub_dataset_of(source) is None
    assert hub_dataset_of("hf://datasets/acme/cars@v1:test") == "acme/cars"


@pytest.mark.parametrize("word", ["a", "1", "a.", "a_", "-", "a/", "\\", "~", "a, ", "<b>"])
def test_a_text_of_100_000_characters_takes_no_second(word: str) -> None:
    text = (word * 100_000)[:100_000]
    record = MergeRecord.model_validate(RECORD | {"warnings": [text], "verdict": text})
    begin = time.process_time()
    card.model_card(record, repo_id=None)
    html_page(record)
    assert time.process_time() - begin < 1
