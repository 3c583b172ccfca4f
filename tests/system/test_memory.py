"""How much memory may be taken, under control groups of both versions."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from orchestrator.system.memory import OomKills, available_bytes, limit_bytes, tree_bytes

MIB = 1 << 20


def group(root: Path, place: str, **files: object) -> None:
    directory = root / "sys/fs/cgroup" / place
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (directory / name.replace("__", ".")).write_text(f"{content}\n")


def belongs_to(root: Path, *lines: str) -> None:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text("".join(f"{line}\n" for line in lines))


def test_version_2_counts_every_group_above(tmp_path: Path) -> None:
    """The tightest of the nested limits counts, without the file cache that can be dropped."""
    belongs_to(tmp_path, "0::/job/step")
    group(
        tmp_path,
        "job",
        memory__max=100 * MIB,
        memory__current=70 * MIB,
        memory__stat=f"anon 1\ninactive_file {20 * MIB}",
    )
    group(tmp_path, "job/step", memory__max="max", memory__current=1, memory__stat="anon 1")
    assert available_bytes(tmp_path) == 50 * MIB


def test_version_1_counts_the_memory_controller(tmp_path: Path) -> None:
    """The limit of the memory hierarchy counts, whatever other hierarchies say."""
    belongs_to(tmp_path, "9:name=systemd:/x", "5:cpu,memory:/job", "0::/")
    group(
        tmp_path,
        "memory/job",
        memory__limit_in_bytes=100 * MIB,
        memory__usage_in_bytes=30 * MIB,
        memory__stat=f"total_inactive_file {10 * MIB}",
    )
    assert available_bytes(tmp_path) == 80 * MIB


def test_container_sees_its_group_at_the_top(tmp_path: Path) -> None:
    """A path of the host that does not exist in here means the group that is mounted."""
    belongs_to(tmp_path, "0::/host/path/of/the/container")
    stat = {"memory__current": 30 * MIB, "memory__stat": "inactive_file 0"}
    group(tmp_path, ".", memory__max=100 * MIB, **stat)
    assert available_bytes(tmp_path) == 70 * MIB


@pytest.mark.parametrize("lines", [(), ("0::/",), ("4:memory:/x",)])
def test_without_a_limit_the_system_decides(tmp_path: Path, lines: tuple[str, ...]) -> None:
    """No control group, or none with a limit, leaves what the system has."""
    if lines:
        belongs_to(tmp_path, *lines)
    group(tmp_path, "memory/x", memory__limit_in_bytes=(1 << 63) - 4096)
    assert 0 < available_bytes(tmp_path) <= psutil.virtual_memory().total


def test_overdrawn_group_has_nothing_left(tmp_path: Path) -> None:
    """More used than allowed is nothing left, not less than nothing."""
    belongs_to(tmp_path, "0::/")
    usage = {"memory__current": 30 * MIB, "memory__stat": "anon 1"}
    group(tmp_path, ".", memory__max=20 * MIB, **usage)
    assert available_bytes(tmp_path) == 0


def test_tightest_limit_of_a_process(tmp_path: Path) -> None:
    """The least that the group of a process, or one above it, allows; None without a limit."""
    belongs_to(tmp_path, "0::/job/step")
    (tmp_path / "proc/17").symlink_to("self")
    group(tmp_path, "job", memory__max=100 * MIB)
    group(tmp_path, "job/step", memory__max="max")
    assert limit_bytes(17, tmp_path) == 100 * MIB
    assert limit_bytes(18, tmp_path) is None


EVENTS = {1: "memory/job/memory.oom_control", 2: "job/memory.events"}


def count_oom_kills(root: Path, file: str, count: int) -> None:
    place = root / file
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(f"low 3\noom 9\noom_kill {count}\n")


@pytest.mark.parametrize(("version", "line"), [(1, "4:memory:/job"), (2, "0::/job")])
def test_oom_kills_of_the_own_group_count(tmp_path: Path, version: int, line: str) -> None:
    """The difference to the first look counts, also after the process is gone."""
    belongs_to(tmp_path, line)
    events = f"sys/fs/cgroup/{EVENTS[version]}"
    count_oom_kills(tmp_path, events, 5)
    kills = OomKills(os.getpid(), tmp_path)
    (tmp_path / "proc" / str(os.getpid())).symlink_to("self")
    kills.look()
    assert kills.recent() == 0
    (tmp_path / "proc/self/cgroup").unlink()
    count_oom_kills(tmp_path, events, 7)
    assert kills.recent() == 2


def test_oom_kills_of_long_ago_are_forgotten(tmp_path: Path) -> None:
    """What was killed many looks ago is not why the process ends now."""
    belongs_to(tmp_path, "0::/job")
    (tmp_path / "proc/17").symlink_to("self")
    count_oom_kills(tmp_path, "sys/fs/cgroup/job/memory.events", 0)
    kills = OomKills(17, tmp_path)
    kills.look()
    count_oom_kills(tmp_path, "sys/fs/cgroup/job/memory.events", 1)
    kills.look()
    assert kills.recent() == 1
    for _ in range(20):
        kills.look()
    assert kills.recent() == 0


def test_group_that_a_process_moves_to_is_followed(tmp_path: Path) -> None:
    """What a group had counted before the process came is not held against it."""
    belongs_to(tmp_path, "0::/job")
    (tmp_path / "proc/17").symlink_to("self")
    for name, count in (("job", 0), ("other", 3)):
        count_oom_kills(tmp_path, f"sys/fs/cgroup/{name}/memory.events", count)
    kills = OomKills(17, tmp_path)
    kills.look()
    (tmp_path / "proc/self/cgroup").write_text("0::/other\n")
    kills.look()
    assert kills.recent() == 0
    count_oom_kills(tmp_path, "sys/fs/cgroup/other/memory.events", 4)
    assert kills.recent() == 1


def test_without_a_group_the_system_counts(tmp_path: Path) -> None:
    """Where no counter of a group can be read, that of the kernel is."""
    belongs_to(tmp_path, "0::/")
    count_oom_kills(tmp_path, "proc/vmstat", 1)
    kills = OomKills(17, tmp_path)
    kills.look()
    count_oom_kills(tmp_path, "proc/vmstat", 2)
    assert kills.recent() == 1


def test_memory_of_a_tree_is_that_of_all_its_processes() -> None:
    """What a child holds counts; a process that is gone holds nothing."""
    code = "x = bytearray(64 << 20); print('held', flush=True); input()"
    before = tree_bytes(os.getpid())
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"held\n"
    assert tree_bytes(child.pid) > 64 * MIB
    assert tree_bytes(os.getpid()) - before > 64 * MIB
    child.communicate(b"\n")
    assert tree_bytes(child.pid) == 0
