"""Publishing: one commit or none, and nothing overwritten unasked."""

import hashlib
import io
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, constants
from PIL import Image
from transformers import CLIPModel

from clipmerge.api.push import check_push, push
from clipmerge.errors import HubError, OutputError, UsageError
from clipmerge.hub.download import download_model, resolve
from clipmerge.hub.ids import HubId
from clipmerge.output.record import Published
from tests.support.command import clipmerge, done, printed, python, refused
from tests.support.hub_double import FakeHub, environment, upload
from tests.support.raw_safetensors import edit_json


def from_hub(merged: Path, *shas: tuple[str, str]) -> None:
    """Say that the output was merged from these (id, sha) on the Hub."""
    base, *rest = [{"source": source, "revision": sha, "files": {}} for source, sha in shas]
    edit_json(merged / "clipmerge.json", zeroshot=base, finetuned=rest)


def commits(hub: FakeHub) -> int:
    return len([entry for entry in hub.requests("POST", "/commit/") if entry[2] == 200])


def test_a_push_makes_one_commit_and_the_model_loads(hub: FakeHub, merged: Path) -> None:
    before = {path.name: path.read_bytes() for path in merged.iterdir()}
    done = push(merged, "alice/robust", license="mit")
    head = hub.repos["model", "alice/robust"].refs["refs/heads/main"]
    names = {"url": f"{hub.url}/alice/robust", "repo_id": "alice/robust", "commit": head}
    assert done == Published(**names, created=True, changed=True)
    assert commits(hub) == 1
    assert set(hub.files("alice/robust")) == {".gitattributes", *before}
    assert {path.name: path.read_bytes() for path in merged.iterdir()} == before
    card = ModelCard(hub.content("alice/robust", "README.md").decode())
    assert 'from_pretrained("alice/robust")' in card.text
    assert card.data.license == "mit"
    folder = download_model(resolve(HubId("alice/robust").at(head)))
    _, loading = CLIPModel.from_pretrained(folder, output_loading_info=True)
    assert not any(loading.values())


@pytest.mark.slow
def test_a_dry_run_lists_what_a_push_would_change_and_changes_nothing(
    hub: FakeHub, merged: Path
) -> None:
    words = ("push", merged, "alice/robust", "--dry-run")
    planned = printed(*words)
    assert (planned["changed"], planned["commit"]) == (False, "")
    assert ("model", "alice/robust") not in hub.repos
    text = done(*words).out
    assert "which does not exist yet, would change:" in text.replace("\n", " ")
    done("push", merged, "alice/robust")
    assert set(planned["would_change"]) == set(hub.files("alice/robust")) - {".gitattributes"}
    assert "is already up to date: a push would change nothing" in done(*words).out
    assert commits(hub) == 1


@pytest.mark.slow
def test_a_second_push_sends_what_changed_and_nothing_of_this_machine(
    hub: FakeHub, merged: Path
) -> None:
    first = push(merged, "alice/robust")
    for name in ("clipmerge.json", "README.md", "report.html"):
        assert b"/home" not in hub.content("alice/robust", name)
    assert b"base" in hub.content("alice/robust", "report.html")
    second = push(merged, "alice/robust")
    assert (second.changed, second.created, second.commit) == (False, False, first.commit)
    assert commits(hub) == 1
    # stale weights are replaced, and our own card
    check_push("alice/robust", merged, private=False, command="")
    shard = "model-00001-of-00001.safetensors"
    (merged / "model.safetensors").rename(merged / shard)
    weight_map = {"weight_map": {"logit_scale": shard}}
    (merged / "model.safetensors.index.json").write_text(json.dumps(weight_map))
    digest = json.loads((merged / "clipmerge.json").read_text())["files"]["model.safetensors"]
    files = {shard: digest, "model.safetensors": ...}
    edit_json(merged / "clipmerge.json", files=files, warnings=["Another warning."])
    assert push(merged, "alice/robust").changed
    assert "model.safetensors" not in hub.files("alice/robust")
    assert shard in hub.files("alice/robust")
    assert b"nother warning." in hub.content("alice/robust", "README.md")
    assert commits(hub) == 2


def test_private_is_private(hub: FakeHub, merged: Path) -> None:
    push(merged, "alice/robust", private=True)
    assert hub.repos["model", "alice/robust"].private
    push(merged, "alice/open")
    with pytest.raises(
        UsageError, match=r"exists and is public: `private=True` cannot hide it. Nothing was pub"
    ):
        push(merged, "alice/open", private=True)


