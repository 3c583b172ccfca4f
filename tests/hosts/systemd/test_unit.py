"""Units as text: what systemd's own tools say of them, and what they are made from."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from orchestrator.errors import ConfigError
from orchestrator.exitcodes import ExitStatus
from orchestrator.hosts.systemd.quoting import command, literal
from orchestrator.hosts.systemd.unit import (
    Service,
    check_name,
    service_unit,
    slowest_save,
    stop_seconds,
    template,
)
from orchestrator.rundir.journal import Journal, JournalEvent
from orchestrator.rundir.paths import RunDir
from tests.e2e.hosts.need import lacking
from tests.e2e.hosts.systemd import ROOT, print_unit
from tests.test_docs import STATUSES

TEMPLATES = {
    False: ROOT / "systemd" / "orchestrator@.service",
    True: ROOT / "systemd" / "user" / "orchestrator@.service",
}
ODD_WORDS = ("/usr/bin/env", "a b", 'q"', "$HOME", "100%", "%n", "\\x41", "", ";", "é")
OK_EXPOSURE = 49


def service(**changes: object) -> Service:
    facts: dict[str, object] = {
        "name": "train",
        "program": ("/usr/bin/env", "orchestrator"),
        "options": (),
        "command": ("/usr/bin/env", "python3"),
        "directory": Path("/srv/project"),
        "run_dir": None,
        "account": "daemon",
        "for_user": False,
        "grace_seconds": 30.0,
        "save_seconds": None,
    }
    return Service(**(facts | changes))  # type: ignore[arg-type]


UNITS = {
    "plain": service_unit(service()),
    "words": service_unit(service(command=ODD_WORDS, options=("--every=500steps",))),
    "paths": service_unit(
        service(directory=Path("/srv/a 100% b"), run_dir=Path('/srv/r "1" %n'), save_seconds=20.0)
    ),
    "user": service_unit(service(for_user=True, account=None)),
    "template@": template(for_user=False),
    "template-user@": template(for_user=True),
}


def analyze(*words: str, runtime: Path) -> str:
    """Both outputs of systemd-analyze, which must succeed."""
    if shutil.which("systemd-analyze") is None:
        lacking("systemd is not installed")
    result = subprocess.run(
        ["systemd-analyze", "--no-pager", *words],
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"], "XDG_RUNTIME_DIR": str(runtime)},
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stderr


@pytest.mark.parametrize("name", UNITS)
def test_systemd_accepts_the_unit(name: str, tmp_path: Path) -> None:
    """`systemd-analyze verify` has nothing to say of it."""
    file = tmp_path / f"{name}.service"
    file.write_text(UNITS[name])
    manager = "--user" if "user" in name else "--system"
    assert analyze(manager, "--man=no", "verify", str(file), runtime=tmp_path) == ""


@pytest.mark.parametrize("name", [name for name in UNITS if "user" not in name])
def test_exposure_is_ok(name: str, tmp_path: Path) -> None:
    """`systemd-analyze security` calls it OK or better. A user's manager may not do as much."""
    file = tmp_path / f"{name}.service"
    file.write_text(UNITS[name])
    threshold = f"--threshold={OK_EXPOSURE}"
    analyze("security", "--offline=true", threshold, str(file), runtime=tmp_path)


@pytest.mark.parametrize("for_user", TEMPLATES)
def test_templates_are_what_the_generator_makes(for_user: bool) -> None:
    """The files in systemd/ are written by `make units`."""
    assert TEMPLATES[for_user].read_text() == template(for_user)


def test_statuses_are_those_of_the_contract() -> None:
    """What the contract says not to run again is not, and what to run again is a success."""
    rows = {
        status: next(
            line for line in STATUSES.splitlines() if line.startswith(f"| {status.value} |")
        )
        for status in ExitStatus
    }
    again = [str(s.value) for s, row in rows.items() if row.endswith(" run it again |")]
    not_again = [str(s.value) for s, row in rows.items() if row.endswith(" not run it again |")]
    again = [status for status in again if status not in not_again]
    lines = UNITS["plain"].splitlines()
    assert f"SuccessExitStatus={' '.join(again)}" in lines
    assert f"RestartPreventExitStatus={' '.join(not_again)}" in lines


def test_time_to_stop_follows_the_slowest_of_the_last_saves(tmp_path: Path) -> None:
    """TimeoutStopSec is the grace period, and three such saves where that is more than 15 s."""
    run = RunDir(tmp_path)
    assert slowest_save(run) is None
    journal = Journal(run.journal_file)
    for seconds in (99.0, *[5.0] * 19, 7.5, None):
        journal.write(JournalEvent.CHECKPOINT_PUBLISHED, 1, seconds=seconds)
    assert slowest_save(run) == 7.5
    assert [stop_seconds(30.0, save) for save in (None, 1.0, 7.5)] == [45, 45, 53]


def test_time_to_stop_is_measured_where_the_run_is(tmp_path: Path) -> None:
    """The unit for a run that was here before allows for what its saves took."""
    run = RunDir(tmp_path / "run")
    run.create()
    Journal(run.journal_file).write(JournalEvent.CHECKPOINT_PUBLISHED, 1, seconds=20.0)
    text = print_unit("--run-dir", "run", "--grace", "40s", "--", "true", directory=tmp_path)
    assert "\nTimeoutStopSec=100\n" in text
    assert "which took up to 20.0 s" in text


def test_unit_of_a_command_is_complete(tmp_path: Path) -> None:
    """Absolute program, directory, run directory and options; a note on what is here already."""
    (tmp_path / "train.py").touch()
    lines = print_unit("--every", "1epoch", "--", "python3", "train.py", directory=tmp_path)
    assert f"WorkingDirectory={tmp_path}\n" in lines
    assert "StateDirectory=orchestrator/train\n" in lines
    assert "Environment=ORCHESTRATOR_RUN_DIR=%S/orchestrator/train\n" in lines
    start = next(line for line in lines.splitlines() if line.startswith("ExecStart="))
    python = shutil.which("python3")
    assert start.endswith(f" -P -m orchestrator run --every 1epoch -- {python} train.py")
    named = print_unit("--run-dir", "r", "--user", "--", "python3", "train.py", directory=tmp_path)
    assert f"Environment=ORCHESTRATOR_RUN_DIR={tmp_path}/r\n" in named
    assert "StateDirectory" not in named
    assert "User=" not in named


@pytest.mark.parametrize("name", ["", "a b", "../x", ".hidden", "a:b", "ä"])
def test_names_that_cannot_be_are_refused(name: str) -> None:
    """A unit's name is one of a file, and of a directory in systemd's place for state."""
    with pytest.raises(ConfigError, match="cannot name a unit"):
        check_name(name)


@pytest.mark.parametrize("value", [" /a", "/a\n", "/a\\", "/a\x01b"])
def test_values_that_cannot_be_written_are_refused(value: str) -> None:
    """A directory that a unit's line cannot hold is refused, not changed."""
    with pytest.raises(ConfigError, match="cannot write"):
        literal(value)


def test_words_that_are_no_text_are_refused() -> None:
    """An argument that is not UTF-8 has no form in a unit."""
    with pytest.raises(ConfigError, match="not UTF-8"):
        command([json.loads('"\\udcff"')])
