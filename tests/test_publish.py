"""Publishing: one commit or none, a card that tells the truth, and every fault said in one line."""

from __future__ import annotations

import copy
import hashlib
import json
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, ModelCard, constants
from transformers import CLIPModel

from clipmerge import hub as hub_module
from clipmerge.card import model_card, public_record
from clipmerge.errors import ClipmergeError, HubError, OutputError, UsageError
from clipmerge.hub import HubId, fetch
from clipmerge.publish import Published, push
from tests.hub_double import FakeHub, environment, serving, upload

RECORD: dict[str, Any] = {
    "clipmerge": "0.1.0",
    "output": "/home/me/out/merged",
    "recipe": {
        "name": "straggler-sparse",
        "measure": {"name": "path-barrier", "nodes": 3},
        "method": {"name": "straggler-sparse", "alpha": 0.5},
        "overrides": [],
        "missing": None,
    },
    "zeroshot": {"source": "acme/base", "revision": "c" * 40, "files": {"model.safetensors": "cd" * 32}},
    "finetuned": {"source": "/home/me/models/cars", "revision": None, "files": {"model.safetensors": "ef" * 32}},
    "layers": {
        "vision.0.attn": {"alpha": 0.5, "density": 1.0, "mask": None, "reason": "keeps its place"},
        "vision.1.mlp": {"alpha": 0.25, "density": 0.1, "mask": "magnitude", "reason": "straggler | top"},
    },
    "stragglers": ["vision.1.mlp"],
    "verdict": "One layer of two is a straggler.",
    "path": {"alphas": [0, 0.5, 1], "losses": [1.0, 1.5, 0.5]},
    "calibration": {
        "source": "hf://datasets/acme/cars:train",
        "images": 1024,
        "classes": ["a", "b"],
        "batch_size": 32,
        "seed": 0,
    },
    "command": "clipmerge merge acme/base /home/me/models/cars --recipe straggler-sparse "
    "--data hf://datasets/acme/cars:train --output /home/me/out/merged --push acme/robust --private",
    "warnings": ["/home/me/models/cars: an odd tensor"],
    "seconds": {"read": 1.0},
    "accuracy": {"ImageNet-R": 0.71, "cars": 0.8},
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    monkeypatch.setattr(hub_module, "_WAITS", (0.0, 0.0))
    with serving(tmp_path, monkeypatch) as server:
        yield server


@pytest.fixture
def merged(pair: tuple[Path, Path], tmp_path: Path) -> Path:
    """A whole output, made from local checkpoints: publishing it asks for no licences."""
    folder = tmp_path / "merged"
    shutil.copytree(pair[1], folder)
    record = copy.deepcopy(RECORD)
    record["zeroshot"] = {"source": "/home/me/models/base", "revision": None, "files": {}}
    record["files"] = {"model.safetensors": hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()}
    (folder / "clipmerge.json").write_text(json.dumps(record))
    (folder / "README.md").write_text(model_card(record, repo_id=None))
    (folder / "report.html").write_text("<p>/home/me/models/base</p>")
    return folder


def from_hub(merged: Path, *shas: tuple[str, str]) -> None:
    """Say that the output was merged from these (id, sha) on the Hub."""
    path = merged / "clipmerge.json"
    record = json.loads(path.read_text())
    base, *rest = [{"source": source, "revision": sha, "files": {}} for source, sha in shas]
    path.write_text(json.dumps(record | {"zeroshot": base, "finetuned": rest}))


def commits(hub: FakeHub) -> int:
    return len([entry for entry in hub.requests("POST", "/commit/") if entry[2] == 200])


# The card


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
    tuned = {"source": "hf://acme/tuned@v1", "revision": "d" * 40}
    both = ModelCard(model_card(RECORD | {"finetuned": [tuned]}, repo_id=None)).data
    assert both.base_model == ["acme/base", "acme/tuned"]
    local = {"source": "base", "revision": None}
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


def test_no_folder_of_the_authors_machine_leaves_it() -> None:
    assert "/home" not in model_card(RECORD, repo_id=None)
    assert "/home" not in json.dumps(public_record(RECORD))
    relative = RECORD | {"finetuned": {"source": "../secret/cars", "revision": None}, "command": "x ../secret/cars"}
    assert "secret" not in json.dumps(public_record(relative))
    assert RECORD["finetuned"]["source"] == "/home/me/models/cars"


def test_the_same_record_gives_the_same_card() -> None:
    other = copy.deepcopy(RECORD) | {"seconds": {"read": 9.0}, "output": "elsewhere"}
    assert model_card(RECORD, repo_id=None) == model_card(other, repo_id=None)


def test_a_record_with_the_needed_keys_alone() -> None:
    needed = {key: RECORD[key] for key in ("layers", "recipe", "zeroshot", "finetuned")}
    card = ModelCard(model_card(needed, repo_id=None))
    assert card.data.eval_results is None
    assert "clipmerge merge acme/base@" in card.text


def test_the_cards_snippet_runs(merged: Path) -> None:
    snippet = re.search(r"```python\n(.*?)```", (merged / "README.md").read_text(), re.S)
    assert snippet is not None
    run = subprocess.run(
        [sys.executable, "-c", snippet[1]], cwd=merged, capture_output=True, text=True, check=False, timeout=120
    )
    assert run.returncode == 0, run.stderr
    assert "a photo of a cat" in run.stdout


def test_an_open_clip_output_gets_open_clips_snippet() -> None:
    record = RECORD | {"files": {"open_clip_model.safetensors": "ab" * 32}}
    card = ModelCard(model_card(record, repo_id="acme/robust"))
    assert card.data.library_name == "open_clip"
    snippet = re.search(r"```python\n(.*?)```", card.text, re.S)
    assert snippet is not None
    compile(snippet[1], "snippet", "exec")
    assert 'create_model_from_pretrained("hf-hub:acme/robust")' in snippet[1]


# Publishing


def test_a_push_makes_one_commit_and_the_model_loads(hub: FakeHub, merged: Path) -> None:
    before = {path.name: path.read_bytes() for path in merged.iterdir()}
    done = push(merged, "alice/robust", license="mit", endpoint=hub.url)
    head = hub.repos["model", "alice/robust"].refs["refs/heads/main"]
    assert done == Published(f"{hub.url}/alice/robust", "alice/robust", head, created=True, changed=True)
    assert commits(hub) == 1
    assert set(hub.files("alice/robust")) == {".gitattributes", *before}
    assert {path.name: path.read_bytes() for path in merged.iterdir()} == before
    card = ModelCard(hub.content("alice/robust", "README.md").decode())
    assert 'from_pretrained("alice/robust")' in card.text
    assert card.data.license == "mit"
    folder = fetch(HubId("alice/robust").at(head), endpoint=hub.url).folder
    _, loading = CLIPModel.from_pretrained(folder, output_loading_info=True)
    assert not any(loading.values())


def test_nothing_published_names_a_local_folder(hub: FakeHub, merged: Path) -> None:
    push(merged, "alice/robust", endpoint=hub.url)
    for name in ("clipmerge.json", "README.md", "report.html"):
        assert b"/home" not in hub.content("alice/robust", name)
    assert b"<p>base</p>" in hub.content("alice/robust", "report.html")


def test_a_second_push_of_the_same_folder_changes_nothing(hub: FakeHub, merged: Path) -> None:
    first = push(merged, "alice/robust", endpoint=hub.url)
    second = push(merged, "alice/robust", endpoint=hub.url)
    assert (second.changed, second.created, second.commit) == (False, False, first.commit)
    assert commits(hub) == 1


def test_a_changed_folder_replaces_stale_weights_in_one_commit(hub: FakeHub, merged: Path) -> None:
    push(merged, "alice/robust", endpoint=hub.url)
    shard = "model-00001-of-00001.safetensors"
    (merged / "model.safetensors").rename(merged / shard)
    weight_map = {"weight_map": {"logit_scale": shard}}
    (merged / "model.safetensors.index.json").write_text(json.dumps(weight_map))
    record = json.loads((merged / "clipmerge.json").read_text())
    record["files"] = {shard: record["files"]["model.safetensors"]}
    (merged / "clipmerge.json").write_text(json.dumps(record))
    assert push(merged, "alice/robust", endpoint=hub.url).changed
    assert "model.safetensors" not in hub.files("alice/robust")
    assert shard in hub.files("alice/robust")
    assert commits(hub) == 2


def test_private_is_private(hub: FakeHub, merged: Path) -> None:
    push(merged, "alice/robust", private=True, endpoint=hub.url)
    assert hub.repos["model", "alice/robust"].private
    push(merged, "alice/open", endpoint=hub.url)
    with pytest.raises(UsageError, match="exists and is public: --private cannot hide it. Nothing was pub"):
        push(merged, "alice/open", private=True, endpoint=hub.url)


def test_a_branch_is_made_when_it_is_missing(hub: FakeHub, merged: Path) -> None:
    done = push(merged, "alice/robust", revision="half", message="Half way", endpoint=hub.url)
    assert done.url == f"{hub.url}/alice/robust/tree/half"
    assert "model.safetensors" not in hub.files("alice/robust")
    assert "model.safetensors" in hub.files("alice/robust", "half")
    assert hub.repos["model", "alice/robust"].commits[done.commit].title == "Half way"
    assert not push(merged, "alice/robust", revision="half", endpoint=hub.url).changed


def test_a_pull_request_to_somebody_elses_model(hub: FakeHub, merged: Path) -> None:
    with pytest.raises(HubError, match="no pull request can be opened. Nothing was published"):
        push(merged, "bob/robust", create_pr=True, endpoint=hub.url)
    hub.orgs = ("acme", "bob")
    push(merged, "bob/robust", endpoint=hub.url)
    hub.orgs = ("acme",)
    (merged / "notes.txt").write_text("new")
    done = push(merged, "bob/robust", create_pr=True, endpoint=hub.url)
    assert done.pull_request == f"{hub.url}/bob/robust/discussions/1"
    assert "notes.txt" not in hub.files("bob/robust")
    assert "notes.txt" in hub.files("bob/robust", "refs/pr/1")


def test_other_content_is_left_alone_unless_told(hub: FakeHub, merged: Path) -> None:
    upload(hub, "alice/blog", {"README.md": b"---\nlicense: mit\n---\n", "post.md": b"hello"})
    with pytest.raises(UsageError, match=r"holds something else \(post.md\). Nothing was published.*--yes"):
        push(merged, "alice/blog", endpoint=hub.url)
    assert push(merged, "alice/blog", yes=True, endpoint=hub.url).changed
    assert hub.content("alice/blog", "post.md") == b"hello"


@pytest.mark.parametrize(
    ("base", "tuned", "expected"),
    [("mit", "mit", "mit"), ("mit", "apache-2.0", None), ("mit", None, None), ("other", "other", None)],
)
def test_the_licence_comes_from_the_sources(
    hub: FakeHub, merged: Path, base: str, tuned: str | None, expected: str | None
) -> None:
    shas = []
    for name, licence in (("acme/base", base), ("acme/tuned", tuned)):
        front = f"license: {licence}" if licence else "tags: [clip]"
        shas.append((name, upload(hub, name, {"README.md": f"---\n{front}\n---\n".encode()})))
    from_hub(merged, *shas)
    if expected is None:
        told = rf"acme/base: {base}, acme/tuned: {tuned or 'none stated'}\). Nothing was published. Pass --license"
        with pytest.raises(UsageError, match=told):
            push(merged, "alice/robust", endpoint=hub.url)
        assert ("model", "alice/robust") not in hub.repos
        expected = "cc-by-4.0"
        push(merged, "alice/robust", license=expected, endpoint=hub.url)
    else:
        push(merged, "alice/robust", endpoint=hub.url)
    card = ModelCard(hub.content("alice/robust", "README.md").decode())
    assert (card.data.license, card.data.base_model) == (expected, ["acme/base", "acme/tuned"])


def test_a_source_that_is_gone_can_be_done_without(hub: FakeHub, merged: Path) -> None:
    from_hub(merged, ("acme/gone", "a" * 40))
    with pytest.raises(HubError, match=r"reading acme/gone@.*--license NAME does without asking"):
        push(merged, "alice/robust", endpoint=hub.url)
    assert push(merged, "alice/robust", license="mit", endpoint=hub.url).changed


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: shutil.rmtree(folder), "no such folder"),
        (lambda folder: (folder / "clipmerge.json").unlink(), "no clipmerge.json in it"),
        (lambda folder: (folder / "clipmerge.json").write_text("{"), "not a clipmerge record"),
        (lambda folder: (folder / "clipmerge.json").write_text("[]"), "not a clipmerge record"),
        (lambda folder: (folder / "model.safetensors").unlink(), r"model\.safetensors missing"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x"), "changed since the merge"),
    ],
)
def test_a_folder_that_is_no_whole_output(hub: FakeHub, merged: Path, spoil: Any, message: str) -> None:
    spoil(merged)
    with pytest.raises(OutputError, match=message):
        push(merged, "alice/robust", endpoint=hub.url)
    assert not hub.repos


