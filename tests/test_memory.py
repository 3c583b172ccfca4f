"""How much memory may be taken, under control groups of both versions."""

from pathlib import Path

import psutil
import pytest

from orchestrator.memory import available_bytes

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
