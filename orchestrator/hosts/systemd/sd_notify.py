"""Reports readiness, status and watchdog pings to systemd (docs/how-to/systemd.md)."""

import asyncio
from collections.abc import Callable, Iterable

import structlog

from orchestrator.hosts.systemd.notify_socket import Notifier
from orchestrator.system.heartbeat import Heartbeat
from orchestrator.system.units import duration_text
from orchestrator.telemetry.status import Status

STATUS_SECONDS = 2.0
# The interval of the pings as a share of the manager's watchdog timeout.
WATCHDOG_SHARE = 0.25
# A thread without progress for this long is considered stuck, and the watchdog pings stop.
STUCK_SECONDS = 1800.0
# A write whose last progress was this recent is alive. Its last operation, a sync, may then take
# as long as the extension.
PROGRESS_SECONDS = 10.0
EXTENSION_SECONDS = 60


class ServiceNotifications:
    """Reports the state of the run to the service manager."""

    def __init__(
        self,
        notifier: Notifier,
        status: Callable[[], Status],
        is_stopping: Callable[[], bool],
        writing: Heartbeat,
        heartbeats: Callable[[], Iterable[Heartbeat]],
    ) -> None:
        """Use the arguments only if there is a service manager.

        ``writing`` beats while a snapshot is written to disk; ``heartbeats`` returns those of all
        threads.
        """
        self._notifier = notifier
        self._status = status
        self._is_stopping = is_stopping
        self._writing = writing
        self._heartbeats = heartbeats
        self._sent: set[str] = set()
        self._unsent: list[str] = []
        self._was_healthy = True
        self._log = structlog.get_logger()

    async def run(self) -> None:
        """Report repeatedly until cancelled.

        It runs on the event loop, so that a blocked event loop sends no watchdog pings.
        """
        watchdog = self._notifier.watchdog_seconds
        seconds = STATUS_SECONDS if watchdog is None else WATCHDOG_SHARE * watchdog
        while self._notifier.is_connected:
            self._send_status()
            await asyncio.sleep(min(STATUS_SECONDS, seconds))

    def notify_ready(self) -> None:
        """Report that the training is under way."""
        self._send_once("READY=1")

    def notify_stopping(self) -> None:
        """Report the regular end of the run.

        READY is sent even if a stop came before the first attempt: for systemd a service that ends
        before it is ready has failed.
        """
        self._send_once("READY=1")
        self._send_once("STOPPING=1")

    def _send_status(self) -> None:
        assignments = [f"STATUS={status_text(self._status())}"]
        if self._is_stopping():
            self._send_once("STOPPING=1")
        if "STOPPING=1" in self._sent and _makes_progress(self._writing):
            assignments.append(f"EXTEND_TIMEOUT_USEC={EXTENSION_SECONDS * 1_000_000}")
        if self._is_healthy():
            assignments.append("WATCHDOG=1")
        self._send_unsent()
        self._notifier.send(*assignments)

    def _send_once(self, assignment: str) -> None:
        if assignment not in self._sent:
            self._sent.add(assignment)
            self._unsent.append(assignment)
            self._send_unsent()

    def _send_unsent(self) -> None:
        # Each in its own message: systemd uses only the last of several in one message.
        while self._unsent and self._notifier.send(self._unsent[0]):
            del self._unsent[0]

    def _is_healthy(self) -> bool:
        healthy = all(
            (heartbeat.silent_seconds or 0.0) < STUCK_SECONDS for heartbeat in self._heartbeats()
        )
        if self._was_healthy and not healthy:
            self._log.error(
                f"a thread has been stuck for {duration_text(STUCK_SECONDS)}: no more "
                "watchdog pings to the service manager"
            )
        self._was_healthy = healthy
        return healthy


def _makes_progress(heartbeat: Heartbeat) -> bool:
    silent = heartbeat.silent_seconds
    return silent is not None and silent < PROGRESS_SECONDS


def status_text(status: Status) -> str:
    """Return one line about the run for `systemctl status`."""
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
