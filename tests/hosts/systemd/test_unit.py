"""Unit files: systemd's verdict on them, and the content that they are made from."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from orchestrator.errors import ConfigError
from orchestrator.exitcodes import ExitStatus
from orchestrator.hosts.systemd.quoting import escape_value, quote_command
from orchestrator.hosts.systemd.unit import (
    ServiceSpec,
    check_unit_name,
    service_unit,
    slowest_save,
    stop_seconds,
    template_unit,
)
from orchestrator.rundir.journal import Journal, JournalEvent
from orchestrator.rundir.paths import RunDir
from tests.e2e.hosts.need import skip_or_fail
from tests.e2e.hosts.systemd import ROOT, print_unit

STATUSES = (ROOT / "docs" / "reference" / "exit-statuses.md").read_text()
TEMPLATES = {
    False: ROOT / "systemd" / "orchestrator@.service",
    True: ROOT / "systemd" / "user" / "orchestrator@.service",
}
ODD_WORDS = ("/usr/bin/env", "a b", 'q"', "$HOME", "100%", "%n", "\\x41", "", ";", "é")
OK_EXPOSURE = 49


def service_spec(**changes: object) -> ServiceSpec:
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
    return ServiceSpec(**(facts | changes))  # type: ignore[arg-type]


UNITS = {
    "plain": service_unit(service_spec()),
    "words": service_unit(service_spec(command=ODD_WORDS, options=("--every=500steps",))),
    "paths": service_unit(
        service_spec(
            directory=Path("/srv/a 100% b"), run_dir=Path('/srv/r "1" %n'), save_seconds=20.0
        )
    ),
    "user": service_unit(service_spec(for_user=True, account=None)),
    "template@": template_unit(for_user=False),
    "template-user@": template_unit(for_user=True),
}


def analyze(*words: str, runtime: Path) -> str:
    """Run systemd-analyze, which must succeed, and return its error output."""
    if shutil.which("systemd-analyze") is None:
        skip_or_fail("systemd is not installed")
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
    """`systemd-analyze verify` has no complaint about the unit."""
    file = tmp_path / f"{name}.service"
    file.write_text(UNITS[name])
    manager = "--user" if "user" in name else "--system"
    assert analyze(manager, "--man=no", "verify", str(file), runtime=tmp_path) == ""


@pytest.mark.parametrize("name", [name for name in UNITS if "user" not in name])
def test_exposure_of_the_unit_is_ok(name: str, tmp_path: Path) -> None:
    """`systemd-analyze security` rates a system unit as OK or better."""
    file = tmp_path / f"{name}.service"
    file.write_text(UNITS[name])
    threshold = f"--threshold={OK_EXPOSURE}"
    analyze("security", "--offline=true", threshold, str(file), runtime=tmp_path)


@pytest.mark.parametrize("for_user", TEMPLATES)
def test_templates_match_their_generator(for_user: bool) -> None:
    """The files in systemd/ are those that `make units` writes."""
    assert TEMPLATES[for_user].read_text() == template_unit(for_user)


def test_exit_statuses_match_the_contract() -> None:
    """The statuses that the contract says to run again are successes; others are not restarted."""
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


def test_stop_timeout_follows_the_slowest_recent_save(tmp_path: Path) -> None:
    """TimeoutStopSec is the grace period plus 15 s, or plus three times the slowest save."""
    run = RunDir(tmp_path)
    assert slowest_save(run) is None
    journal = Journal(run.journal_file)
    for seconds in (99.0, *[5.0] * 19, 7.5, None):
        journal.write(JournalEvent.CHECKPOINT_PUBLISHED, 1, seconds=seconds)
    assert slowest_save(run) == 7.5
    assert [stop_seconds(30.0, save) for save in (None, 1.0, 7.5)] == [45, 45, 53]


def test_stop_timeout_uses_the_saves_of_an_existing_run(tmp_path: Path) -> None:
    """The unit of an existing run allows for the duration of its saves."""
    run = RunDir(tmp_path / "run")
    run.create()
    Journal(run.journal_file).write(JournalEvent.CHECKPOINT_PUBLISHED, 1, seconds=20.0)
    text = print_unit("--run-dir", "run", "--grace", "40s", "--", "true", directory=tmp_path)
    assert "\nTimeoutStopSec=100\n" in text
    assert "which took up to 20.0 s" in text


def test_unit_of_a_command_is_complete(tmp_path: Path) -> None:
    """The unit has absolute paths, the run directory and the options."""
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
def test_invalid_unit_names_are_refused(name: str) -> None:
    """A name that is invalid for a unit or a state directory is refused."""
    with pytest.raises(ConfigError, match="cannot name a unit"):
        check_unit_name(name)


@pytest.mark.parametrize("value", [" /a", "/a\n", "/a\\", "/a\x01b"])
def test_values_that_a_unit_cannot_contain_are_refused(value: str) -> None:
    """A directory that cannot be written into a unit is refused and not changed."""
    with pytest.raises(ConfigError, match="cannot write"):
        escape_value(value)


def test_words_that_are_not_utf_8_are_refused() -> None:
    """An argument that is not UTF-8 cannot be written into a unit."""
    with pytest.raises(ConfigError, match="not UTF-8"):
        quote_command([json.loads('"\\udcff"')])
