"""The pages say what the program does."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.checkpoint.manifest import Manifest, Reason
from orchestrator.config import Config
from orchestrator.exitcodes import ExitStatus
from orchestrator.ipc.control_page import PAGE_BYTES, Field, Phase
from orchestrator.rundir.journal import JournalEvent
from orchestrator.rundir.time_ledger import Part
from orchestrator.telemetry.notable_events import NotableEvent
from orchestrator.telemetry.run_state import State
from tests import cli_reference

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
REFERENCE = ROOT / "docs" / "reference"
CONTRACT = (REFERENCE / "process-contract.md").read_text()
STATUSES = (REFERENCE / "exit-statuses.md").read_text()
EVENTS = (REFERENCE / "events.md").read_text()
ENVIRONMENT = (REFERENCE / "environment.md").read_text()
FORMAT = (REFERENCE / "checkpoint-format.md").read_text()
COMMAND_LINE = (REFERENCE / "cli.md").read_text()
HOW_IT_WORKS = (ROOT / "docs" / "explanation" / "how-it-works.md").read_text()
PAGES = {path: path.read_text() for path in sorted((ROOT / "docs").rglob("*.md"))}
MOST_FILES_OF_A_PROCESS = 5


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_statuses() -> None:
    """The page of exit statuses lists every one by number and name."""
    rows = dict(re.findall(r"^\| (\d+) \| ([A-Z_]+) \|", STATUSES, re.MULTILINE))
    assert {int(number): name for number, name in rows.items()} == {
        status.value: status.name for status in ExitStatus
    }


def test_control_page() -> None:
    """The contract's table gives each field its index, and each phase its number."""
    rows = dict(re.findall(r"^\| (\d+) \| ([A-Z_]+) \| (?:trainer|supervisor)", CONTRACT, re.M))
    assert {int(number): name for number, name in rows.items()} == {
        field.value: field.name for field in Field
    }
    assert f"{PAGE_BYTES} bytes" in CONTRACT
    assert ", ".join(f"{phase.value} {phase.name.lower()}" for phase in Phase) in CONTRACT


def test_kubernetes() -> None:
    """The Job of the page knows every status, and its grace period fits into the pod's."""
    (job,) = blocks((ROOT / "docs" / "how-to" / "kubernetes.md").read_text(), "yaml")
    lists = [set(map(int, found.split(", "))) for found in re.findall(r"values: \[(.*?)\]", job)]
    again = {ExitStatus.STOPPED_SAVED, ExitStatus.STOPPED_UNSAVED}
    assert lists == [set(ExitStatus) - again - {ExitStatus.COMPLETE}, again]
    (grace,) = re.findall(r'"--grace", "(\d+)s"', job)
    (patience,) = re.findall(r"terminationGracePeriodSeconds: (\d+)", job)
    assert int(grace) < int(patience)


@pytest.mark.parametrize("name", NotableEvent)
def test_notable_events(name: str) -> None:
    """Every value of ORCHESTRATOR_EVENT is on the page of the environment, and in the help."""
    assert f"| `{name}` |" in ENVIRONMENT
    assert name in Config.__dataclass_fields__["on_event"].metadata["help"]


def test_parts_of_the_goodput() -> None:
    """The page of the goodput explains each part, in the order of the status line."""
    page = (ROOT / "docs" / "explanation" / "goodput.md").read_text()
    assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE) == [*Part]


@pytest.mark.parametrize("name", [*JournalEvent, *State])
def test_names(name: str) -> None:
    """Every journal event and every state is on the page of events."""
    assert f"`{name}`" in EVENTS


def test_environment() -> None:
    """Each variable in the source is documented, and each that is documented is in the source."""
    sources = "".join(path.read_text() for path in (ROOT / "orchestrator").rglob("*.py"))
    named = set(re.findall(r"ORCHESTRATOR_[A-Z_]+[A-Z]", sources))
    settings = {f"ORCHESTRATOR_{name.upper()}" for name in Config.__dataclass_fields__}
    page = set(re.findall(r"ORCHESTRATOR_[A-Z_]+[A-Z]", ENVIRONMENT))
    assert named - settings <= page
    for text in (README, *PAGES.values()):
        assert set(re.findall(r"ORCHESTRATOR_[A-Z_]+[A-Z]", text)) <= named | settings


def test_format_examples() -> None:
    """The manifest in the format page is one that the program accepts; reasons are complete."""
    (example,) = blocks(FORMAT, "json")
    manifest = Manifest.from_json(example.encode())
    assert json.loads(manifest.to_json()) == json.loads(example)
    assert all(f"`{reason}`" in FORMAT for reason in Reason)
    lines = [*blocks(EVENTS, "json"), *blocks((REFERENCE / "metrics.md").read_text(), "json")]
    assert lines
    for line in lines:
        json.loads(line)


def relative_links(text: str) -> list[str]:
    """The targets of links and images to files, without anchors; code is no link."""
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)#\s]+)", prose)
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


def run(*arguments: str) -> str:
    result = subprocess.run(
        [sys.executable, "-m", "orchestrator", *arguments],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": "/usr/bin:/bin", "COLUMNS": "200"},
    )
    return result.stdout


def test_help_and_reference_name_every_option() -> None:
    """Each setting is an option in `run --help` and on the page of the command line."""
    text = run("run", "--help")
    for setting in Config.__dataclass_fields__:
        option = "--" + setting.replace("_", "-")
        assert option in text
        assert f"`{option}" in COMMAND_LINE
    assert re.findall(r"(?:Exit status|status): 0 .*?75", text, re.DOTALL)


def test_help_and_reference_name_every_command() -> None:
    """Each command of `--help` is on the page of the command line."""
    commands = re.findall(r"^    ([a-z][a-z-]+)(?:  |$)", run("--help"), re.MULTILINE)
    assert len(commands) >= 5
    for command in commands:
        assert f"## orchestrator {command}" in COMMAND_LINE


def test_command_line_page_is_generated() -> None:
    """The page of the command line is what the parser and the settings make of it."""
    assert cli_reference.page() == COMMAND_LINE, "run `make cli-reference`"


def test_paths_through_the_source() -> None:
    """Each path through the source has at most five files, which exist and hold what it names."""
    paths = HOW_IT_WORKS.split("\n### ")[1:]
    assert len(paths) == 6
    for path in paths:
        files = re.findall(r"^\d\. `([\w/.]+)`", path, re.MULTILINE)
        assert 1 < len(files) <= MOST_FILES_OF_A_PROCESS
        sources = "".join((ROOT / file).read_text() for file in files)
        for name in re.findall(r"`(?:\w+\.)?(\w+)(?:\(\))?`", path):
            assert name in sources + EVENTS, name
    for name in re.findall(r"`(orchestrator/[\w/]+\.py)`", "".join(PAGES.values())):
        assert (ROOT / name).exists(), name


def test_links_of_the_pages_lead_to_pages() -> None:
    """Relative links stay below docs/, since the site has nothing else, and lead to what exists."""
    for path, text in PAGES.items():
        for name in relative_links(text):
            target = (path.parent / name).resolve()
            assert target.is_relative_to(ROOT / "docs"), f"{path}: {name}"
            assert target.exists(), f"{path}: {name}"


@pytest.mark.parametrize("page", sorted(ROOT.glob("*.md")), ids=lambda path: path.name)
def test_links_of_the_front_pages_lead_to_files(page: Path) -> None:
    """The documents, folders and scripts to which README and its neighbours link are there."""
    names = relative_links(page.read_text())
    assert names or page.name != "README.md"
    for name in names:
        assert (ROOT / name).exists(), name
