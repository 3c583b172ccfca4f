"""The findings of the doctor on machines that are fine, and on machines that are not."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.checkpoint.store import Store
from orchestrator.config import Config
from orchestrator.doctor import disk, grace_period, machine
from orchestrator.doctor.findings import CheckedRun, Finding, Level
from orchestrator.doctor.run_checks import CHECKS
from orchestrator.rundir.paths import RunDir
from orchestrator.system.capabilities import ALL, WITHOUT_VARIABLE
from tests.checkpoint.support import STATE_BYTES, new_store, publish
from tests.support import in_child

HUGE = 1 << 60
MOUNTS = """22 27 0:21 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard
30 22 0:30 / /scratch rw,relatime - nfs4 host:/scratch rw,vers=4.2,local_lock=none
31 22 0:31 / /scratch/old rw,relatime - nfs host:/old rw,vers=3,nolock
32 22 0:32 / /with\\040space rw - tmpfs tmpfs rw
"""


def facts_of(root: Path, **measured: Any) -> CheckedRun:
    return CheckedRun(RunDir(root), Config(), **measured)


def only(findings: Any) -> Finding:
    (finding,) = [findings] if isinstance(findings, Finding) else list(findings)
    return finding


@pytest.mark.parametrize(
    ("path", "kind", "option"),
    [
        ("/home/me/runs", "ext4", "discard"),
        ("/scratch/me", "nfs4", "local_lock=none"),
        ("/scratch/old/me", "nfs", "nolock"),
        ("/scratches", "ext4", "rw"),
        ("/with space/run", "tmpfs", "rw"),
    ],
)
def test_filesystem_is_that_of_the_longest_mount(
    tmp_path: Path, path: str, kind: str, option: str
) -> None:
    """The deepest mount above a directory counts, with its options and its filesystem's."""
    (tmp_path / "mounts").write_text(MOUNTS)
    found, options = disk.mount_of(Path(path), tmp_path / "mounts")
    assert found == kind
    assert option in options


@pytest.mark.parametrize(
    ("options", "level"), [("rw,local_lock=none", Level.OK), ("rw,nolock", Level.WARN)]
)
def test_network_filesystem_without_locks_between_hosts_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: str, level: Level
) -> None:
    """A mount option that keeps locks on one host is warned of; otherwise the check is OK."""
    mounts = tmp_path / "mounts"
    mounts.write_text(f"22 27 0:21 / / rw - nfs4 host:/all {options}\n")
    monkeypatch.setattr(disk.mount_of, "__defaults__", (mounts,))
    assert disk.filesystem(facts_of(tmp_path)).level is level


def test_free_space_is_judged_by_what_keep_needs(tmp_path: Path) -> None:
    """OK if the size is unknown or all fit, WARN if not all fit, FAIL if not even one fits."""
    room = os.statvfs(tmp_path)
    free = room.f_bavail * room.f_frsize
    levels = [
        disk.free_space(facts_of(tmp_path, checkpoint_bytes=size)).level
        for size in (None, 1000, free // 3, HUGE)
    ]
    assert levels == [Level.OK, Level.OK, Level.WARN, Level.FAIL]


def test_space_of_existing_checkpoints_is_not_needed_again(tmp_path: Path) -> None:
    """A run that has all its checkpoints needs little more free space."""
    room = os.statvfs(tmp_path)
    size = room.f_bavail * room.f_frsize // 3
    full = facts_of(tmp_path, checkpoint_bytes=size, kept_bytes=3 * size)
    assert disk.free_space(full).level is Level.OK


def test_disk_too_slow_for_the_grace_period_fails(tmp_path: Path) -> None:
    """A disk on which a stop could not save in time is a FAIL."""
    finding = only(disk.speed(facts_of(tmp_path, checkpoint_bytes=HUGE)))
    assert finding.level is Level.FAIL
    assert "O_DIRECT" in finding.text
    assert "buffered" in finding.text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("size", "level"), [(1000, Level.OK), (HUGE, Level.WARN)])
