"""Adopt mode: a script's own saves become checkpoints (docs/how-to/adopt-a-script.md)."""

import asyncio
import contextlib
import os
import time
from typing import TYPE_CHECKING

import structlog

from orchestrator.adopt.beside import find_beside
from orchestrator.adopt.pointers import Pointer, repair_pointers
from orchestrator.adopt.save_scanner import SaveScanner
from orchestrator.adopt.scan_events import (
    Failed,
    Lacking,
    LeftAlone,
    Moment,
    Renumbered,
    ScanEvent,
    Sealed,
    SetAside,
    Withdrawn,
)
from orchestrator.adopt.seal_store import Seal, SealStore
from orchestrator.adopt.unit_pattern import UnitPattern
from orchestrator.adopt.write_ledger import WriteLedger
from orchestrator.checkpoint.checkpoint import Checkpoint
from orchestrator.checkpoint.checkpoint_journal import CheckpointJournal
from orchestrator.checkpoint.manifest import Reason
from orchestrator.errors import ConfigError
from orchestrator.supervisor.attempt.attempt import AdoptedProgress, Attempt
from orchestrator.supervisor.checkpoints.catalog import CheckpointCatalog
from orchestrator.supervisor.run_events import RunEvents
from orchestrator.supervisor.run_facts import RunFacts
from orchestrator.system.priority import lower_priority
from orchestrator.system.races import first_of
from orchestrator.system.threads import ignore_outcome, in_thread

if TYPE_CHECKING:
    from orchestrator.adopt.read_watcher import ReadWatcher

# Network filesystems, and what another machine writes on them, give no events: scan this often.
SCAN_SECONDS = 10.0
# With thousands of matches, each of which costs a system call, scan less often than that.
POLLING_SHARE = 0.003
MOST_SCAN_SECONDS = 60.0
# Scan a checkpoint that is being written this often, until it has settled.
PENDING_SECONDS = 0.25
# Where many names match and new ones come all the time, scanning takes this share of a core.
SCANNING_SHARE = 0.05
# If an attempt has saved nothing that matches by then, it may save elsewhere.
BESIDE_SECONDS = 60.0
# If nothing that matches has come by then, the pattern may be wrong.
UNMATCHED_SECONDS = 1800.0


