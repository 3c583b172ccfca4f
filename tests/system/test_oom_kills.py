"""OOM kills are counted under control groups of both versions."""

import os
from pathlib import Path

import pytest

from orchestrator.system.oom_kills import OomKillCounter
from tests.system.support import set_groups

EVENTS = {1: "memory/job/memory.oom_control", 2: "job/memory.events"}


def write_oom_kills(root: Path, file: str, count: int) -> None:
    path = root / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"low 3\noom 9\noom_kill {count}\n")


@pytest.mark.parametrize(("version", "line"), [(1, "4:memory:/job"), (2, "0::/job")])
def test_oom_kills_of_the_process_s_group_are_counted(
    tmp_path: Path, version: int, line: str
) -> None:
    """Kills since the first sample count, also after the process has ended."""
    set_groups(tmp_path, line)
    events = f"sys/fs/cgroup/{EVENTS[version]}"
    write_oom_kills(tmp_path, events, 5)
    kills = OomKillCounter(os.getpid(), tmp_path)
    (tmp_path / "proc" / str(os.getpid())).symlink_to("self")
    kills.sample()
    assert kills.recent_kills() == 0
    (tmp_path / "proc/self/cgroup").unlink()
    write_oom_kills(tmp_path, events, 7)
    assert kills.recent_kills() == 2


def test_old_oom_kills_are_forgotten(tmp_path: Path) -> None:
    """Kills before the oldest kept sample do not count."""
    set_groups(tmp_path, "0::/job")
    (tmp_path / "proc/17").symlink_to("self")
    write_oom_kills(tmp_path, "sys/fs/cgroup/job/memory.events", 0)
    kills = OomKillCounter(17, tmp_path)
    kills.sample()
    write_oom_kills(tmp_path, "sys/fs/cgroup/job/memory.events", 1)
    kills.sample()
    assert kills.recent_kills() == 1
    for _ in range(20):
        kills.sample()
    assert kills.recent_kills() == 0


def test_oom_kills_follow_a_process_to_another_group(tmp_path: Path) -> None:
    """Kills that a group had counted before the process joined it do not count."""
    set_groups(tmp_path, "0::/job")
    (tmp_path / "proc/17").symlink_to("self")
    for name, count in (("job", 0), ("other", 3)):
        write_oom_kills(tmp_path, f"sys/fs/cgroup/{name}/memory.events", count)
    kills = OomKillCounter(17, tmp_path)
    kills.sample()
    (tmp_path / "proc/self/cgroup").write_text("0::/other\n")
    kills.sample()
    assert kills.recent_kills() == 0
    write_oom_kills(tmp_path, "sys/fs/cgroup/other/memory.events", 4)
    assert kills.recent_kills() == 1


def test_oom_kills_without_a_group_are_the_system_s(tmp_path: Path) -> None:
    """Without a readable group counter the counter of the whole system is used."""
    set_groups(tmp_path, "0::/")
    write_oom_kills(tmp_path, "proc/vmstat", 1)
    kills = OomKillCounter(17, tmp_path)
    kills.sample()
    write_oom_kills(tmp_path, "proc/vmstat", 2)
    assert kills.recent_kills() == 1