def test_memory_is_judged_by_two_snapshots(tmp_path: Path, size: int, level: Level) -> None:
    """Memory for fewer than two snapshots is warned of."""
    assert machine.memory(facts_of(tmp_path, checkpoint_bytes=size)).level is level


def test_limits_are_named_with_the_command_that_raises_them(tmp_path: Path) -> None:
    """A file size limit below a checkpoint's size is a FAIL, few open files are a WARN."""

    def look() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
        found = list(machine.limits(facts_of(tmp_path, checkpoint_bytes=2000)))
        assert [finding.level for finding in found] == [Level.WARN, Level.FAIL]
        assert "ulimit -n" in found[0].advice

    assert in_child(look) == 0


def test_missing_system_features_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each missing feature has a line that says what is done without it."""
    assert only(machine.capabilities(facts_of(tmp_path))).level is Level.OK
    monkeypatch.setenv(WITHOUT_VARIABLE, ALL)
    found = list(machine.capabilities(facts_of(tmp_path)))
    assert {finding.level for finding in found} == {Level.WARN}
    assert any("memfd" in finding.text for finding in found)


@pytest.mark.parametrize(
    ("variable", "program", "answer", "seconds"),
    [
        ("SLURM_JOB_ID", "scontrol", "KeepAliveTime = SYSTEM\nKillWait   = 30 sec\n", 30.0),
        ("SLURM_JOB_ID", "scontrol", "", None),
        ("INVOCATION_ID", "systemctl", "1min 30s\n", 90.0),
        ("INVOCATION_ID", "systemctl", "infinity\n", float("inf")),
        ("INVOCATION_ID", "systemctl", "", None),
        ("HOME", "systemctl", "1min 30s\n", None),
    ],
)
def test_grace_period_of_the_host_is_read_from_slurm_or_systemd(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    program: str,
    answer: str,
    seconds: float | None,
) -> None:
    """A SLURM job asks scontrol, a systemd unit systemctl; without an answer it is unknown."""
    (tmp_path / "answer").write_text(answer)
    (tmp_path / "group").write_text("0::/system.slice/train@a.service\n")
    (tmp_path / program).write_text(f"#!/bin/sh\ncat {tmp_path}/answer\n")
    (tmp_path / program).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(grace_period, "OWN_GROUP", tmp_path / "group")
    assert grace_period.host_grace({variable: "1"})[1] == seconds


def test_sizes_are_read_from_the_run(tmp_path: Path) -> None:
    """The size of the newest checkpoint and the size of all are read from an existing run."""
    store = new_store(tmp_path)
    for step in (1, 2):
        publish(store, step)
    assert CheckedRun.read(store.run, Config()).checkpoint_bytes is None
    Store.open(store.run, ["train"])
    learned = CheckedRun.read(store.run, Config())
    assert (learned.checkpoint_bytes, learned.kept_bytes) == (STATE_BYTES, 2 * STATE_BYTES)


def doctor(root: Path, *options: str, **popen: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "orchestrator", "doctor", *options]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=90, **popen)


@pytest.mark.processes
def test_report_has_each_check_and_leaves_no_file_behind(tmp_path: Path) -> None:
    """In a directory without a run, every check has a finding and none fails."""
    said = doctor(tmp_path, "--json")
    assert said.returncode == 0, said.stdout
    found = json.loads(said.stdout)
    assert len({finding["check"] for finding in found}) == len(CHECKS)
    assert {*found[0]} == {"check", "level", "text", "advice"}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.processes
def test_failing_check_ends_with_78_and_says_what_to_do(tmp_path: Path) -> None:
    """Where no file may be large enough, the line says FAIL and the next one what to do."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    said = doctor(tmp_path, "new-run", preexec_fn=limit)
    assert said.returncode == 78
    lines = said.stdout.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("FAIL"))
    assert "cannot write" in lines[at]
    assert "-> " in lines[at + 1]
