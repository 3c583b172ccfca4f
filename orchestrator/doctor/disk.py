"""The checks of the disk that holds a run directory: locks, free space, speed, clock."""

import fcntl
import mmap
import os
import secrets
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from orchestrator.checkpoint.retention import DEFAULT_KEEP
from orchestrator.doctor.findings import CheckedRun, Finding, Level
from orchestrator.system.capabilities import Capability, is_available
from orchestrator.system.durable import Disk
from orchestrator.system.units import duration_text, size_text

MOUNTS = Path("/proc/self/mountinfo")
NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb3", "lustre", "ceph", "fuse.sshfs", "9p", "afs"})
IN_MEMORY = frozenset({"tmpfs", "ramfs"})
# With one of these mount options, other hosts do not see the locks of this one.
LOCAL_LOCKS = ("nolock", "local_lock=all", "local_lock=flock")

TRIAL_BYTES = 128 << 20
TRIAL_SECONDS = 3.0
PIECE_BYTES = 16 << 20
SKEW_SECONDS = 5.0
# The share of the free space that the measurement may use.
TRIAL_SHARE = 0.1
SLOW_BYTES_PER_SECOND = 50e6


def filesystem(facts: CheckedRun) -> Finding:
    """Check that a lock on the filesystem keeps a second supervisor away."""
    kind, options = mount_of(facts.directory)
    if problem := _lock_problem(facts.directory):
        advice = "put the run directory on a filesystem that has flock"
        return Finding("filesystem", Level.FAIL, f"{kind}: {problem}", advice)
    if kind in IN_MEMORY:
        advice = "a reboot deletes the checkpoints there: put the run directory on a disk"
        return Finding("filesystem", Level.WARN, f"{kind}, which is memory", advice)
    local = [option for option in LOCAL_LOCKS if option in options]
    if kind in NETWORK and local:
        advice = f"mount it without {local[0]}, or never start the same run on two hosts"
        text = f"{kind}: a lock does not hold on other hosts"
        return Finding("filesystem", Level.WARN, text, advice)
    note = ", between hosts only if the server supports it" if kind in NETWORK else ""
    return Finding("filesystem", Level.OK, f"{kind}; flock works{note}")


def free_space(facts: CheckedRun) -> Finding:
    """Check that the checkpoints that --keep asks for fit, and one more that is being written."""
    room = os.statvfs(facts.directory)
    free = room.f_bavail * room.f_frsize
    size = facts.checkpoint_bytes
    if room.f_files and not room.f_favail:
        return Finding("free space", Level.FAIL, "no inodes left", "delete files on this disk")
    if size is None:
        text = f"{size_text(free)} free; the size of a checkpoint is known after the first one"
        return Finding("free space", Level.OK, text)
    best = facts.config.keep_best
    count = (facts.config.keep or DEFAULT_KEEP) + (best.count if best else 0)
    # The next one is written before one is deleted, and a stop has a reserve of the same size.
    needed = (count + 2) * size - facts.kept_bytes
    text = f"{size_text(free)} free; --keep takes {count} checkpoints of {size_text(size)}"
    if free < size:
        advice = f"free {size_text(needed - free)}: not even one more checkpoint fits"
        return Finding("free space", Level.FAIL, text, advice)
    if free < needed:
        advice = f"free {size_text(needed - free)}, or lower --keep"
        return Finding("free space", Level.WARN, text, advice)
    return Finding("free space", Level.OK, text)


def speed(facts: CheckedRun) -> Iterator[Finding]:
    """Measure the speed of a write of up to 128 MiB, with O_DIRECT and buffered."""
    room = os.statvfs(facts.directory)
    size = min(TRIAL_BYTES, int(TRIAL_SHARE * room.f_bavail * room.f_frsize))
    if size < PIECE_BYTES:
        text = "not measured: too little free space"
        yield Finding("disk speed", Level.WARN, text, "free some space")
        return
    rates = {}
    for name, is_direct in (("O_DIRECT", True), ("buffered", False)):
        try:
            rates[name] = _measure(facts.directory, size, is_direct)
        except OSError as error:
            advice = "fix this, or name another directory with --run-dir"
            text = f"cannot write to {facts.directory}: {error.strerror}"
            yield Finding("disk speed", Level.FAIL, text, advice)
            return
    if not is_available(Capability.DIRECT_IO):
        del rates["O_DIRECT"]
    text = ", ".join(f"{name} {size_text(int(rate))}/s" for name, rate in rates.items())
    yield _judge_speed(facts, text, max(rates.values()))


