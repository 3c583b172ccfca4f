"""Signs of life of a script that saves for itself, as far as they are seen from outside.

Its output, changes of the files that it saves, and the I/O of its processes are signs. Processor
time is one only where the timeout is learned. A collective that hangs spins, and a timeout that was
given is meant for it; but an evaluation that was never seen before computes too, and a learned
timeout must not end it.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable

from orchestrator.errors import NoThreadError
from orchestrator.supervisor.attempt.activity import Activity
from orchestrator.supervisor.attempt.attempt import AdoptedProgress, Attempt
from orchestrator.supervisor.termination.hang_timeouts import HangTimeouts, Sign
from orchestrator.system.process_use import Uses, used_between, uses_of
from orchestrator.system.threads import in_thread

LOOK_SECONDS = 10.0
# A look at a large tree takes milliseconds; it is made less often where it would take more of a
# core than this.
LOOK_SHARE = 0.001
# At least so many looks within a timeout.
LOOKS_IN_TIMEOUT = 4
# Idle processes poll: watchdog threads, waiting loaders, heartbeats between ranks.
LEAST_CPU_SHARE = 0.01
LEAST_MOVED_BYTES_PER_SECOND = 10_000


class TreeWatch:
    """Counts the looks at which a process tree was seen to compute, and to move data."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.computing = 0
        """At how many looks it had used processor time."""
        self.moving = 0
        """At how many looks it had written to a disk, or moved data."""
        self._clock = clock
        self._uses: Uses = {}
        self._looked = clock()

    def note(self, uses: Uses) -> None:
        """Compare what the processes have used with the last look."""
        now = self._clock()
        seconds, self._looked = now - self._looked, now
        used, self._uses = used_between(self._uses, uses), uses
        self.computing += used.cpu_seconds > LEAST_CPU_SHARE * seconds
        moves = used.moved_bytes > LEAST_MOVED_BYTES_PER_SECOND * seconds
        self.moving += moves or used.disk_bytes > 0


class ScriptSigns:
    """The signs of life of one attempt."""

    def __init__(
        self, attempt: Attempt, progress: AdoptedProgress, timeouts: HangTimeouts, tree: TreeWatch
    ) -> None:
        """``timeouts`` are told of the saves from which they learn."""
        self._attempt = attempt
        self._progress = progress
        self._timeouts = timeouts
        self._tree = tree
        self._learned_from = (0, 0)

    def read(self) -> Sign:
        """Return the sign of life that the script shows now."""
        self._learn()
        progress, tree = self._progress, self._tree
        count = self._attempt.main.output.copied_bytes + progress.file_changes + progress.saves
        count += tree.moving
        if not self._timeouts.are_fixed:
            count += tree.computing
        return Sign(Activity.SCRIPT, count, progress.step)

    def _learn(self) -> None:
        """Count a save, if the script has computed since the last one that was counted.

        A command whose work is done elsewhere (ssh, docker run) only waits here.
        """
        saves, computing = self._learned_from
        if self._progress.saves > saves and self._tree.computing > computing:
            self._learned_from = (self._progress.saves, self._tree.computing)
            self._timeouts.record_save()

    async def look_at_tree(self) -> None:
        """Look at the process tree at intervals, until cancelled.

        In a thread: /proc may wait for a process that is stuck. No sign comes meanwhile.
        """
        cpu_seconds = 0.0

        def look() -> Uses:
            nonlocal cpu_seconds
            began = time.thread_time()
            uses = uses_of(self._attempt.main.process.tree())
            cpu_seconds = time.thread_time() - began
            return uses

        while True:
            with contextlib.suppress(NoThreadError):
                self._tree.note(await in_thread(look))
            await asyncio.sleep(self._interval_seconds(cpu_seconds))

    def _interval_seconds(self, look_cpu_seconds: float) -> float:
        interval = max(LOOK_SECONDS, look_cpu_seconds / LOOK_SHARE)
        timeout = self._timeouts.seconds(Activity.SCRIPT, self._progress.step)
        return interval if timeout is None else min(interval, timeout / LOOKS_IN_TIMEOUT)
