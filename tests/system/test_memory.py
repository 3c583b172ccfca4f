"""Available memory under control groups of both versions."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from orchestrator.system.memory import (
    available_bytes,
    limit_bytes,
    memory_limited,
    process_tree_bytes,
)
from tests.system.support import make_group, set_groups

MIB = 1 << 20


def test_version_2_applies_the_limit_of_every_group(tmp_path: Path) -> None:
    """The tightest of the nested limits counts, without the file cache that can be dropped."""
    set_groups(tmp_path, "0::/job/step")
    make_group(
        tmp_path,
        "job",
        memory__max=100 * MIB,
        memory__current=70 * MIB,
        memory__stat=f"anon 1\ninactive_file {20 * MIB}",
    )
    make_group(tmp_path, "job/step", memory__max="max", memory__current=1, memory__stat="anon 1")
    assert available_bytes(tmp_path) == 50 * MIB


def test_version_1_applies_the_limit_of_the_memory_controller(tmp_path: Path) -> None:
    """The limit of the memory hierarchy counts, whatever the other hierarchies say."""
    set_groups(tmp_path, "9:name=systemd:/x", "5:cpu,memory:/job", "0::/")
    make_group(
        tmp_path,
        "memory/job",
        memory__limit_in_bytes=100 * MIB,
        memory__usage_in_bytes=30 * MIB,
        memory__stat=f"total_inactive_file {10 * MIB}",
    )
    assert available_bytes(tmp_path) == 80 * MIB


def test_path_of_the_host_means_the_mounted_group_in_a_container(tmp_path: Path) -> None:
    """A group path that exists only on the host stands for the group that is mounted."""
    set_groups(tmp_path, "0::/host/path/of/the/container")
    stat = {"memory__current": 30 * MIB, "memory__stat": "inactive_file 0"}
    make_group(tmp_path, ".", memory__max=100 * MIB, **stat)
    assert available_bytes(tmp_path) == 70 * MIB


@pytest.mark.parametrize("lines", [(), ("0::/",), ("4:memory:/x",)])
def test_available_memory_without_a_limit_is_the_system_s(
    tmp_path: Path, lines: tuple[str, ...]
) -> None:
    """Without a limited control group the system's available memory counts."""
    if lines:
        set_groups(tmp_path, *lines)
    make_group(tmp_path, "memory/x", memory__limit_in_bytes=(1 << 63) - 4096)
    assert 0 < available_bytes(tmp_path) <= psutil.virtual_memory().total


def test_group_above_its_limit_has_no_memory_available(tmp_path: Path) -> None:
    """A group that uses more than its limit has 0 bytes available, not a negative number."""
    set_groups(tmp_path, "0::/")
    usage = {"memory__current": 30 * MIB, "memory__stat": "anon 1"}
    make_group(tmp_path, ".", memory__max=20 * MIB, **usage)
    assert available_bytes(tmp_path) == 0


def test_memory_limit_is_the_tightest_of_its_groups(tmp_path: Path) -> None:
    """The limit is the minimum over the process's groups; None without a limit."""
    set_groups(tmp_path, "0::/job/step")
    (tmp_path / "proc/17").symlink_to("self")
    make_group(tmp_path, "job", memory__max=100 * MIB)
    make_group(tmp_path, "job/step", memory__max="max")
    assert limit_bytes(17, tmp_path) == 100 * MIB
    assert limit_bytes(18, tmp_path) is None


def test_memory_of_a_tree_includes_its_descendants() -> None:
    """The memory of a child counts; a process that has ended has 0 bytes."""
    code = "x = bytearray(64 << 20); print('held', flush=True); input()"
    before = process_tree_bytes(os.getpid())
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"held\n"
    assert process_tree_bytes(child.pid) > 64 * MIB
    assert process_tree_bytes(os.getpid()) - before > 64 * MIB
    child.communicate(b"\n")
    assert process_tree_bytes(child.pid) == 0


def test_memory_is_limited_inside_the_block_only() -> None:
    """An allocation beyond the limit fails; one within it does not, nor any after the block."""
    with memory_limited(64 * MIB):
        bytearray(16 * MIB)
        with pytest.raises(MemoryError):
            bytearray(128 * MIB)
    bytearray(128 * MIB)


def test_limit_of_the_user_is_not_raised() -> None:
    """A limit that was there before stays, inside the block and after it."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    own = psutil.Process().memory_info().vms + 200 * MIB
    resource.setrlimit(resource.RLIMIT_AS, (own, before[1]))
    try:
        with memory_limited(1 << 40):
            assert resource.getrlimit(resource.RLIMIT_AS)[0] == own
        assert resource.getrlimit(resource.RLIMIT_AS)[0] == own
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