def _judge_speed(facts: CheckedRun, text: str, rate: float) -> Finding:
    if rate < SLOW_BYTES_PER_SECOND:
        advice = "checkpoints take long to write there; put the run directory on a faster disk"
        return Finding("disk speed", Level.WARN, text, advice)
    if facts.checkpoint_bytes is not None:
        seconds = facts.checkpoint_bytes / rate
        text += f"; a checkpoint takes about {duration_text(seconds)}"
        if seconds > facts.config.grace:
            advice = f"a stop could not save within --grace {facts.config.grace:g} s: raise --grace"
            return Finding("disk speed", Level.FAIL, text, advice)
    return Finding("disk speed", Level.OK, text)


def clock(facts: CheckedRun) -> Finding:
    """Check that the clocks of system and disk agree, and that no checkpoint is in the future."""
    try:
        with _trial_path(facts.directory) as path:
            path.touch()
            skew = abs(path.stat().st_mtime - time.time())
            newest = _newest_change(facts.run.checkpoints)
    except OSError as error:
        text = f"not compared with the disk's clock: {error.strerror}"
        return Finding("clock", Level.WARN, text, "make the run directory writable")
    ahead = newest - time.time()
    if skew > SKEW_SECONDS or ahead > SKEW_SECONDS:
        text = (
            f"the disk's clock differs by {duration_text(skew)}"
            if skew > SKEW_SECONDS
            else f"the newest checkpoint is {duration_text(ahead)} in the future"
        )
        advice = "set the clocks of both hosts by NTP; until then only the ages shown are wrong"
        return Finding("clock", Level.WARN, text, advice)
    return Finding("clock", Level.OK, time.strftime("%Y-%m-%d %H:%M:%S %Z"))


def _newest_change(directory: Path) -> float:
    """Return the newest time of change of what a directory holds; 0 if it holds nothing."""
    newest = 0.0
    for path in directory.glob("*"):
        with suppress(FileNotFoundError):  # a run that trains has deleted it
            newest = max(newest, path.lstat().st_mtime)
    return newest


def mount_of(path: Path, mounts: Path = MOUNTS) -> tuple[str, list[str]]:
    """Return the type and the mount options of the filesystem that holds a directory."""
    try:
        lines = mounts.read_text().splitlines()
    except OSError:
        return "a filesystem of unknown type", []
    best, found = "", ("a filesystem of unknown type", list[str]())
    for line in lines:
        left, _, right = line.partition(" - ")
        point = left.split()[4].replace("\\040", " ")
        kind, _, options = right.split(" ", 2)
        # Of several mounts on one directory, the last one is visible.
        if path.is_relative_to(point) and len(point) >= len(best):
            best = point
            found = kind, [*left.split()[5].split(","), *options.split()[-1].split(",")]
    return found


def _lock_problem(directory: Path) -> str:
    try:
        with tempfile.TemporaryFile(dir=directory) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except PermissionError as error:
        return error.strerror or ""
    except OSError as error:
        return f"it cannot be locked ({error.strerror})"
    return ""


def _measure(directory: Path, size: int, is_direct: bool) -> float:
    """Return the speed of a write in bytes a second, including the sync."""
    disk = Disk()
    piece = mmap.mmap(-1, PIECE_BYTES)  # page-aligned, as O_DIRECT asks
    piece.write(os.urandom(1 << 20) * (PIECE_BYTES >> 20))
    with _trial_path(directory) as path:
        file = disk.create_direct(path) if is_direct else disk.create(path)
        began, done = time.monotonic(), 0
        with file:
            while done < size and time.monotonic() - began < TRIAL_SECONDS:
                file.write(piece)
                done += PIECE_BYTES
            disk.sync(file)
        return done / (time.monotonic() - began)


@contextmanager
def _trial_path(directory: Path) -> Iterator[Path]:
    """Yield the path of a temporary file, and remove the file afterwards."""
    path = directory / f".doctor-{secrets.token_hex(4)}"
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
