"""What people read while a stop is under way: what happens, how long it may take, how to hurry."""

import asyncio
import math
import signal
from collections.abc import Callable

import structlog

from orchestrator.ipc.control_page import Phase
from orchestrator.supervisor.attempt.attempt import Attempt

TICK_SECONDS = 1.0
HURRYING = "not waiting for a safe point: ending the trainer, saving its newest snapshot"


def tell(source: str, patience_seconds: float, has_session: bool) -> None:
    """Of a request to stop: what happens, how long it may take, how to hurry it."""
    name = "Ctrl-C" if source == signal.SIGINT.name else source
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
            f"{'Ctrl-C' if name == 'Ctrl-C' else 'the same signal'} again: do not wait for that; "
            "a third time: kill at once",
        ],
        source=source,
        patience_seconds=patience_seconds,
    )


def hurrying(attempt: Attempt) -> str:
    """What a second request does."""
    return HURRYING if attempt.connected else "not waiting for the command's end: killing it"


def late(attempt: Attempt) -> str:
    """What has not come when the deadline is there."""
    if not attempt.connected:
        return "the command did not end in time"
    return "the safe point or the save did not come in time"


def awaited(attempt: Attempt) -> str:
    """What a stop waits for."""
    if attempt.peer is None:
        return "waiting for the command's end"
    return "saving" if attempt.page.phase is Phase.SAVE else "waiting for the safe point"


class Countdown:
    """Shows what is waited for, and the seconds that are left for it."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show = show
        self._next: asyncio.TimerHandle | None = None

    def begin(self, seconds: float, text: Callable[[], str]) -> None:
        """Count down from now, in place of what was counted before."""
        self.end()
        loop = asyncio.get_running_loop()
        ends = loop.time() + seconds

        def tick() -> None:
            left = max(0.0, ends - loop.time())
            self._show(f"{text()}: {math.ceil(left)} s left")
            if left > 0:
                self._next = loop.call_later(min(left, TICK_SECONDS), tick)

        tick()

    def end(self) -> None:
        """Take it away."""
        if self._next is not None:
            self._next.cancel()
            self._next = None
        self._show("")
