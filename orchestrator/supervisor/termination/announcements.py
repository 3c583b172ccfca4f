"""What people read while a stop is under way: what happens, how long it may take, how to hurry."""

import asyncio
import math
import signal
from collections.abc import Callable

import structlog

from orchestrator.exitcodes import ExitStatus
from orchestrator.supervisor.attempt.attempt import Attempt

TICK_SECONDS = 1.0
HURRYING = "not waiting for a safe point: ending the trainer, saving its newest snapshot"
KILLING = "killing everything now"


def announce_stop(source: str, patience_seconds: float, has_session: bool) -> None:
    """Log what a request to stop does, how long it may take, and how to hurry it."""
    name = "Ctrl-C" if source == signal.SIGINT.name else source
    again, third = f"{'Ctrl-C' if name == 'Ctrl-C' else 'the same signal'} again", "a third time"
    if source not in signal.Signals.__members__:  # a notice or a command, which never escalates
        again, third = "a stop signal", "a second one"
    if has_session:
        now = "saving at the next safe point"
        late = "if no safe point comes, the newest snapshot in memory is saved instead"
    else:
        now = "the command has no session open and is asked to end"
        late = "after that it is killed"
    structlog.get_logger().info(
        f"stopping on {name}: {now}",
        details=[
            f"up to {patience_seconds:.0f} s; {late}",
            f"{again}: do not wait for that; {third}: kill at once",
        ],
        source=source,
        patience_seconds=patience_seconds,
    )


def hurrying(attempt: Attempt) -> str:
    """Return what a second request does."""
    return HURRYING if attempt.connected else "not waiting for the command to end: killing it"


def late(attempt: Attempt) -> str:
    """Return what has not come when the deadline passes."""
    if attempt.hang is not None:
        return "it shows no progress: killing it"
    if not attempt.connected:
        return "the command did not end in time"
    return "the safe point or the save did not come in time"


def awaited(attempt: Attempt) -> str:
    """Return what a stop waits for."""
    if not attempt.has_session:
        waiting = "waiting for the command to end"
        is_saved = attempt.reported_status == ExitStatus.STOPPED_SAVED
        return f"the state is saved; {waiting}" if is_saved else waiting
    return "saving" if attempt.is_saving else "waiting for the safe point"


class Countdown:
    """Shows what a stop waits for, and the seconds that are left for it."""

    def __init__(self, show: Callable[[str], None]) -> None:
        """``show`` prints a line in place of the last one; an empty text removes it."""
        self._show = show
        self._next: asyncio.TimerHandle | None = None

    def begin(self, seconds: float, attempt: Attempt) -> None:
        """Count down from now, instead of what was counted before."""
        self.end()
        loop = asyncio.get_running_loop()
        ends = loop.time() + seconds

        def tick() -> None:
            left = max(0.0, ends - loop.time())
            self._show(f"{awaited(attempt)}: {math.ceil(left)} s left")
            if left > 0:
                self._next = loop.call_later(min(left, TICK_SECONDS), tick)

        tick()

    def end(self) -> None:
        """Remove the line."""
        if self._next is not None:
            self._next.cancel()
            self._next = None
        self._show("")
