"""Scans what a script saves for itself: looks at each save, judges it, and acts on the decision.

Nothing here waits: the caller says at which moment it scans, and gets the events since the last
scan.
"""

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import assert_never

from orchestrator.adopt.completeness import check_all_new, examine
from orchestrator.adopt.files import SavedFiles, kind_of
from orchestrator.adopt.formats import IncompleteError
from orchestrator.adopt.pattern import Pattern
from orchestrator.adopt.scan_events import (
    STARTS,
    Failed,
    LeftAlone,
    Moment,
    ScanEvent,
    Sealed,
    SetAside,
    Withdrawn,
)
from orchestrator.adopt.seal_policy import Decision, SaveFacts, judge
from orchestrator.adopt.seal_store import Seal, Sealing, SealStore
from orchestrator.adopt.sealer import Sealer
from orchestrator.adopt.tracked_saves import SaveTracker, TrackedSave
from orchestrator.adopt.write_ledger import WriteLedger
from orchestrator.checkpoint.manifest import Reason

# Accept only this many checkpoints from before the run: reading all of them may take hours.
EARLIER_SAVES_ACCEPTED = 2
# Report only this many rejected ones from before the run: a pattern may match thousands.
EARLIER_SAVES_REPORTED = 5


class SaveScanner:
    """Scans everything that matches the pattern. One scan runs at a time."""

    def __init__(
        self,
        pattern: Pattern,
        store: SealStore,
        ledger: WriteLedger,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.directories: list[Path] = []
        """Where saves may appear, as of the last full scan."""
        self.has_matched = False
        """Whether anything has ever matched the pattern."""
        self._pattern = pattern
        self._store = store
        self._ledger = ledger
        self._clock = clock
        self._tracker = SaveTracker(ledger, clock)
        self._sealer = Sealer(store, clock)

    @property
    def pending(self) -> bool:
        """Whether a save may become a checkpoint soon."""
        return self._tracker.has_undecided

    @property
    def sealing_cpu_seconds(self) -> float:
        """The processor time that all sealing so far has taken; it has a limit of its own."""
        return self._sealer.cpu_seconds

    def forget_write_habits(self) -> None:
        """Forget whether the script replaces its files: another trainer begins."""
        self._sealer.forget_write_habits()

    def scan(self, moment: Moment, reason: Reason) -> list[ScanEvent]:
        """Scan everything that matches; ``reason`` is the one of new checkpoints."""
        self.directories, paths = self._pattern.find()
        self.has_matched = self.has_matched or bool(paths)
        seals = self._store.seals()
        self._tracker.observe(paths, seals, moment)
        events = self._judge_all(seals, moment, reason)
        # Last: a new seal may stand in for one whose files are gone.
        return events + self._withdraw_seals()

    def scan_pending(self, reason: Reason) -> list[ScanEvent]:
        """Scan only the saves on which a decision is due, while a trainer runs."""
        seals = self._store.seals()
        self._tracker.observe_unsettled(seals)
        return self._judge_all(seals, Moment.RUNNING, reason)

    def _judge_all(
        self, seals: Mapping[Path, Seal], moment: Moment, reason: Reason
    ) -> list[ScanEvent]:
        saves = sorted(self._tracker.unsettled(), key=self._order)
        if moment in STARTS:
            self._pass_over_older(saves, seals, moment)
        begun = self._tracker.last_begun(seals) if saves else {}
        events: list[ScanEvent] = []
        for save in saves:
            facts = SaveFacts(
                save.proof,
                moment,
                is_directory=save.files.is_directory,
                quiet_seconds=self._clock() - save.unchanged_since,
                followed=begun[kind_of(save.path.name)] > save.files.last_change_ns,
                postponed=self._sealer.is_postponed(save.path),
            )
            try:
                event = self._act(save, self._decide(save, facts, seals), reason)
            except FileNotFoundError:
                continue  # the script has deleted it meanwhile
            except OSError as error:
                self._sealer.postpone(save.path)
                event = Failed(save.path, str(error))
            events += [event] if event is not None else []
        return events

    def _order(self, save: TrackedSave) -> tuple[int, int]:
        """Return the step and the time of a save; only the time where names have no numbers."""
        return self._pattern.step_of(save.path) or 0, save.files.last_change_ns

    def _decide(self, save: TrackedSave, facts: SaveFacts, seals: Mapping[Path, Seal]) -> Decision:
        decision = judge(facts)
        if decision is Decision.EXAMINE:
            self._examine(save, seals)
            decision = judge(replace(facts, proof=save.proof))
        return decision

    def _examine(self, save: TrackedSave, seals: Mapping[Path, Seal]) -> None:
        """Find out whether a save is whole. Raises OSError."""
        files = save.files
        directories = [seal for seal in seals.values() if seal.adopted.is_directory]
        newest = max(directories, key=lambda seal: seal.checkpoint.order, default=None)
        usual = None
        if newest is not None:
            records = newest.checkpoint.manifest.files
            usual = {name: record.bytes for name, record in records.items()}
        try:
            before = self._tracker.previous_times(save.path, seals.get(save.path))
            check_all_new(files.modified_ns, before)
            save.completeness = examine(files, usual)
        except IncompleteError as error:
            save.problem = str(error)

    def _act(self, save: TrackedSave, decision: Decision, reason: Reason) -> ScanEvent | None:
        match decision:
            case Decision.SEAL:
                return self._seal(save, reason)
            case Decision.REJECT:
                return self._reject(save)
            case Decision.WAIT | Decision.EXAMINE:
                return None
            case _:
                assert_never(decision)

    def _seal(self, save: TrackedSave, reason: Reason) -> ScanEvent | None:
        checkpoint = self._sealer.seal(
            Sealing(
                save.files,
                self._pattern.step_of(save.path),
                reason,
                written_here=self._ledger.was_written_here(save.path),
                keep=self._pattern.is_one_path,
            )
        )
        if checkpoint is None:
            return None  # it has changed meanwhile, which the next scan sees
        self._ledger.forget(save.path)
        self._tracker.drop(save.path)
        return Sealed(checkpoint, save.files.first_change_ns)

    def _reject(self, save: TrackedSave) -> ScanEvent | None:
        """Set a save of the run aside; report another one, once. Raises OSError."""
        doubt = save.completeness.doubt if save.completeness else ""
        reason = save.problem or doubt
        if self._ledger.was_written_here(save.path):
            moved_to = self._store.set_aside(save.path, reason)
            self._ledger.forget(save.path)
            self._tracker.drop(save.path)
            return SetAside(save.path, moved_to, reason)
        if save.reported:
            return None
        save.reported = True
        return LeftAlone(save.path, reason)

    def _pass_over_older(
        self, saves: list[TrackedSave], seals: Mapping[Path, Seal], moment: Moment
    ) -> None:
        """Accept only the newest saves from before the run that are not sealed yet."""
        accepted = rejected = 0
        sealed_ns = max(
            (max(s.adopted.modified_ns.values(), default=0) for s in seals.values()), default=0
        )
        for save in reversed(saves):
            if self._ledger.was_written_here(save.path):
                continue
            if accepted == EARLIER_SAVES_ACCEPTED or save.files.last_change_ns < sealed_ns:
                save.problem, save.reported = "newer ones were there", True
                continue
            with contextlib.suppress(OSError):
                self._examine(save, seals)
            if save.completeness is not None:
                accepted += save.completeness.proven or moment is Moment.FIRST_START
            else:
                rejected += 1
                save.reported = rejected > EARLIER_SAVES_REPORTED

    def _withdraw_seals(self) -> list[ScanEvent]:
        """Withdraw the seals of saves that are deleted or being written again.

        The last seal stays, and so does the newest when its files are deleted: without any the run
        would start from zero.
        """
        events: list[ScanEvent] = []
        seals = self._store.seals()
        newest = max(seals.values(), key=lambda seal: seal.checkpoint.order, default=None)
        for path, seal in seals.items():
            files = SavedFiles.at(path)
            if seal.adopted.kept or (files and files.modified_ns == seal.adopted.modified_ns):
                continue
            if len(seals) == 1 or (files is None and seal is newest):
                continue
            if files is None and not path.parent.is_dir():
                continue  # perhaps it is not mounted
            if files is not None:
                self._ledger.record_rewrite(path, seal.adopted.modified_ns)
            with contextlib.suppress(OSError):  # the next scan tries again
                self._store.withdraw(seal)
                deleted = files is None
                why = "the script has deleted it" if deleted else "it is being written again"
                events.append(Withdrawn(seal.checkpoint, why))
        return events
