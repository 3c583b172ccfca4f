"""Collects the stacks of all threads of a hung trainer and its descendants, for stacks.txt.

The session makes faulthandler handle DUMP_SIGNAL. That handler is written in C, so that it answers
even if the main thread never returns to Python. It writes to memory of the supervisor, because the
disk may be what hangs. Children that were forked later have the handler too. For the others, and
for those that cannot answer, the kernel's view is recorded.
"""

import contextlib
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path

from orchestrator.ipc.messages import DUMP_SIGNAL
from orchestrator.rundir.paths import run_root_above
from orchestrator.system.capabilities import Capability, is_available
from orchestrator.system.durable import replace_file
from orchestrator.system.process_tree import Process, kernel_wait_function

ANSWER_SECONDS = 1.0
# An answer that has not grown for this long is complete.
SETTLED_SECONDS = 0.05
POLL_SECONDS = 0.005
LONGEST_ANSWER_BYTES = 1 << 22
# A process tree may be large, and the restart waits for all answers.
ALL_ANSWERS_SECONDS = 10.0


def write(file: Path, pids: Iterable[int], dump: int | None) -> None:
    """Write a section for each process to ``file``. Raises OSError.

    ``dump`` is the descriptor that their handlers write to; it is closed. With None no process is
    sent a signal.
    """
    try:
        text = _collect(pids, dump)
    finally:
        if dump is not None:
            os.close(dump)
    content = text.encode(errors="backslashreplace")
    replace_file(file, content, below=run_root_above(file))


def _collect(pids: Iterable[int], dump: int | None) -> str:
    deadline = time.monotonic() + ALL_ANSWERS_SECONDS
    sections = []
    for pid in pids:
        if (process := Process.read(pid)) is None or process.is_dead:
            continue
        answer = ""
        if dump is not None and _can_answer(process) and time.monotonic() < deadline:
            answer = _ask(process, dump)
        heading = f"=== process {pid} ({process.name}), {process.describe_state()}"
        sections.append(f"{heading}\n\n{answer or _seen_from_outside(pid)}\n")
    return "\n".join(sections)


def _can_answer(process: Process) -> bool:
    """Return whether the process catches DUMP_SIGNAL, does not block it, and can be woken up."""
    if not is_available(Capability.PROC) or process.state in "Dt":
        return False
    bit = 1 << (DUMP_SIGNAL - 1)
    masks = {}
    with contextlib.suppress(OSError, ValueError):
        for line in Path(f"/proc/{process.pid}/status").read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key in ("SigCgt", "SigBlk"):
                masks[key] = int(value, 16)
    return bool(masks.get("SigCgt", 0) & bit and not masks.get("SigBlk", 0) & bit)


def _ask(process: Process, dump: int) -> str:
    begin = size = os.fstat(dump).st_size
    try:
        os.kill(process.pid, DUMP_SIGNAL)
        if process.state == "T":
            os.kill(process.pid, signal.SIGCONT)
    except OSError:
        return ""
    changed = time.monotonic()
    while time.monotonic() - changed < (SETTLED_SECONDS if size > begin else ANSWER_SECONDS):
        time.sleep(POLL_SECONDS)
        if (now := os.fstat(dump).st_size) != size:
            size, changed = now, time.monotonic()
    # The processes share the memory, and may have changed its size at will.
    length = min(max(0, size - begin), LONGEST_ANSWER_BYTES)
    return os.pread(dump, length, begin).decode(errors="replace")


def _seen_from_outside(pid: int) -> str:
    """Return the state of each thread, and where it is in the kernel, as far as readable."""
    lines = ["(no Python stacks: the process cannot answer, or has no session)"]
    with contextlib.suppress(OSError):
        for thread in sorted(os.listdir(f"/proc/{pid}/task"), key=int):
            if (facts := Process.read(int(thread))) is None:
                continue
            directory = Path(f"/proc/{pid}/task/{thread}")
            function = kernel_wait_function(directory)
            lines.append(f"thread {thread} ({facts.name}), {facts.state} {function}".rstrip())
            with contextlib.suppress(OSError):  # only root may read it
                kernel = (directory / "stack").read_text().splitlines()
                lines += [f"    {line}" for line in kernel]
    return "\n".join(lines)
