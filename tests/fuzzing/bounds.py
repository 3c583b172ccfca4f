"""Limits on what one input may cost its reader."""

import contextlib
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

# An input has some hundred bytes. Both bounds are of this process alone: others do not change them.
MOST_CPU_SECONDS = 5.0
MOST_BYTES = 64 << 20
_PEAK = re.compile(r"^VmHWM:\s+(\d+) kB", re.MULTILINE)


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Fail the block if it takes more processor time or memory than its input can be worth.

    Only for the main thread. Memory is that of Python and of libraries, in pages that were used;
    it is not bounded where the kernel does not tell its peak.
    """

    def fail(_number: int, _frame: FrameType | None) -> None:
        raise AssertionError(f"the input takes more than {MOST_CPU_SECONDS:g} s of processor time")

    handler = signal.signal(signal.SIGVTALRM, fail)
    signal.setitimer(signal.ITIMER_VIRTUAL, MOST_CPU_SECONDS)
    before = _new_peak()
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, handler)
    if before is not None:
        used = _peak() - before
        assert used <= MOST_BYTES, f"the input takes {used} bytes of memory"


def _new_peak() -> int | None:
    """Begin to measure the peak, and return the memory in use; None where that is not possible."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _peak()
    except OSError:
        return None


def _peak() -> int:
    found = _PEAK.search(Path("/proc/self/status").read_text())
    return 0 if found is None else int(found[1]) << 10