class Adoption:
    """Scans for what the script saves while it runs, and once more when it has ended."""

    def __init__(
        self,
        pattern: UnitPattern,
        store: SealStore,
        facts: RunFacts,
        catalog: CheckpointCatalog,
        events: RunEvents,
        journal: CheckpointJournal,
    ) -> None:
        """``events`` are told of each new checkpoint, and of what the disk has refused."""
        self._pattern = pattern
        self._store = store
        self._facts = facts
        self._stop = facts.stop
        self._catalog = catalog
        self._events = events
        self._journal = journal
        self._log = structlog.get_logger()
        self._ledger = WriteLedger(store.store.run.write_ledger_file)
        self._scanner = SaveScanner(
            pattern, store, self._ledger, stop_ns=lambda: facts.stop.wanted_ns
        )
        self._scanning: asyncio.Task[None] | None = None
        self._began = time.monotonic()
        self._problem: str | None = None
        self._has_warned_of_pattern = False
        self._has_told_of_numbers = False
        self._has_told_of_reading = False
        self._has_looked_beside: int | None = None
        self._has_told_of_saves_beside = False
        self._reading: ReadWatcher | None = None
        self._scan_cpu_seconds = 0.0

    async def take_stock(self) -> None:
        """Scan what is there before the first attempt of this supervisor."""
        if self._facts.was_complete:
            self._log.info(
                "the run was complete: the script is started again, since it alone knows whether "
                "there is more to do"
            )
        await self._scan(Moment.FIRST_START if self._facts.is_new else Moment.LATER_START, None)

    async def put_back(self, chosen: Checkpoint | None) -> None:
        """Put the chosen version back to the path where the script looks for it, by name too.

        Raises ConfigError where something else is there that no trainer of this run wrote.
        """
        if chosen is None or (adopted := chosen.manifest.adopted) is None:
            return
        seal = Seal(chosen, adopted)
        if adopted.kept:
            await in_thread(lambda: self._put_back(seal))
        for pointer in await in_thread(lambda: self._repair_pointers(seal)):
            self._log.info(
                f"{pointer.file} named {pointer.named or 'nothing'}, which is no whole checkpoint: "
                f"it names {chosen.resume_path.name} now"
            )
        from orchestrator.adopt.read_watcher import ReadWatcher

        self._reading = reading = ReadWatcher()
        await in_thread(lambda: reading.start(list(chosen.script_paths.values())))

    def _put_back(self, seal: Seal) -> None:
        if self._store.is_in_place(seal):
            return
        if path := next(filter(os.path.exists, seal.paths), None):
            if not (seal.adopted.written_here or self._ledger.was_written_here(seal.path)):
                raise ConfigError(
                    f"cannot resume: {path} is incomplete or has changed, and no trainer of this "
                    "run wrote it; move it away, or put a valid one there, and run again"
                )
            reason = f"not the version of {seal.checkpoint.name}, which is resumed from"
            self._store.set_aside(seal.paths, reason)
        self._store.put_back(seal)

    def _repair_pointers(self, seal: Seal) -> list[Pointer]:
        members = zip(self._pattern.patterns, seal.paths, strict=True)
        disk = self._store.store.disk
        with contextlib.suppress(OSError):  # the script says itself what it cannot read
            return [p for pattern, path in members for p in repair_pointers(pattern, path, disk)]
        return []

    def begin(self, attempt: Attempt) -> None:
        """Scan beside an attempt that has started."""
        resumed = attempt.resume_checkpoint
        self._scanner.begin_attempt(resumed)
        attempt.adopted = AdoptedProgress(resumed.manifest.step if resumed else 0)
        self._scanning = asyncio.ensure_future(self._scan_beside(attempt, attempt.adopted))
        ignore_outcome(self._scanning)

    async def end(self, attempt: Attempt) -> None:
        """Scan once more after the end, for what the script saved last."""
        moment = Moment.SUCCEEDED if attempt.main.returncode == 0 else Moment.FAILED
        last = asyncio.ensure_future(self._scan_last(attempt, moment))
        ignore_outcome(last)
        # A scan that a kill has overtaken goes on: its thread is at work in the store.
        await first_of(asyncio.shield(last), self._stop.kill_wanted.wait())

    async def _scan_last(self, attempt: Attempt, moment: Moment) -> None:
        if self._scanning is not None:
            # However it ended: what the script saved last must be scanned.
            await asyncio.wait({self._scanning})
        await self._scan(moment, attempt)
        self._warn_of_pattern()
        await self._warn_of_saves_beside(attempt)
        if self._reading is not None:
            self._reading.stop()
            self._reading = None

    async def _scan_beside(self, attempt: Attempt, progress: AdoptedProgress) -> None:
        """Scan after each change, and at intervals, until the attempt is over."""
        everywhere, last_scan, interval = True, 0.0, SCAN_SECONDS
        # watchdog is imported here, so that only adopt mode loads it.
        from orchestrator.adopt.directory_watcher import DirectoryWatcher

        with DirectoryWatcher(self._pattern.may_affect_match) as changes:
            while not attempt.over.is_set():
                if everywhere:
                    changes.changed.clear()
                    last_scan = time.monotonic()
                await self._scan(Moment.RUNNING, attempt, everywhere)
                if everywhere:
                    affordable = self._scan_cpu_seconds / POLLING_SHARE
                    interval = min(max(SCAN_SECONDS, affordable), MOST_SCAN_SECONDS)
                changes.watch(self._scanner.directories)
                if time.monotonic() - self._began >= UNMATCHED_SECONDS:
                    self._warn_of_pattern()
                if time.monotonic() - attempt.started >= BESIDE_SECONDS:
                    await self._warn_of_saves_beside(attempt)
                pause = min(self._scan_cpu_seconds / SCANNING_SHARE, SCAN_SECONDS)
                await first_of(attempt.over.wait(), timeout_seconds=pause)
                rest = PENDING_SECONDS if self._scanner.pending else interval
                await first_of(attempt.over.wait(), changes.changed.wait(), timeout_seconds=rest)
                has_changed = changes.changed.is_set()
                progress.file_changes += has_changed
                everywhere = has_changed or time.monotonic() - last_scan >= interval

    async def _scan(self, moment: Moment, attempt: Attempt | None, everywhere: bool = True) -> None:
        self._scanner.record_reading(self._is_unread)

        def scan() -> list[ScanEvent]:
            lower_priority()
            began = time.thread_time() - self._scanner.sealing_cpu_seconds
            try:
                if everywhere:
                    return self._scanner.scan(moment, Reason.PERIODIC)
                return self._scanner.scan_pending(Reason.PERIODIC)
            finally:
                ended = time.thread_time() - self._scanner.sealing_cpu_seconds
                self._scan_cpu_seconds = ended - began

        try:
            scan_events = await in_thread(scan)
        except Exception as error:
            # Training goes on whatever fails here; but an unseen checkpoint is not resumed from.
            problem = f"cannot scan what the script saves: {error!r}"
            if problem != self._problem:
                self._events.save_failed({"problem": problem})
            self._problem = problem
            return
        self._problem = None
        for scan_event in scan_events:
            self._handle(scan_event, attempt)

    def _handle(self, scan_event: ScanEvent, attempt: Attempt | None) -> None:
        match scan_event:
            case Sealed(checkpoint, after_stop):
                if attempt is not None and attempt.adopted is not None:
                    attempt.adopted.record_save(checkpoint.manifest.step, after_stop)
                    self._warn_of_unread(attempt)
                self._events.checkpoint_published(checkpoint.name, {})
            case Withdrawn(checkpoint, reason):
                self._catalog.record_withdrawn(checkpoint, reason)
            case SetAside(path, where, reason):
                self._log.warning(
                    "an unfinished save was moved to quarantine",
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
            case Renumbered(path, number, resumed_number):
                if not self._has_told_of_numbers:
                    self._has_told_of_numbers = True
                    self._log.warning(
                        "the script begins to number its saves again after a resume "
                        f"({path.name} comes after number {resumed_number}): checkpoints are "
                        "ordered by what they descend from, and their steps go on",
                        path=str(path),
                        number=number,
                    )
            case Lacking(path, problem):
                self._log.warning(
                    f"{path} is no checkpoint: {problem}; what --adopt {self._pattern.text} names "
                    "counts only together: correct the pattern of the part that is missing, or "
                    "leave it out"
                )
            case Failed(path, problem):
                text = f"cannot seal {path}, or set it aside: {problem}"
                self._events.save_failed({"adopted": str(path), "problem": text})

    @property
    def _is_unread(self) -> bool:
        """Whether the script has not opened the checkpoint that it was offered, for certain."""
        return self._reading is not None and self._reading.is_unread

    def _warn_of_unread(self, attempt: Attempt) -> None:
        if not self._is_unread or attempt.resume_checkpoint is None or attempt.adopted is None:
            return
        attempt.adopted.is_unread = True
        if self._has_told_of_reading:
            return
        self._has_told_of_reading = True
        path = attempt.resume_checkpoint.resume_path
        self._log.warning(
            f"offered, not read: the script has not opened {path}, and so begins from zero; what "
            "it saves counts as progress only beyond the earlier attempts; tell it what to resume "
            "from with --resume-arg (such as '--resume {path}'), or have it read "
            "ORCHESTRATOR_RESUME_FROM"
        )

    async def _warn_of_saves_beside(self, attempt: Attempt) -> None:
        """Tell of saves that the pattern does not match, where the attempt saved none that do."""
        saved = attempt.adopted is not None and attempt.adopted.saves > 0
        looked = self._has_looked_beside == attempt.number and not attempt.over.is_set()
        if saved or looked or self._has_told_of_saves_beside:
            return
        self._has_looked_beside = attempt.number
        age_ns = int((time.monotonic() - attempt.started) * 1e9)
        since_ns = time.time_ns() - age_ns
        beside = await in_thread(lambda: find_beside(self._pattern, since_ns))
        if beside is None:
            return
        self._has_told_of_saves_beside = True
        self._log.warning(
            f"the script has saved {beside.path}, which --adopt {beside.narrow_text} does not "
            f"match: it will not be resumed from and is no progress; use --adopt "
            f"'{beside.pattern_text}'"
        )

    def _warn_of_pattern(self) -> None:
        if not self._scanner.has_matched and not self._has_warned_of_pattern:
            self._has_warned_of_pattern = True
            self._log.warning(
                f"nothing matches --adopt {self._pattern.text} so far: there is nothing that could "
                "be resumed from"
            )