@pytest.mark.parametrize("name", ["robust", "alice/robust@v1", "hf://alice/robust", "a/b/c", "alice/ro bust"])
def test_a_name_that_is_none(merged: Path, name: str) -> None:
    with pytest.raises(UsageError, match="not a name on the Hub"):
        push(merged, name, endpoint="http://127.0.0.1:9")


# Faults


def test_no_token(hub: FakeHub, merged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    told = r"push to alice/robust: no token. Nothing was published.*`clipmerge push .*merged alice/robust`"
    with pytest.raises(HubError, match=told):
        push(merged, "alice/robust", endpoint=hub.url)


@pytest.mark.parametrize(
    ("token", "repo_id", "message"),
    [
        ("hf_read", "alice/robust", "the token may only read. Nothing was published"),
        ("hf_wrong", "alice/robust", "no token, or one that is not valid .*Nothing was published"),
        ("hf_test", "openai/robust", "may write to alice, acme, not to openai.*Push to alice/robust"),
    ],
)
def test_a_token_without_the_right(
    hub: FakeHub, merged: Path, monkeypatch: pytest.MonkeyPatch, token: str, repo_id: str, message: str
) -> None:
    hub.read_only_tokens.add("hf_read")
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(HubError, match=message) as caught:
        push(merged, repo_id, endpoint=hub.url)
    assert token not in str(caught.value)
    assert not hub.requests("POST", "/api/repos/create")


NEW, OLD = "was created and is empty: no file was published", "Nothing was published"
WHERE = {
    "whoami": ("GET", "/api/whoami-v2"),
    "create": ("POST", "/api/repos/create"),
    "info": ("GET", "/api/models/alice/robust$"),
    "tree": ("GET", "/tree/"),
    "yaml": ("POST", "/api/validate-yaml"),
    "preupload": ("POST", "/preupload/"),
    "batch": ("POST", "/objects/batch"),
    "put": ("PUT", "/_lfs/"),
    "verify": ("POST", "/_lfs/verify"),
    "commit": ("POST", "/commit/"),
}
LASTING: list[tuple[str, dict[str, Any], str]] = [
    ("whoami", {"status": 401}, f"not valid.*{OLD}"),
    ("whoami", {"status": 503}, f"the Hub failed .HTTP 503.*{OLD}"),
    ("whoami", {"cut_after": 0}, f"the connection broke.*{OLD}"),
    ("info", {"status": 401}, f"not valid|a private one.*{OLD}"),
    ("info", {"status": 403}, f"no right.*{OLD}"),
    ("info", {"status": 500}, f"the Hub failed .HTTP 500.*{OLD}"),
    ("info", {"status": 429}, f"too many requests.*{OLD}"),
    ("create", {"status": 401}, f"not valid.*{OLD}. If the repository was created, it is empty"),
    ("create", {"status": 403}, f"no right.*{OLD}"),
    ("create", {"status": 400}, f"the Hub refused .HTTP 400.*{OLD}"),
    ("create", {"status": 500}, f"the Hub failed.*{OLD}"),
    ("create", {"cut_after": 10}, f"the connection broke.*{OLD}"),
    ("create", {"status": 0, "delay": 1.0}, f"no answer in time.*{OLD}"),
    ("tree", {"status": 503}, f"the Hub failed.*{NEW}"),
    ("yaml", {"status": 400, "body": {"errors": [{"message": "bad"}]}}, f"Invalid metadata in README.*{NEW}"),
    ("yaml", {"status": 500}, f"the Hub failed.*{NEW}"),
    ("preupload", {"status": 401}, f"not valid.*{NEW}"),
    ("preupload", {"status": 403}, f"no right.*{NEW}"),
    ("preupload", {"status": 500}, f"the Hub failed.*{NEW}"),
    ("preupload", {"status": 404, "headers": {"X-Error-Code": "RepoNotFound"}}, f"no such model.*{NEW}"),
    ("batch", {"status": 502}, f"the Hub failed.*{NEW}"),
    ("batch", {"status": 0, "delay": 1.0}, f"no answer in time.*{NEW}"),
    ("put", {"status": 403}, f"no right.*{NEW}"),
    ("put", {"status": 500}, f"the Hub failed.*{NEW}"),
    ("put", {"cut_after": 1000}, f"the connection broke.*{NEW}"),
    ("put", {"status": 0, "delay": 1.0}, f"no answer in time.*{NEW}"),
    ("verify", {"status": 404}, f"does not know it.*{NEW}"),
    ("commit", {"status": 401}, f"not valid.*{NEW}"),
    ("commit", {"status": 403}, f"no right.*{NEW}"),
    ("commit", {"status": 409}, f"the name is taken.*{NEW}"),
    ("commit", {"status": 412}, f"somebody else committed meanwhile.*{NEW}"),
    ("commit", {"status": 413, "body": "<html>"}, f"the Hub refused .HTTP 413.*{NEW}"),
    ("commit", {"status": 500}, f"the Hub failed .HTTP 500.*{NEW}"),
    ("commit", {"status": 504}, f"the Hub failed .HTTP 504.*{NEW}"),
    ("commit", {"cut_after": 100}, f"the connection broke.*{NEW}"),
    ("commit", {"status": 0, "delay": 1.0}, f"no answer in time.*{NEW}"),
]


@pytest.mark.parametrize(("where", "fault", "message"), LASTING)
def test_a_lasting_fault_says_what_stands_and_how_to_go_on(
    hub: FakeHub,
    merged: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    fault: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.setenv("CLIPMERGE_HUB_TIMEOUT", "0.3")
    hub.fail(*WHERE[where], times=99, **fault)
    with pytest.raises(HubError, match=f"^push to alice/robust: .*{message}") as caught:
        push(merged, "alice/robust", endpoint=hub.url)
    line = str(caught.value)
    assert "\n" not in line
    assert line.endswith(f"Go on with `clipmerge push {merged} alice/robust`.")
    if fault.get("status") != 0:  # the double's own work goes on after the client stopped waiting
        assert commits(hub) == 0
    hub.faults.clear()
    monkeypatch.delenv("CLIPMERGE_HUB_TIMEOUT")
    push(merged, "alice/robust", endpoint=hub.url)
    assert commits(hub) == 1


@pytest.mark.parametrize("where", ["whoami", "info", "tree", "preupload", "batch", "put", "verify"])
@pytest.mark.parametrize("fault", [{"status": 503}, {"cut_after": 0}])
def test_a_passing_fault_is_sat_out(hub: FakeHub, merged: Path, where: str, fault: dict[str, Any]) -> None:
    passing = hub.fail(*WHERE[where], times=1, **fault)
    assert push(merged, "alice/robust", endpoint=hub.url).changed
    assert passing.times == 0
    assert commits(hub) == 1


def test_a_commit_whose_answer_is_lost_counts_as_published(hub: FakeHub, merged: Path) -> None:
    hub.fail("POST", "/commit/", lose_answer=True)
    done = push(merged, "alice/robust", endpoint=hub.url)
    assert done.changed
    assert done.commit == hub.repos["model", "alice/robust"].refs["refs/heads/main"]
    assert not push(merged, "alice/robust", endpoint=hub.url).changed


def test_a_hub_that_goes_down_in_the_commit_is_not_guessed_about(hub: FakeHub, merged: Path) -> None:
    push(merged, "alice/robust", endpoint=hub.url)
    (merged / "notes.txt").write_text("new")
    hub.fail("POST", "/commit/", lose_answer=True)
    hub.fail("GET", "/api/models/alice/robust$", status=0, times=2)
    hub.fail("GET", "/api/models/alice/robust$", status=503, times=99)
    with pytest.raises(HubError, match="Whether the files were published is not known"):
        push(merged, "alice/robust", endpoint=hub.url)


def test_a_pull_request_whose_answer_is_lost(hub: FakeHub, merged: Path) -> None:
    push(merged, "alice/robust", endpoint=hub.url)
    (merged / "notes.txt").write_text("new")
    hub.fail("POST", "/commit/", lose_answer=True)
    with pytest.raises(HubError, match="A pull request may have been opened: look at http.*/discussions"):
        push(merged, "alice/robust", create_pr=True, endpoint=hub.url)


def test_somebody_else_commits_meanwhile(hub: FakeHub, merged: Path) -> None:
    push(merged, "alice/robust", endpoint=hub.url)
    (merged / "notes.txt").write_text("mine")
    slow = hub.fail("POST", "/preupload/", status=0, delay=1.0)
    with socket.socket():  # keeps the port table busy while the other commit goes in
        import threading

        other = threading.Timer(0.3, _commit_elsewhere, (hub, slow))
        other.start()
        with pytest.raises(HubError, match="somebody else committed meanwhile.*Nothing was published"):
            push(merged, "alice/robust", endpoint=hub.url)
        other.join()
    assert hub.content("alice/robust", "theirs.txt") == b"theirs"
    assert "notes.txt" not in hub.files("alice/robust")


def _commit_elsewhere(hub: FakeHub, slow: Any) -> None:
    repo = hub.repos["model", "alice/robust"]
    tree = hub.files("alice/robust") | {"theirs.txt": hub.keep(b"theirs")}
    repo.add_commit("refs/heads/main", tree, "theirs")


def test_a_refused_connection(hub: FakeHub, merged: Path) -> None:
    hub.stop()
    with pytest.raises(HubError, match="the Hub cannot be reached. Nothing was published"):
        push(merged, "alice/robust", endpoint=hub.url)


def test_offline_is_not_the_time_to_publish(hub: FakeHub, merged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set. Nothing was published"):
        push(merged, "alice/robust", endpoint=hub.url)


# Xet, and a process of its own


def test_a_push_over_xet(hub: FakeHub, merged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("hf_xet")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    hub.xet_cas = f"local://{tmp_path / 'cas'}"
    done = push(merged, "alice/robust", endpoint=hub.url)
    assert hub.files("alice/robust")["model.safetensors"].xet
    folder = fetch(HubId("alice/robust").at(done.commit), endpoint=hub.url).folder
    assert (folder / "model.safetensors").read_bytes() == (merged / "model.safetensors").read_bytes()
    assert not push(merged, "alice/robust", endpoint=hub.url).changed


SCRIPT = """
import sys
from pathlib import Path
from clipmerge.errors import ClipmergeError
from clipmerge.publish import push
try:
    print(push(Path(sys.argv[1]), sys.argv[2]).commit)
except ClipmergeError as error:
    sys.exit(f"error: {error}")
"""


def publish_apart(hub: FakeHub, merged: Path, **env: str) -> subprocess.CompletedProcess[str]:
    variables = environment(hub, merged.parent) | {"PATH": "", "PYTHONPATH": str(Path.cwd())} | env
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, str(merged), "alice/robust"],
        env=variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_a_process_of_its_own_prints_no_progress_and_no_token(hub: FakeHub, merged: Path) -> None:
    hub.token = "hf_" + "Zz9" * 11
    hub.fail("PUT", "/_lfs/", status=503, headers={"Retry-After": "0"})
    run = publish_apart(hub, merged)
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.strip() == HfApi(endpoint=hub.url, token=hub.token).model_info("alice/robust").sha
    hub.fail("GET", "/api/whoami-v2", status=403, body={"error": f"token {hub.token} is tired"})
    (merged / "notes.txt").write_text("new")
    again = publish_apart(hub, merged)
    assert again.returncode == 1
    assert again.stderr.startswith("error: push to alice/robust: the token has no right")
    assert again.stderr.count("\n") == 1
    assert hub.token not in again.stderr


def test_an_unreachable_xet_store_ends_in_time(hub: FakeHub, merged: Path) -> None:
    pytest.importorskip("hf_xet")
    hub.xet_cas = "http://127.0.0.1:9"
    run = publish_apart(hub, merged, HF_HUB_DISABLE_XET="0", CLIPMERGE_HUB_TIMEOUT="2")
    assert run.returncode == 1
    assert run.stderr.count("\n") == 1
    assert re.search("storage cannot be reached.*no file was published.*Go on with `clipmerge push", run.stderr)


def test_every_error_is_one_of_ours() -> None:
    assert issubclass(HubError, ClipmergeError)
