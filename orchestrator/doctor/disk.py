"""The disk below a run directory: kind, locks, room, speed, and its clock."""

import fcntl
import mmap
import os
import secrets
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.checkpoint.retention import DEFAULT_KEEP
from orchestrator.doctor.findings import Finding, Level, Subject
from orchestrator.system.capabilities import Capability, is_available
from orchestrator.system.durable import Disk
from orchestrator.system.units import duration_text, size_text

MOUNTS = Path("/proc/self/mountinfo")
NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb3", "lustre", "ceph", "fuse.sshfs", "9p", "afs"})
IN_MEMORY = frozenset({"tmpfs", "ramfs"})
# Locks of one host are then not seen by others.
LOCAL_LOCKS = ("nolock", "local_lock=all", "local_lock=flock")

TRIAL_BYTES = 128 << 20
TRIAL_SECONDS = 3.0
PIECE_BYTES = 16 << 20
SKEW_SECONDS = 5.0
# Of the free space, what the trial may take.
TRIAL_SHARE = 0.1
SLOW_BYTES_PER_SECOND = 50e6


def filesystem(subject: Subject) -> Finding:
    """Its type, and whether a lock on it keeps a second supervisor away."""
    kind, options = mount_of(subject.directory)
    if problem := _lock_problem(subject.directory):
        advice = "put the run directory on a filesystem that has flock"
        return Finding("filesystem", Level.FAIL, f"{kind}: {problem}", advice)
    if kind in IN_MEMORY:
        advice = "checkpoints there are gone after a reboot: use a disk"
        return Finding("filesystem", Level.WARN, f"{kind}, which is memory", advice)
    local = [option for option in LOCAL_LOCKS if option in options]
    if kind in NETWORK and local:
        advice = f"mount it without {local[0]}, or never start the same run on two hosts"
        text = f"{kind}: locks hold on this host only"
        return Finding("filesystem", Level.WARN, text, advice)
    note = "; flock works here, see to it that it does between hosts" if kind in NETWORK else ""
    return Finding("filesystem", Level.OK, f"{kind}{note or '; flock works'}")


def free_space(subject: Subject) -> Finding:
    """The room for what --keep asks for, with one more that is being written."""
    room = os.statvfs(subject.directory)
    free = room.f_bavail * room.f_frsize
    size = subject.checkpoint_bytes
    if room.f_files and not room.f_favail:
        return Finding("free space", Level.FAIL, "no inodes left", "delete files there")
    if size is None:
        text = f"{size_text(free)} free; what a checkpoint takes is known after the first"
        return Finding("free space", Level.OK, text)
    best = subject.config.keep_best
    count = (subject.config.keep or DEFAULT_KEEP) + (best.count if best else 0)
    # While the next is written, none has been deleted yet; a stop has a reserve as large.
    needed = (count + 2) * size - subject.kept_bytes
    text = f"{size_text(free)} free; --keep takes {count} checkpoints of {size_text(size)}"
    if free < size:
        advice = "free some: not even one more checkpoint can be written"
        return Finding("free space", Level.FAIL, text, advice)
    if free < needed:
        advice = f"free {size_text(needed - free)}, or lower --keep"
        return Finding("free space", Level.WARN, text, advice)
    return Finding("free space", Level.OK, text)


def speed(subject: Subject) -> Iterator[Finding]:
    """What a checkpoint's write reaches, past the page cache and through it."""
    room = os.statvfs(subject.directory)
    size = min(TRIAL_BYTES, int(TRIAL_SHARE * room.f_bavail * room.f_frsize))
    if size < PIECE_BYTES:
        yield Finding("disk speed", Level.WARN, "not measured: too little room", "free some space")
        return
    rates = {}
    for name, is_direct in (("O_DIRECT", True), ("buffered", False)):
        try:
            rates[name] = _measure(subject.directory, size, is_direct)
        except OSError as error:
            advice = "mend that, or name another place with --run-dir"
            text = f"cannot write to {subject.directory}: {error.strerror}"
            yield Finding("disk speed", Level.FAIL, text, advice)
            return
    if not is_available(Capability.DIRECT_IO):
        del rates["O_DIRECT"]
    text = ", ".join(f"{name} {size_text(int(rate))}/s" for name, rate in rates.items())
    yield _judge_speed(subject, text, max(rates.values()))


def _judge_speed(subject: Subject, text: str, rate: float) -> Finding:
    if rate < SLOW_BYTES_PER_SECOND:
        advice = "checkpoints of any size will take long there; a local disk would do better"
        return Finding("disk speed", Level.WARN, text, advice)
    if subject.checkpoint_bytes is not None:
        seconds = subject.checkpoint_bytes / rate
        text += f"; a checkpoint takes about {duration_text(seconds)}"
        if seconds > subject.config.grace:
            advice = f"a stop could not save within --grace {subject.config.grace:g} s: raise it"
            return Finding("disk speed", Level.FAIL, text, advice)
    return Finding("disk speed", Level.OK, text)


def clock(subject: Subject) -> Finding:
    """Whether the system and the disk agree on the time, and no checkpoint is of the future."""
    try:
        with _trial_path(subject.directory) as path:
            path.touch()
            skew = abs(path.stat().st_mtime - time.time())
    except OSError as error:
        return Finding("clock", Level.WARN, f"not compared with the disk's: {error.strerror}")
    newest = max((p.stat().st_mtime for p in subject.run.checkpoints.glob("*")), default=0.0)
    ahead = newest - time.time()
    if skew > SKEW_SECONDS or ahead > SKEW_SECONDS:
        text = (
            f"the disk's clock differs by {duration_text(skew)}"
            if skew > SKEW_SECONDS
            else f"the newest checkpoint is {duration_text(ahead)} in the future"
        )
        advice = "have both hosts set by NTP; ages are wrong until then, nothing is lost"
        return Finding("clock", Level.WARN, text, advice)
    return Finding("clock", Level.OK, time.strftime("%Y-%m-%d %H:%M:%S %Z"))


def mount_of(path: Path, mounts: Path = MOUNTS) -> tuple[str, list[str]]:
    """The type and the options of the filesystem that holds a directory."""
    try:
        lines = mounts.read_text().splitlines()
    except OSError:
        return "a filesystem of unknown type", []
    best, found = "", ("a filesystem of unknown type", list[str]())
    for line in lines:
        left, _, right = line.partition(" - ")
        point = left.split()[4].replace("\\040", " ")
        kind, _, options = right.split(" ", 2)
        # Of several on one place the last is what is seen.
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
    """Bytes a second, the sync included."""
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
    """A name for a file that is removed afterwards."""
    path = directory / f".doctor-{secrets.token_hex(4)}"
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
