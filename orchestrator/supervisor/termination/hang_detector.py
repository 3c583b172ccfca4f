"""Detects that the trainer hangs, records what it was doing, and ends it."""

import asyncio
import contextlib
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import structlog

from orchestrator.ipc.control_page import Field, Phase
from orchestrator.rundir.journal import Journal, JournalEvent
from orchestrator.supervisor.attempt.activity import Activity, Silence
from orchestrator.supervisor.attempt.attempt import Attempt
from orchestrator.supervisor.attempt.rank import Rank
from orchestrator.supervisor.checkpoints.snapshot_write_queue import SnapshotWriteQueue
from orchestrator.supervisor.run_facts import RunFacts
from orchestrator.supervisor.state_machine import Event
from orchestrator.supervisor.termination import stack_dump
from orchestrator.supervisor.termination.hang_timeouts import (
    TICK_SECONDS,
    HangClock,
    HangTimeouts,
    Sign,
)
from orchestrator.supervisor.termination.script_signs import ScriptSigns, TreeWatch
from orchestrator.supervisor.termination.stop_ladder import STACKS_SECONDS, StopLadder
from orchestrator.system import process_tree
from orchestrator.system.races import beside
from orchestrator.system.threads import in_thread

_ACTIVITIES = {
    Phase.START: Activity.START,
    Phase.RESTORE: Activity.START,
    Phase.TRAIN: Activity.STEP,
    Phase.EVALUATE: Activity.EVALUATE,
    Phase.SAVE: Activity.SAVE,
    Phase.DONE: Activity.DONE,
}


def sign_of(attempt: Attempt) -> Sign:
    """Return the sign of life that the attempt shows now: of several ranks, the one behind."""
    behind = _sign_of(attempt.behind)
    count = sum(rank.page.values[Field.SAFE_POINTS] for rank in attempt.ranks)
    return replace(behind, count=count)


def _sign_of(rank: Rank) -> Sign:
    activity = _ACTIVITIES[rank.page.phase]
    if not rank.connected:
        activity = Activity.LAUNCH
    elif rank.peer is None and activity is not Activity.DONE:
        activity = Activity.END
    elif activity is Activity.STEP and not rank.reached_safe_point:
        activity = Activity.START
    return Sign(activity, rank.page.values[Field.SAFE_POINTS], rank.step)


def _what_is_missing(silence: Silence) -> str:
    """Return what has not come for too long, and for how long."""
    if silence.activity is Activity.SCRIPT:
        return f"no output, no saved file and no I/O for {silence.seconds:.0f} s"
    return f"no progress for {silence.seconds:.0f} s in {silence.activity}"


class HangDetector:
    """Watches each attempt for a silence that is longer than the timeout."""

    def __init__(
        self,
        facts: RunFacts,
        timeouts: HangTimeouts,
        snapshots: SnapshotWriteQueue,
        ladder: StopLadder,
        journal: Journal,
    ) -> None:
        self._machine = facts.machine
        self._timeouts = timeouts
        self._snapshots = snapshots
        self._ladder = ladder
        self._journal = journal

    async def watch(self, attempt: Attempt) -> None:
        """Measure silences until the attempt is being ended; return when it is over."""
        if attempt.adopted is None:
            await self._watch_signs(attempt, partial(sign_of, attempt))
        else:
            signs = ScriptSigns(attempt, attempt.adopted, self._timeouts, TreeWatch())
            async with beside(signs.look_at_tree()):
                await self._watch_signs(attempt, signs.read)
        await attempt.over.wait()

    async def _watch_signs(self, attempt: Attempt, read_sign: Callable[[], Sign]) -> None:
        clock = HangClock(self._timeouts, read_sign())
        while self._machine.allows(Event.HANG):
            await asyncio.sleep(TICK_SECONDS)
            sign = read_sign()
            # A saving trainer waits for the supervisor's own write.
            excused = sign.activity is Activity.SAVE and bool(self._snapshots.pending)
            attempt.silence = silence = clock.tick(sign, excused)
            if silence.is_hang and self._machine.allows(Event.HANG):
                await self._end_hung(attempt, silence)
        attempt.silence = None

    @staticmethod
    def _say_who(attempt: Attempt) -> str:
        """Return which rank the others wait for, as far as their places tell."""
        behind, furthest = attempt.behind, max(rank.place for rank in attempt.ranks)
        if behind.place == furthest:
            return "all ranks are at the same step, and stacks.txt shows where"
        attempt.hung = behind
        return f"rank {behind.number} is behind the others"

    async def _end_hung(self, attempt: Attempt, silence: Silence) -> None:
        """Record the stacks, ask the trainer to save in case it is only slow, then kill it."""
        self._ladder.begin_hang()
        self._timeouts.record_hang(silence.activity, silence.step)
        rank = attempt.behind
        tree = rank.process.tree()
        first = rank.first_pid if rank.first_pid in tree else rank.process.pid
        seems = process_tree.describe_processes(first, tree)
        attempt.hang = f"{_what_is_missing(silence)}; {seems}"
        if len(attempt.ranks) > 1:
            attempt.hang += f"; {self._say_who(attempt)}"
        facts = {
            "phase": silence.activity,
            "seconds": round(silence.seconds, 1),
            "budget_seconds": silence.timeout_seconds,
            "seems": seems,
        }
        self._journal.write(JournalEvent.HANG_DETECTED, attempt.number, step=silence.step, **facts)
        file = attempt.directory.stacks_file
        structlog.get_logger().error("the trainer hangs: restarting it", **facts, stacks=str(file))
        tree.sort(key=lambda pid: pid != first)
        # A script that saves for itself may use the signal for something else.
        dump = os.dup(attempt.stacks_descriptor) if attempt.adopted is None else None
        with contextlib.suppress(TimeoutError, OSError):
            await asyncio.wait_for(
                in_thread(lambda: stack_dump.write(file, tree, dump)), STACKS_SECONDS
            )
        self._ladder.ask_hung_trainer_to_save(attempt)
