"""The supervisor as a service: what it tells its manager, and how long it calls itself well.

What it says, and when, is in docs/how-to/systemd.md.
"""

import asyncio
from collections.abc import Callable, Iterable

import structlog

from orchestrator.hosts.systemd.notify import Notifier
from orchestrator.system.heartbeat import Heartbeat
from orchestrator.system.units import duration_text
from orchestrator.telemetry.status import Status

STATUS_SECONDS = 2.0
# Several signs of health fit into the time that the manager waits for one.
WATCHDOG_SHARE = 0.25
# A thread that has not got on with its work for so long never will: the disk is dead, or we err.
STUCK_SECONDS = 1800.0
# A write that got on so recently makes progress; its end, a sync, may then take so long.
PROGRESS_SECONDS = 10.0
EXTENSION_SECONDS = 60


class ServiceWatchdog:
    """Tells the service manager how the run is."""

    def __init__(
        self,
        notifier: Notifier,
        status: Callable[[], Status],
        is_stopping: Callable[[], bool],
        writing: Heartbeat,
        pulses: Callable[[], Iterable[Heartbeat]],
    ) -> None:
        """``writing`` beats while a snapshot is written to disk; ``pulses`` are all that there are.

        Without a manager nothing is asked of any of them.
        """
        self._notifier = notifier
        self._status = status
        self._is_stopping = is_stopping
        self._writing = writing
        self._pulses = pulses
        self._said: set[str] = set()
        self._unheard: list[str] = []
        self._was_well = True
        self._log = structlog.get_logger()

    async def tell(self) -> None:
        """Tell it again and again, until this is cancelled.

        It is the event loop that gets here: no sign of health goes out while something holds it.
        """
        watchdog = self._notifier.watchdog_seconds
        seconds = STATUS_SECONDS if watchdog is None else WATCHDOG_SHARE * watchdog
        while self._notifier.is_heard:
            self._tell_once()
            await asyncio.sleep(min(STATUS_SECONDS, seconds))

    def started(self) -> None:
        """Training is under way."""
        self._say_once("READY=1")

    def ended(self) -> None:
        """The run has ended as it should.

        One that a stop met before its first attempt has been ready all the same: systemd calls it
        a failure when a service ends before it was.
        """
        self._say_once("READY=1")
        self._say_once("STOPPING=1")

    def _tell_once(self) -> None:
        words = [f"STATUS={status_text(self._status())}"]
        if self._is_stopping():
            self._say_once("STOPPING=1")
        if "STOPPING=1" in self._said and _gets_on(self._writing):
            words.append(f"EXTEND_TIMEOUT_USEC={EXTENSION_SECONDS * 1_000_000}")
        if self._is_well():
            words.append("WATCHDOG=1")
        self._repeat_unheard()
        self._notifier.send(*words)

    def _say_once(self, word: str) -> None:
        if word not in self._said:
            self._said.add(word)
            self._unheard.append(word)
            self._repeat_unheard()

    def _repeat_unheard(self) -> None:
        # Each in a message of its own: of several in one, systemd takes the last.
        while self._unheard and self._notifier.send(self._unheard[0]):
            del self._unheard[0]

    def _is_well(self) -> bool:
        well = all((pulse.silent_seconds or 0.0) < STUCK_SECONDS for pulse in self._pulses())
        if self._was_well and not well:
            self._log.error(
                f"a thread has been stuck for {duration_text(STUCK_SECONDS)}: no more "
                "watchdog pings to the service manager"
            )
        self._was_well = well
        return well


def _gets_on(pulse: Heartbeat) -> bool:
    silent = pulse.silent_seconds
    return silent is not None and silent < PROGRESS_SECONDS


def status_text(status: Status) -> str:
    """One line for `systemctl status`."""
    parts = [
        status.state if status.attempt is None else f"{status.state}, attempt {status.attempt}"
    ]
    if status.step is not None:
        parts.append(f"step {status.step}, epoch {status.epoch}")
    if (loss := status.metrics.get("loss")) is not None:
        parts.append(f"loss {loss:.6g}" if isinstance(loss, float) else f"loss {loss}")
    if newest := status.newest_checkpoint:
        parts.append(
            f"checkpoint of step {newest['step']}, {duration_text(newest['age_seconds'])} old"
        )
    else:
        parts.append("no checkpoint yet")
    if status.problem:
        parts.append(status.problem)
    return "; ".join(parts).replace("\n", " ")
