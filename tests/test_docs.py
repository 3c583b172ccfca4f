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
from orchestrator.ipc.messages import (
    ATTEMPT_VARIABLE,
    RESUME_VARIABLE,
    RUN_DIR_VARIABLE,
    SOCKET_VARIABLE,
)
from orchestrator.rundir.journal import JournalEvent
from orchestrator.telemetry.run_state import State

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
CONTRACT = (ROOT / "docs" / "reference" / "process-contract.md").read_text()
STATUSES = CONTRACT.split("## Exit status")[1].split("## Restarts")[0]
FORMAT = (ROOT / "docs" / "reference" / "checkpoint-format.md").read_text()


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_statuses() -> None:
    """The contract's table lists every exit status by number and name, and the README its use."""
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


@pytest.mark.parametrize("name", [*JournalEvent, *State])
def test_names(name: str) -> None:
    """Every journal event and every state stands in the contract."""
    assert f"`{name}`" in CONTRACT


def test_environment() -> None:
    """The contract names the trainer's variables."""
    for name in (SOCKET_VARIABLE, RUN_DIR_VARIABLE, ATTEMPT_VARIABLE, RESUME_VARIABLE):
        assert f"`{name}`" in CONTRACT


def test_format_examples() -> None:
    """The manifest in the format page is one that the program accepts; reasons are complete."""
    (example,) = blocks(FORMAT, "json")
    manifest = Manifest.from_json(example.encode())
    assert json.loads(manifest.to_json()) == json.loads(example)
    assert all(f"`{reason}`" in FORMAT for reason in Reason)
    for line in blocks(CONTRACT, "json"):
        json.loads(line)


def run(*arguments: str) -> str:
    result = subprocess.run(
        [sys.executable, "-m", "orchestrator", *arguments],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": "/usr/bin:/bin", "COLUMNS": "200"},
    )
    return result.stdout


def test_help_and_readme_name_every_option() -> None:
    """Each setting is an option in `run --help` and in the README."""
    text = run("run", "--help")
    for setting in Config.__dataclass_fields__:
        option = "--" + setting.replace("_", "-")
        assert option in text
        assert f"`{option}" in README
    assert re.findall(r"(?:Exit status|status): 0 .*?75", text, re.DOTALL)


def test_help_and_readme_name_every_command() -> None:
    """Each command of `--help` stands in the README's list."""
    commands = re.findall(r"^    ([a-z]+)(?:  |$)", run("--help"), re.MULTILINE)
    assert len(commands) >= 5
    for command in commands:
        assert f"orchestrator {command}" in README


@pytest.mark.processes
def test_readme_script_runs(tmp_path: Path) -> None:
    """The README's script trains to completion as it stands."""
    (script,) = blocks(README, "python")
    (tmp_path / "train.py").write_text(script)
    subprocess.run([sys.executable, "train.py"], cwd=tmp_path, check=True, timeout=120)
    assert (tmp_path / "runs" / "train" / "done.json").exists()


def test_tree_in_the_readme_exists() -> None:
    """The documents and folders that the README lists are there."""
    listed = re.findall(
        r"^((?:docs|examples|systemd)/[\w.-]*)", README.split("## Where things")[1], re.M
    )
    assert listed
    for name in listed:
        assert (ROOT / name).exists(), name
