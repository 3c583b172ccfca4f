"""Notices that a run has made no checkpoint for much longer than usual."""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

import structlog

from orchestrator.config import Every
from orchestrator.rundir.journal import Journal, JournalEvent
from orchestrator.supervisor.run_facts import RunFacts
from orchestrator.system.units import duration_text

STALL_FACTOR = 3.0
RECENT_INTERVALS = 20
# Two checkpoints may follow each other for many reasons.
LEAST_INTERVALS = 4
LEAST_USUAL_SECONDS = 60.0
POLL_SECONDS = 5.0
GAP_POLLS = 4


class RunningClock:
    """Counts the seconds in which this process runs: of a pause only ``longest_gap`` counts.

    ``seconds`` must be asked for more often than that while it runs.
    """

    def __init__(self, longest_gap: float, read: Callable[[], float] = time.monotonic) -> None:
        self._longest_gap = longest_gap
        self._read = read
        self._last, self._seconds = read(), 0.0

    def seconds(self) -> float:
        """Return the seconds so far."""
        now = self._read()
        self._seconds += min(now - self._last, self._longest_gap)
        self._last = now
        return self._seconds


class CheckpointRhythm:
    """The usual time between two checkpoints, and whether the next one is overdue.

    All times are seconds of one clock. The usual time is the longest but one of the newest
    intervals since the supervisor has started, and at least ``least_seconds``; it is unknown before
    there are LEAST_INTERVALS of them. Checkpoints in pairs do not shorten it, an evaluation after
    every tenth checkpoint makes it longer, and a single outage does not.
    """

    def __init__(self, least_seconds: float) -> None:
        self._least_seconds = least_seconds
        self._intervals: list[float] = []
        self._newest: float | None = None
        self._is_told = False

    def record(self, now: float) -> None:
        """Record that a checkpoint is there."""
        if self._newest is not None:
            self._intervals = [*self._intervals, now - self._newest][-RECENT_INTERVALS:]
        self._newest, self._is_told = now, False

    @property
    def usual_seconds(self) -> float | None:
        """The usual time between two checkpoints."""
        if len(self._intervals) < LEAST_INTERVALS:
            return None
        return max(self._least_seconds, sorted(self._intervals)[-2])

    def stalled_seconds(self, now: float) -> float | None:
        """Return the age of the newest checkpoint if it is overdue; once until the next one."""
        usual = self.usual_seconds
        if usual is None or self._newest is None or self._is_told:
            return None
        seconds = now - self._newest
        if seconds < STALL_FACTOR * usual:
            return None
        self._is_told = True
        return seconds


class StallWatch:
    """Records in journal and log that the next checkpoint is overdue, and goes on watching."""

    def __init__(
        self,
        facts: RunFacts,
        journal: Journal,
        every: Every,
        least_usual_seconds: float = LEAST_USUAL_SECONDS,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        self._facts = facts
        self._journal = journal
        self._poll_seconds = poll_seconds
        # A supervisor that was stopped with Ctrl-Z has seen no checkpoint, and there may be some.
        self._clock = RunningClock(GAP_POLLS * poll_seconds)
        # A person who asks for some more in between does not make them more usual.
        asked = every.amount if every.unit == "seconds" else 0.0
        self._rhythm = CheckpointRhythm(max(least_usual_seconds, asked))

    def on_journal_event(self, record: Mapping[str, Any]) -> None:
        """Count a checkpoint; a listener of the journal."""
        if record["event"] == JournalEvent.CHECKPOINT_PUBLISHED:
            self._rhythm.record(self._clock.seconds())

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            await asyncio.sleep(self._poll_seconds)
            now = self._clock.seconds()
            if self._is_expected:
                self._look(now)

    @property
    def _is_expected(self) -> bool:
        """Whether another checkpoint may come: not at a stop, nor after the training."""
        attempt = self._facts.attempt
        is_done = attempt is not None and attempt.reported_status is not None
        return not self._facts.stop.wanted.is_set() and not is_done

    def _look(self, now: float) -> None:
        seconds = self._rhythm.stalled_seconds(now)
        usual = self._rhythm.usual_seconds
        if seconds is None or usual is None:
            return
        attempt = self._facts.attempt
        reason = (
            f"no new checkpoint for {duration_text(seconds)}, and usually one comes within "
            f"{duration_text(usual)}"
        )
        self._journal.write(
            JournalEvent.STALLED,
            self._facts.attempt_number,
            step=None if attempt is None else attempt.step,
            seconds=round(seconds, 3),
            usual_seconds=round(usual, 3),
            reason=reason,
        )
        structlog.get_logger().warning(f"{reason}; `orchestrator status` says what the run does")
