"""Adopt mode: a script's own saves become checkpoints (docs/how-to/adopt-a-script.md)."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import structlog

from orchestrator.adopt.pattern import Pattern
from orchestrator.adopt.scan_events import (
    Failed,
    LeftAlone,
    Moment,
    ScanEvent,
    Sealed,
    SetAside,
    Withdrawn,
)
from orchestrator.adopt.scanner import SaveScanner
from orchestrator.adopt.seal_store import Seal, SealStore
from orchestrator.adopt.write_ledger import WriteLedger
from orchestrator.checkpoint.checkpoint import Checkpoint
from orchestrator.checkpoint.checkpoint_journal import CheckpointJournal
from orchestrator.checkpoint.manifest import Reason
from orchestrator.errors import ConfigError
from orchestrator.rundir.journal import Journal
from orchestrator.supervisor.attempt.attempt import AdoptedProgress, Attempt
from orchestrator.supervisor.checkpoints.catalog import CheckpointCatalog
from orchestrator.supervisor.termination.stop_ladder import Watch
from orchestrator.system.priority import lower_priority
from orchestrator.system.threads import ignore_outcome, in_thread

# Network filesystems, and what another machine writes on them, give no events.
LOOK_SECONDS = 10.0
# With thousands of matches, of which a look asks the system one by one, less often than that.
POLLING_SHARE = 0.005
MOST_LOOK_SECONDS = 60.0
# What is being written is looked at so often, until it has come to rest.
PENDING_SECONDS = 0.25
# Where many names match and all the time one comes, looking takes this share of a core.
LOOKING_SHARE = 0.05
# When nothing that matches has come by then, the pattern may be wrong.
UNMATCHED_SECONDS = 1800.0
# So far the times of files may lag behind the clock.
FILE_CLOCK_NS = 20_000_000
NO_SAVING_ON_DEMAND = (
    "with --adopt the script saves for itself, when it wants to: it cannot be asked to save now"
)
NO_SESSION = (
    "this run has --adopt, which is for scripts that save for themselves, and the script opens a "
    "Session, which saves; leave one of the two out"
)


class Adoption:
    """Looks at what the script saves while it runs, and once more when it has ended."""

    def __init__(
        self,
        pattern: Pattern,
        store: SealStore,
        checkpoints: CheckpointCatalog,
        watch: Watch,
        journal: Journal,
        publish: Callable[[str], None],
        alarm: Callable[[dict[str, Any]], None],
        is_new_run: bool,
    ) -> None:
        """``publish`` gets the name of each new checkpoint, ``alarm`` what the disk refused."""
        self._pattern = pattern
        self._store = store
        self._checkpoints = checkpoints
        self._watch = watch
        self._journal = CheckpointJournal(journal)
        self._publish = publish
        self._alarm = alarm
        self._log = structlog.get_logger()
        self._written = WriteLedger(store.store.run.write_ledger_file)
        self._sightings = SaveScanner(pattern, store, self._written)
        self._is_new_run = is_new_run
        self._looking: asyncio.Task[None] | None = None
        self._began = time.monotonic()
        self._problem: str | None = None
        self._unmatched_told = False
        self._look_cpu_seconds = 0.0

    async def take_stock(self) -> None:
        """Before the supervisor's first attempt: what is there already."""
        await self._look(Moment.FIRST_START if self._is_new_run else Moment.LATER_START, None)

    async def put_back(self, chosen: Checkpoint | None) -> None:
        """Have the script find, where it always saves, the version that was chosen.

        Raises ConfigError where something else is there that no trainer of this run wrote.
        """
        if chosen is not None and chosen.manifest.adopted and chosen.manifest.adopted.kept:
            await in_thread(lambda: self._put_back(chosen))

    def _put_back(self, chosen: Checkpoint) -> None:
        assert chosen.manifest.adopted is not None
        path, seal = chosen.resume_path, Seal(chosen, chosen.manifest.adopted)
        if self._store.is_in_place(seal):
            return
        if path.exists():
            if not (seal.adopted.written_here or self._written.was_written_here(path)):
                raise ConfigError(
                    f"cannot resume: {path} is not whole, or not as it was, and no trainer of this "
                    "run wrote it; move it away, or put a good one there, and run again"
                )
            self._store.set_aside(path, f"not the version of {chosen.name}, which is resumed from")
        self._store.put_back(seal)

    def begin(self, attempt: Attempt) -> None:
        """A trainer runs, and has been told what to resume from."""
        self._sightings.forget_write_habits()
        resumed = attempt.resume_from
        attempt.adopted = AdoptedProgress(resumed.manifest.step if resumed else 0)
        self._looking = asyncio.ensure_future(self._look_on(attempt))
        ignore_outcome(self._looking)

    async def end(self, attempt: Attempt) -> None:
        """It has ended: nobody writes any more, so that what it saved last counts now or never."""
        ended_well = attempt.returncode == 0
        last = asyncio.ensure_future(
            self._look_last(attempt, Moment.SUCCEEDED if ended_well else Moment.FAILED)
        )
        ignore_outcome(last)
        in_a_hurry = asyncio.ensure_future(self._watch.kill_wanted.wait())
        await asyncio.wait({last, in_a_hurry}, return_when=asyncio.FIRST_COMPLETED)
        in_a_hurry.cancel()

    async def _look_last(self, attempt: Attempt, moment: Moment) -> None:
        if self._looking is not None:
            # However it ended: what the script saved last must be looked at.
            await asyncio.wait({self._looking})
        await self._look(moment, attempt)
        self._tell_of_unmatched()

    async def _look_on(self, attempt: Attempt) -> None:
        """Look when something has changed, and now and then, until the attempt is over."""
        over = asyncio.ensure_future(attempt.over.wait())
        everywhere, looked, interval = True, 0.0, LOOK_SECONDS
        # Only adopt mode pays for watchdog.
        from orchestrator.adopt.file_watcher import DirectoryWatcher

        with DirectoryWatcher(self._pattern.may_affect_match) as changes:
            while not over.done():
                if everywhere:
                    changes.changed.clear()
                    looked = time.monotonic()
                await self._look(Moment.RUNNING, attempt, everywhere)
                if everywhere:
                    dear = self._look_cpu_seconds / POLLING_SHARE
                    interval = min(max(LOOK_SECONDS, dear), MOST_LOOK_SECONDS)
                changes.watch(self._sightings.directories)
                if time.monotonic() - self._began >= UNMATCHED_SECONDS:
                    self._tell_of_unmatched()
                breather = min(self._look_cpu_seconds / LOOKING_SHARE, LOOK_SECONDS)
                await asyncio.wait({over}, timeout=breather)
                changed = asyncio.ensure_future(changes.changed.wait())
                rest = PENDING_SECONDS if self._sightings.pending else interval
                await asyncio.wait(
                    {over, changed}, timeout=rest, return_when=asyncio.FIRST_COMPLETED
                )
                changed.cancel()
                everywhere = changes.changed.is_set() or time.monotonic() - looked >= interval

    async def _look(self, moment: Moment, attempt: Attempt | None, everywhere: bool = True) -> None:
        reason = Reason.EMERGENCY if self._watch.stop_wanted.is_set() else Reason.PERIODIC

        def look() -> list[ScanEvent]:
            lower_priority()
            began = time.thread_time() - self._sightings.sealing_cpu_seconds
            try:
                if everywhere:
                    return self._sightings.scan(moment, reason)
                return self._sightings.scan_pending(reason)
            finally:
                ended = time.thread_time() - self._sightings.sealing_cpu_seconds
                self._look_cpu_seconds = ended - began

        try:
            happenings = await in_thread(look)
        except Exception as error:
            # Whatever it is, training goes on; but what is not looked at is not resumed from.
            problem = f"cannot look at what the script saves: {error!r}"
            if problem != self._problem:
                self._alarm({"problem": problem})
            self._problem = problem
            return
        self._problem = None
        for happening in happenings:
            self._tell(happening, attempt)

    def _tell(self, happening: ScanEvent, attempt: Attempt | None) -> None:
        match happening:
            case Sealed(checkpoint, oldest_ns):
                if attempt is not None and attempt.adopted is not None:
                    stop = self._watch.stop_wanted_ns
                    after = stop is not None and oldest_ns >= stop - FILE_CLOCK_NS
                    attempt.adopted.saved(checkpoint.manifest.step, after)
                self._publish(checkpoint.name)
            case Withdrawn(checkpoint, reason):
                self._checkpoints.withdrawn(checkpoint, reason)
            case SetAside(path, where, reason):
                self._log.warning(
                    "an unfinished save was set aside",
                    path=str(path),
                    reason=reason,
                    kept_in=str(where),
                )
                self._journal.record_quarantine(path, reason, attempt.number if attempt else None)
            case LeftAlone(path, reason):
                self._log.warning(
                    "not a checkpoint, and not seen being written by this run: left alone",
                    path=str(path),
                    reason=reason,
                )
            case Failed(path, problem):
                text = f"cannot seal {path}, or set it aside: {problem}"
                self._alarm({"adopted": str(path), "problem": text})

    def _tell_of_unmatched(self) -> None:
        if not self._sightings.has_matched and not self._unmatched_told:
            self._unmatched_told = True
            self._log.warning(
                f"nothing matches --adopt {self._pattern.text} so far: there is nothing that could "
                "be resumed from"
            )