@pytest.mark.slow
def test_a_branch_is_made_when_it_is_missing(hub: FakeHub, merged: Path) -> None:
    done = push(merged, "alice/robust", revision="half", message="Half way")
    assert done.url == f"{hub.url}/alice/robust/tree/half"
    assert "model.safetensors" not in hub.files("alice/robust")
    assert "model.safetensors" in hub.files("alice/robust", "half")
    assert hub.repos["model", "alice/robust"].commits[done.commit].title == "Half way"
    assert not push(merged, "alice/robust", revision="half").changed
    assert push(merged, "alice/robust", revision="other").changed


@pytest.mark.slow
def test_a_pull_request_to_somebody_elses_model(hub: FakeHub, merged: Path) -> None:
    with pytest.raises(HubError, match=r"no pull request can be opened. Nothing was published"):
        push(merged, "bob/robust", create_pr=True)
    hub.orgs = ("acme", "bob")
    push(merged, "bob/robust")
    hub.orgs = ("acme",)
    (merged / "NOTICE").write_text("new")
    done = push(merged, "bob/robust", create_pr=True)
    assert done.pull_request == f"{hub.url}/bob/robust/discussions/1"
    assert "NOTICE" not in hub.files("bob/robust")
    assert "NOTICE" in hub.files("bob/robust", "refs/pr/1")


@pytest.mark.slow
def test_a_card_edited_on_the_hub_is_not_run_over(hub: FakeHub, merged: Path) -> None:
    push(merged, "alice/robust")
    upload(hub, "alice/robust", {"README.md": b"---\nlicense: mit\n---\n# By hand\n"})
    told = (
        r"README.md there was edited since clipmerge wrote it, .*Nothing was published.*`yes=True`,"
        r" or with `create_pr=True`, which opens a pull"
    )
    with pytest.raises(UsageError, match=told):
        push(merged, "alice/robust")
    with pytest.raises(UsageError, match=told):
        check_push("alice/robust", merged, private=False, command="")
    assert commits(hub) == 2
    assert push(merged, "alice/robust", create_pr=True).pull_request
    assert hub.content("alice/robust", "README.md").endswith(b"# By hand\n")
    assert push(merged, "alice/robust", yes=True).changed
    assert b"By hand" not in hub.content("alice/robust", "README.md")
    (merged / "NOTICE").write_text("new")
    assert push(merged, "alice/robust").changed


@pytest.mark.slow
def test_other_content_is_left_alone_unless_told_but_for_a_card_of_front_matter(
    hub: FakeHub, merged: Path
) -> None:
    upload(hub, "alice/robust", {"README.md": b"---\nlicense: mit\n---\n"})
    assert push(merged, "alice/robust").changed
    upload(hub, "alice/other", {"README.md": b"---\nlicense: mit\n---\n# Coming soon\n"})
    with pytest.raises(UsageError, match=r"README.md there was not written by clipmerge"):
        push(merged, "alice/other")
    upload(hub, "alice/blog", {"README.md": b"---\nlicense: mit\n---\n", "post.md": b"hello"})
    with pytest.raises(
        UsageError, match=r"holds other files \(post.md\). Nothing was published.*`yes=True`"
    ):
        push(merged, "alice/blog")
    assert push(merged, "alice/blog", yes=True).changed
    assert hub.content("alice/blog", "post.md") == b"hello"


@pytest.mark.slow
@pytest.mark.draws
def test_the_picture_of_the_path_goes_up_with_the_card_in_one_commit(
    hub: FakeHub, pair: tuple[Path, Path], images: Path, tmp_path: Path
) -> None:
    flags = ("-r", "straggler-outlier", "--data", images, "--images", "9", "-o", tmp_path / "out")
    assert clipmerge("merge", *pair, *flags, "--push", "alice/robust").code == 0
    assert commits(hub) == 1
    assert "![Loss over" in hub.content("alice/robust", "README.md").decode()
    picture = hub.content("alice/robust", "path.png")
    assert picture == (tmp_path / "out" / "path.png").read_bytes()
    assert Image.open(io.BytesIO(picture)).size[0] > 600


