"""What the doctor says about machines that are well, and about those that are not."""

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
from orchestrator.doctor import disk, hosts, machine
from orchestrator.doctor.findings import Finding, Level, Subject
from orchestrator.doctor.page import CHECKS
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


def subject(root: Path, **facts: Any) -> Subject:
    return Subject(RunDir(root), Config(), **facts)


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
    """Of those above a directory, with the options of the mount and of the filesystem."""
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
    """One that has them is not."""
    mounts = tmp_path / "mounts"
    mounts.write_text(f"22 27 0:21 / / rw - nfs4 host:/all {options}\n")
    monkeypatch.setattr(disk.mount_of, "__defaults__", (mounts,))
    assert disk.filesystem(subject(tmp_path)).level is level


def test_free_space_is_judged_by_what_keep_needs(tmp_path: Path) -> None:
    """Nothing known, enough, too little for all of them, too little for one."""
    room = os.statvfs(tmp_path)
    free = room.f_bavail * room.f_frsize
    levels = [
        disk.free_space(subject(tmp_path, checkpoint_bytes=size)).level
        for size in (None, 1000, free // 3, HUGE)
    ]
    assert levels == [Level.OK, Level.OK, Level.WARN, Level.FAIL]


def test_what_lies_there_already_is_not_needed_again(tmp_path: Path) -> None:
    """A run that has all its checkpoints needs room for little more."""
    room = os.statvfs(tmp_path)
    size = room.f_bavail * room.f_frsize // 3
    full = subject(tmp_path, checkpoint_bytes=size, kept_bytes=3 * size)
    assert disk.free_space(full).level is Level.OK


def test_disk_too_slow_for_the_grace_period_fails(tmp_path: Path) -> None:
    """A stop could not save there."""
    finding = only(disk.speed(subject(tmp_path, checkpoint_bytes=HUGE)))
    assert finding.level is Level.FAIL
    assert "O_DIRECT" in finding.text
    assert "buffered" in finding.text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("size", "level"), [(1000, Level.OK), (HUGE, Level.WARN)])
def test_memory_is_judged_by_two_snapshots(tmp_path: Path, size: int, level: Level) -> None:
    """Too little means one, or none."""
    assert machine.memory(subject(tmp_path, checkpoint_bytes=size)).level is level


def test_limits_are_named_with_what_raises_them(tmp_path: Path) -> None:
    """A limit of file sizes under that of a checkpoint fails, few open files are warned of."""

    def look() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
        found = list(machine.limits(subject(tmp_path, checkpoint_bytes=2000)))
        assert [finding.level for finding in found] == [Level.WARN, Level.FAIL]
        assert "ulimit -n" in found[0].advice

    assert in_child(look) == 0


def test_what_the_system_lacks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line for each capability, with what is different."""
    assert only(machine.capabilities(subject(tmp_path))).level is Level.OK
    monkeypatch.setenv(WITHOUT_VARIABLE, ALL)
    found = list(machine.capabilities(subject(tmp_path)))
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
def test_grace_is_asked_of_whoever_would_end_us(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    program: str,
    answer: str,
    seconds: float | None,
) -> None:
    """In a SLURM job and in a systemd unit; where they say nothing it is unknown."""
    (tmp_path / "answer").write_text(answer)
    (tmp_path / "group").write_text("0::/system.slice/train@a.service\n")
    (tmp_path / program).write_text(f"#!/bin/sh\ncat {tmp_path}/answer\n")
    (tmp_path / program).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(hosts, "OWN_GROUP", tmp_path / "group")
    assert hosts.found_grace({variable: "1"})[1] == seconds


def test_past_of_a_run_is_learned_from_it(tmp_path: Path) -> None:
    """What a checkpoint takes, and what all of them do."""
    store = new_store(tmp_path)
    for step in (1, 2):
        publish(store, step)
    assert Subject.look(store.run, Config()).checkpoint_bytes is None
    Store.open(store.run, ["train"])
    learned = Subject.look(store.run, Config())
    assert (learned.checkpoint_bytes, learned.kept_bytes) == (STATE_BYTES, 2 * STATE_BYTES)


def doctor(root: Path, *options: str, **popen: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "orchestrator", "doctor", *options]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=90, **popen)


@pytest.mark.processes
def test_page_has_a_line_for_each_check_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """In a directory without any run, as objects and for people; nothing fails here."""
    said = doctor(tmp_path, "--json")
    assert said.returncode == 0, said.stdout
    found = json.loads(said.stdout)
    assert len({finding["check"] for finding in found}) == len(CHECKS)
    assert {*found[0]} == {"check", "level", "text", "advice"}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.processes
def test_failing_check_ends_with_78_and_says_what_to_do(tmp_path: Path) -> None:
    """Here no file may be large enough."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    said = doctor(tmp_path, "new-run", preexec_fn=limit)
    assert said.returncode == 78
    lines = said.stdout.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("FAIL"))
    assert "cannot write" in lines[at]
    assert "-> " in lines[at + 1]
