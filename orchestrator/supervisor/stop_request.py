"""Whether a stop of the run is wanted: a fact that every part of the supervisor may read."""

import asyncio
import time
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import TypeVar

from orchestrator.system.races import first_of
from orchestrator.system.stop_signals import EchoFilter

# The part of the grace period for ending the processes and writing the last records.
CLOSING_SECONDS = 2.0
CLOSING_SHARE = 0.2
# The part of the grace period that the safe point gets however long a write may take.
LEAST_PATIENCE_SHARE = 0.3
# The third request kills at once.
KILL_REQUESTS = 3

T = TypeVar("T")


class StopWantedError(Exception):
    """A stop interrupted a wait."""


@dataclass
class StopRequest:
    """The requests to stop so far, and the time that they leave.

    ``wanted`` is set for good by the first request, ``kill_wanted`` by the third. ``source`` names
    who made the first one, at ``wanted_ns`` of the system's clock. Only the stop ladder records
    requests.
    """

    grace_seconds: float
    """How long the trainer and its last save may take after the first request."""
    echoes: EchoFilter = field(default_factory=EchoFilter)
    """Recognises a signal that belongs to the request before it."""
    wanted: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    kill_wanted: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    source: str | None = field(default=None, init=False)
    wanted_ns: int | None = field(default=None, init=False)
    _requests: int = field(default=0, init=False)

    def record(self, source: str) -> None:
        """Record one more request."""
        self._requests += 1
        if self.wanted_ns is None:
            self.source, self.wanted_ns = source, time.time_ns()
        self.wanted.set()
        if self._requests >= KILL_REQUESTS:
            self.kill_wanted.set()

    def patience_seconds(self, write_seconds: float) -> float:
        """Return how long to wait for the safe point and its save.

        ``write_seconds`` is the expected time of a write to disk, which must fit into the grace
        period too.
        """
        grace = self.grace_seconds
        patience = grace - min(CLOSING_SECONDS, CLOSING_SHARE * grace) - write_seconds
        return max(LEAST_PATIENCE_SHARE * grace, patience)

    async def or_stop(self, work: Awaitable[T]) -> T:
        """Await ``work`` and return its result.

        Raises StopWantedError, with ``work`` cancelled, as soon as a stop is wanted.
        """
        task = asyncio.ensure_future(work)
        await first_of(task, self.wanted.wait())
        if self.wanted.is_set():
            raise StopWantedError
        return task.result()