@pytest.mark.parametrize(
    ("base", "tuned", "expected"),
    [("mit", "mit", "mit"), ("mit", None, None), ("other", "other", None)],
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
        told = (
            rf"acme/base: {base}, acme/tuned: {tuned or 'none stated'}\). Nothing was published."
            r" Pass `license`"
        )
        with pytest.raises(UsageError, match=told):
            push(merged, "alice/robust")
        assert ("model", "alice/robust") not in hub.repos
        expected = "cc-by-4.0"
        push(merged, "alice/robust", license=expected)
    else:
        push(merged, "alice/robust")
    card = ModelCard(hub.content("alice/robust", "README.md").decode())
    assert (card.data.license, card.data.base_model) == (expected, ["acme/base", "acme/tuned"])


def test_weights_that_changed_or_are_gone_are_not_published(hub: FakeHub, merged: Path) -> None:
    weights = merged / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(
        OutputError, match=r"changed since the merge\. Nothing was published\. Merge"
    ):
        push(merged, "alice/robust")
    weights.unlink()
    with pytest.raises(OutputError, match=r"model\.safetensors missing"):
        push(merged, "alice/robust")
    assert not hub.repos


@pytest.mark.parametrize("name", ["robust", "alice/robust@v1", "hf://alice/robust"])
def test_a_name_that_is_none(merged: Path, name: str) -> None:
    with pytest.raises(UsageError, match="not a name on the Hub"):
        push(merged, name)


def test_a_push_over_xet(
    hub: FakeHub, merged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("hf_xet")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    hub.xet_cas = f"local://{tmp_path / 'cas'}"
    done = push(merged, "alice/robust")
    assert hub.files("alice/robust")["model.safetensors"].xet
    folder = download_model(resolve(HubId("alice/robust").at(done.commit)))
    assert (folder / "model.safetensors").read_bytes() == (
        merged / "model.safetensors"
    ).read_bytes()
    assert not push(merged, "alice/robust").changed


def test_a_record_cannot_name_other_files_to_publish(hub: FakeHub, merged: Path) -> None:
    """The record may come from whoever made the folder."""
    edit_json(merged / "clipmerge.json", files={"keys.txt": None, "id_rsa": None})
    for name in ("keys.txt", "id_rsa"):
        (merged / name).write_text("nobody's business")
    done = push(merged, "alice/robust", license="mit")
    assert not {"keys.txt", "id_rsa"} & set(hub.files("alice/robust"))
    assert {"keys.txt", "id_rsa"} <= set(done.not_published)


def test_a_link_by_the_name_of_a_file_of_the_output_is_refused(
    hub: FakeHub, merged: Path, tmp_path: Path
) -> None:
    (tmp_path / "id_rsa").write_text("PRIVATE KEY")
    (merged / "LICENSE").symlink_to(tmp_path / "id_rsa")
    with pytest.raises(
        OutputError, match=r"LICENSE not a file of this folder. Nothing was published"
    ):
        push(merged, "alice/robust")
    assert ("model", "alice/robust") not in hub.repos


def test_a_changed_file_is_noticed_although_its_paths_are_not_published(
    hub: FakeHub, merged: Path
) -> None:
    config = edit_json(merged / "config.json", _name_or_path="/home/me/models/base")
    digest = hashlib.sha256(config.read_bytes()).hexdigest()
    edit_json(merged / "clipmerge.json", files={"config.json": digest})
    assert push(merged, "alice/robust", license="mit").changed
    assert b"/home/me" not in hub.content("alice/robust", "config.json")
    config.write_text(config.read_text().replace("quick_gelu", "gelu") + " ")
    with pytest.raises(
        OutputError, match=r"config\.json changed since the merge\. Nothing was published"
    ):
        push(merged, "alice/robust", license="mit")


PASSING = (
    ("GET", "/api/whoami-v2"),
    ("GET", "/api/models/alice/robust$"),
    ("GET", "/tree/"),
    ("POST", "/preupload/"),
    ("POST", "/objects/batch"),
    ("PUT", "/_lfs/"),
    ("POST", "/_lfs/verify"),
)


@pytest.mark.parametrize("fault", [{"status": 503}, {"cut_after": 0}])
def test_passing_faults_are_sat_out(hub: FakeHub, merged: Path, fault: dict[str, Any]) -> None:
    passing = [hub.fail(*where, times=1, **fault) for where in PASSING]
    assert push(merged, "alice/robust").changed
    assert [each.times for each in passing] == [0] * len(PASSING)
    assert commits(hub) == 1


@pytest.mark.parametrize(
    ("token", "repo_id", "message"),
    [
        (
            "",
            "alice/robust",
            "alice/robust: no token. Nothing was published.*`clipmerge push .*merged alice/rob",
        ),
        ("hf_read", "alice/robust", "the token may only read. Nothing was published"),
        ("hf_wrong", "alice/robust", "no token, or one that is not valid .*Nothing was published"),
        (
            "hf_test",
            "openai/robust",
            "may write to alice, acme, not to openai.*Push to alice/robust",
        ),
    ],
)
def test_a_token_without_the_right(
    hub: FakeHub,
    merged: Path,
    monkeypatch: pytest.MonkeyPatch,
    token: str,
    repo_id: str,
    message: str,
) -> None:
    hub.read_only_tokens.add("hf_read")
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(HubError, match=message) as caught:
        push(merged, repo_id)
    assert not token or token not in str(caught.value)
    assert not hub.requests("POST", "/api/repos/create")


def test_a_commit_whose_answer_is_lost_is_not_guessed_about(hub: FakeHub, merged: Path) -> None:
    hub.fail("POST", "/commit/", lose_answer=True)
    with pytest.raises(
        HubError, match="Whether the files were published is not known; the same command finds out"
    ):
        push(merged, "alice/robust")
    assert not push(merged, "alice/robust").changed
    (merged / "NOTICE").write_text("new")
    hub.fail("POST", "/commit/", lose_answer=True)
    with pytest.raises(
        HubError, match=r"A pull request may have been opened: look at http.*/discussions"
    ):
        push(merged, "alice/robust", create_pr=True)


def test_without_a_hub_nothing_is_published(
    hub: FakeHub, merged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        UsageError, match=r"`create_pr=True` opens a pull request on main: leave `revision` out"
    ):
        push(merged, "alice/robust", create_pr=True, revision="dev")
    assert not hub.log
    hub.stop()
    with pytest.raises(HubError, match=r"the Hub cannot be reached. Nothing was published"):
        push(merged, "alice/robust")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match=r"HF_HUB_OFFLINE is set. Nothing was published"):
        push(merged, "alice/robust")


LOAD = """
from transformers import CLIPModel, CLIPProcessor
model, info = CLIPModel.from_pretrained("{repo}", revision="{sha}", output_loading_info=True)
assert not any(info.values()), info
CLIPProcessor.from_pretrained("{repo}", revision="{sha}")
"""


@pytest.mark.slow
def test_merge_push_and_merge_again_from_the_pushed_id_in_processes_of_their_own(
    hub: FakeHub,
    pair: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        return python(*arguments, cwd=tmp_path, env={**os.environ, **environment(hub, tmp_path)})

    merge = ("-m", "clipmerge", "merge", pair[0])
    once = (pair[1], "-r", "wise-ft", "-o", tmp_path / "out", "--push", "acme/robust")
    with monkeypatch.context() as patch:
        patch.setenv("HF_TOKEN", "")
        told = refused(clipmerge("merge", pair[0], *once))
        assert "no token" in told
        assert "then `clipmerge merge " in told  # nothing is there that could be pushed
    assert not (tmp_path / "out").exists()  # it was known before anything was merged
    first = run(*merge, *once, "--json")
    assert first.returncode == 0, first.stderr
    assert commits(hub) == 1
    sha = json.loads(first.stdout)["published"]["commit"]
    again = done("push", tmp_path / "out", "acme/robust")
    assert "no commit was made" in again.out
    whole = ("-r", "wise-ft", "--set", "method.alpha=1", "-o", "out2", "--json")
    second = run(*merge, f"acme/robust@{sha}", *whole)
    assert second.returncode == 0, second.stderr
    assert json.loads(second.stdout)["finetuned"][0]["revision"] == sha
    snippet = re.search(
        r"```python\n(.*?)```", hub.content("acme/robust", "README.md").decode(), re.S
    )
    assert snippet is not None
    assert '"acme/robust"' in snippet[1]
    exec(LOAD.format(repo="acme/robust", sha=sha) + snippet[1], {})
    assert "a photo of a cat" in capsys.readouterr().out
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "out2")]
    assert weights[0] == weights[1]


def test_a_text_that_is_too_large_is_not_read(
    hub: FakeHub, merged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipmerge.publish.push.MAX_TEXT_BYTES", 1000)
    upload(hub, "alice/robust", {"README.md": b"---\nlicense: mit\n---\n" + b" " * 1001})
    with pytest.raises(
        (HubError, UsageError), match=r"README.md there cannot be read .*Nothing was published"
    ):
        push(merged, "alice/robust")
