"""Every command of README and docs: those in `sh` blocks run as they stand, all others parse."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
from typer.main import get_command

from clipmerge.cli.app import app
from tests.support.command import done, python
from tests.support.hub_double import serving, upload
from tests.support.pages import lines, programs
from tests.support.published import publishing
from tests.support.quick import shorten_recipes
from tests.support.tiny_clip import Folders, save_images

ROOT = Path(__file__).parents[2]
#: In the order in which their commands run; what one writes, a later one reads.
PAGES = [
    ROOT / "README.md",
    *(
        ROOT / "docs" / f"{name}.md"
        for name in (
            "index",
            "how-to/verdict",
            "how-to/ci",
            "how-to/sweep",
            "reference/command-line",
            "reference/recipes",
            "tutorials/publish",
            "how-to/many-merges",
        )
    ),
]
LINES = list(dict.fromkeys(line for page in PAGES for line in lines(page, "sh")))


@pytest.fixture(scope="module")
def workplace(pair: Folders, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the names that the pages use."""
    folder = tmp_path_factory.mktemp("pages")
    for name, source in (("zeroshot", pair[0]), ("finetuned", pair[1]), ("val", images)):
        shutil.copytree(source, folder / name)
    for seed, name in enumerate(("test", "shifted", "cameras"), start=1):
        save_images(folder / name, seed=seed)
    (folder / "images").mkdir()  # without labels
    for file in images.rglob("*.png"):
        shutil.copy(file, folder / "images" / f"{file.parent.name}-{file.name}")
    names = sorted(each.name for each in images.iterdir() if each.is_dir())
    (folder / "names.txt").write_text("\n".join(names))
    return folder


def test_every_page_with_commands_that_run_is_run_here() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    assert {page for page in pages if lines(page, "sh")} == set(PAGES)


@pytest.mark.slow
@pytest.mark.uncounted
@pytest.mark.draws
def test_the_commands_and_the_python_of_the_readme_run(
    workplace: Path, pair: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = [line for line in LINES if line.startswith("clipmerge ")]
    assert len(commands) >= 14
    with serving(tmp_path, monkeypatch) as hub:
        for repo, folder in (("acme/clip-base", pair[0]), ("acme/clip-cars", pair[1])):
            upload(hub, repo, folder)
        publishing(monkeypatch)
        monkeypatch.chdir(workplace)
        shorten_recipes(monkeypatch)
        for line in commands:  # in this process, where imports take their time once
            words, _, file = line.partition(" > ")
            ended = done(*shlex.split(words, comments=True)[1:])
            assert "Traceback" not in ended.err
            if file:
                Path(file).write_text(ended.out)
    outputs = (workplace / f"merged-{name}" for name in ("by-plan", "cars"))
    assert len({(output / "model.safetensors").read_bytes() for output in outputs}) == 1
    shown = programs(ROOT / "README.md")
    assert len(shown) == 2
    for program in shown:
        exec(compile(program, "README.md", "exec"), {})


@pytest.mark.slow
@pytest.mark.uncounted
def test_the_command_of_two_processes_runs(workplace: Path) -> None:
    (line,) = [line for line in LINES if line.startswith("torchrun ")]
    words = shlex.split(line, comments=True)
    python("-m", "torch.distributed.run", *words[1:], cwd=workplace, check=True)
    assert (workplace / "merged-fisher" / "model.safetensors").is_file()


def commands() -> list[str]:
    """Every command of the program on any page, its lines joined, without what a shell does."""
    found = []
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for line in lines(page):
            words = re.search(r"(?:^|\] \$ |-m )clipmerge ([^>|]*)", line)
            if words and "..." not in line and page.name != "first-merge.md":
                found.append(words[1].strip())
    return sorted(set(found))


@pytest.mark.parametrize("line", commands())
def test_a_command_parses(line: str) -> None:
    group = get_command(app)
    words = shlex.split(line, comments=True)
    with group.make_context("clipmerge", [*words], resilient_parsing=True) as context:
        name, command, rest = group.resolve_command(context, words)  # type: ignore[attr-defined]
        while hasattr(command, "commands"):
            name, command, rest = command.resolve_command(context, rest)
        with command.make_context(name, rest, parent=context):
            pass
