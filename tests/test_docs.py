"""Documents say what is: every option, every command, every link."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lib_trainer import __version__
from lib_trainer.cli.main import documented
from lib_trainer.config import field_specs, load_job
from lib_trainer.options.document import COMMAND
from lib_trainer.training.optimizers import BY_PATH, OPTIMIZERS
from lib_trainer.training.schedules import SCHEDULES

ROOT = Path(__file__).parents[1]
READMES = ("README.md", "README.zh-CN.md")
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "miniature").glob("*.md")])


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(text: str, language: str = "") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def test_the_list_of_options_is_up_to_date() -> None:
    assert text_of("docs/options.md") == documented(), f"run {COMMAND}"


@pytest.mark.parametrize("path", field_specs())
def test_every_option_is_documented(path: str) -> None:
    spec = field_specs()[path]
    rows = [line for line in text_of("docs/options.md").splitlines() if line.startswith(f"| `{path.split('.')[1]}` |")]
    assert any(spec.help in row and str(spec.allowed) in row for row in rows)


def test_the_registries_are_what_the_options_offer() -> None:
    assert (*OPTIMIZERS, BY_PATH) == field_specs()["optimizer.name"].choices
    assert tuple(SCHEDULES) == field_specs()["optimizer.schedule"].choices


def test_every_optimizer_and_schedule_is_explained() -> None:
    text = text_of("docs/learning.md")
    assert [name for name in (*OPTIMIZERS, BY_PATH, *SCHEDULES) if f"`{name}`" not in text] == []
    rows = [line.split("|")[1:4] for line in text.splitlines() if line.startswith("| `")]
    for names, needs, states in rows:
        for name, state in zip(re.findall(r"`(\w+)`", names), re.findall(r"\d+", states) * 2):
            entry = OPTIMIZERS.get(name)
            if entry is not None:
                assert round(entry.state) == int(state), name
                assert entry.package is None or entry.package.name in needs, name


@pytest.mark.parametrize("name", READMES)
def test_the_two_commands_are_in_the_readme_and_ci_runs_the_second(name: str) -> None:
    commands = [block.strip() for block in blocks(text_of(name))]
    assert commands[:2] == ["python3 dev.py demo", "python3 dev.py test"]
    assert text_of(".ci/run").splitlines()[-1].startswith(commands[1])


def test_both_readmes_show_the_same() -> None:
    english, chinese = (text_of(name) for name in READMES)
    assert blocks(english) == blocks(chinese)
    assert blocks(english, "toml") == blocks(chinese, "toml")
    assert headings(english) == headings(chinese)
    links = [set(re.findall(r"\]\(([^)]+)\)", text)) - set(READMES) for text in (english, chinese)]
    assert links[0] == links[1]
    assert [len(re.findall(pattern, english, re.MULTILINE)) for pattern in (r"^\d\. ", r"^- ", r"^\|")] == [
        len(re.findall(pattern, chinese, re.MULTILINE)) for pattern in (r"^\d\. ", r"^- ", r"^\|")
    ]


def headings(text: str) -> list[int]:
    return [len(marks) for marks in re.findall(r"^(#+) ", text, re.MULTILINE)]


def test_the_job_file_of_the_readme_is_one(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_text(blocks(text_of("README.md"), "toml")[0], encoding="utf-8")
    assert load_job(path).output.name == "zorb"


def test_the_changelog_has_this_version() -> None:
    heading = rf"^## \[{re.escape(__version__)}\] - \d{{4}}-\d{{2}}-\d{{2}}$"
    assert re.search(heading, text_of("CHANGELOG.md"), re.MULTILINE)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_local_link_leads_somewhere(path: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", path.read_text(encoding="utf-8")):
        if not re.match(r"[a-z]+:", link):
            assert (path.parent / link.partition("#")[0]).exists(), link


def test_the_tests_that_documents_name_are_there() -> None:
    text = text_of("docs/host-traps.md")
    for row in (line for line in text.splitlines() if line.startswith("| ") and "tests/" in line):
        shown = row.split("|")[-2]
        files = re.findall(r"`(tests/[\w/]+\.py)`", shown)
        source = "".join(text_of(name) for name in files)
        for function in re.findall(r"`(test_\w+)`", shown):
            assert f"def {function}(" in source, row


def test_every_trap_has_an_answer() -> None:
    rows = [line.split("|")[1:-1] for line in text_of("docs/host-traps.md").splitlines() if re.match(r"\| \d", line)]
    assert len(rows) >= 17
    assert [int(row[0]) for row in rows] == list(range(1, len(rows) + 1))
    assert all(cell.strip() for row in rows for cell in row)


def test_decisions_are_numbered() -> None:
    files = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    assert [int(file.name[:4]) for file in files] == list(range(1, len(files) + 1))
    for number, file in enumerate(files, 1):
        assert file.read_text(encoding="utf-8").startswith(f"# {number}. ")
