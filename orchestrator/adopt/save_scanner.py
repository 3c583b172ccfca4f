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

from orchestrator.adopt.descent import Descent
from orchestrator.adopt.examiner import SaveExaminer
from orchestrator.adopt.file_owners import FileOwners
from orchestrator.adopt.files import SavedFiles, kind_of
from orchestrator.adopt.scan_events import (
    STARTS,
    Failed,
    Lacking,
    LeftAlone,
    Moment,
    Renumbered,
    ScanEvent,
    Sealed,
    SetAside,
)
from orchestrator.adopt.seal_policy import LONG_QUIET_SECONDS, Decision, Proof, SaveFacts, judge
from orchestrator.adopt.seal_store import Seal, Sealing, SealStore
from orchestrator.adopt.sealer import Sealer
from orchestrator.adopt.tracked_saves import SaveTracker, TrackedSave
from orchestrator.adopt.unit_pattern import UnitPattern, relative_members
from orchestrator.adopt.withdrawals import withdraw_foreign, withdraw_seals
from orchestrator.adopt.write_ledger import WriteLedger
from orchestrator.checkpoint.checkpoint import Checkpoint
from orchestrator.checkpoint.manifest import Reason
from orchestrator.system.open_files import open_for_writing

# Accept only this many checkpoints from before the run: reading all of them may take hours.
EARLIER_SAVES_ACCEPTED = 2
# The times of files may lag behind the clock by this much.
FILE_CLOCK_NS = 20_000_000
# How long it counts that the trainer had a file open.
OPEN_FILES_SECONDS = 2.0
# Report only this many rejected ones from before the run: a pattern may match thousands.
EARLIER_SAVES_REPORTED = 5


class SaveScanner:
    """Scans everything that matches the pattern. One scan runs at a time."""

    def __init__(
        self,
        pattern: UnitPattern,
        store: SealStore,
        ledger: WriteLedger,
        clock: Callable[[], float] = time.monotonic,
        stop_ns: Callable[[], int | None] = lambda: None,
    ) -> None:
        """``stop_ns`` tells when a stop was requested, by time.time_ns; None before that."""
        self.directories: list[Path] = []
        """Where saves may appear, as of the last full scan."""
        self.has_matched = False
        """Whether anything has ever matched the pattern."""
        self._pattern = pattern
        self._store = store
        self._ledger = ledger
        self._clock = clock
        self._stop_ns = stop_ns
        self._owners = FileOwners(store.store.run)
        self._tracker = SaveTracker(pattern, ledger, self._owners, clock)
        self._examiner = SaveExaminer()
        self._sealer = Sealer(store, clock)
        self._descent = ledger.descent
        self._has_seals = False
        self._has_told_of_lacking = False

    @property
    def pending(self) -> bool:
        """Whether a save may become a checkpoint soon."""
        return self._tracker.has_undecided

    @property
    def sealing_cpu_seconds(self) -> float:
        """The processor time that all sealing so far has taken; it has a limit of its own."""
        return self._sealer.cpu_seconds

    def forget_write_habits(self) -> None:
        """Forget how the script writes its files: another trainer begins."""
        self._sealer.forget_write_habits()
        self._examiner.order.forget()

    def begin_attempt(self, resumed: Checkpoint | None) -> None:
        """Begin with an attempt that is offered this checkpoint."""
        self.forget_write_habits()
        adopted = None if resumed is None else resumed.manifest.adopted
        step = None if resumed is None else resumed.manifest.step
        number = None
        if adopted is not None and adopted.numbered:
            number = step if adopted.number is None else adopted.number
        self._descent = Descent(time.time_ns() - FILE_CLOCK_NS, step, number)
        self._ledger.record_descent(self._descent)

    def record_reading(self, is_unread: bool) -> None:
        """Record whether the script has not opened the checkpoint that it was offered."""
        self._descent.is_unread = is_unread

    def scan(self, moment: Moment, reason: Reason) -> list[ScanEvent]:
        """Scan everything that matches; ``reason`` is the one of new checkpoints."""
        self.directories, paths = self._pattern.find()
        self.has_matched = self.has_matched or bool(paths)
        events: list[ScanEvent] = []
        if moment is not Moment.RUNNING:  # a start comes after it
            events += withdraw_foreign(self._store, self._owners)
        seals = self._store.seals()
        self._tracker.observe(paths, seals, moment)
        events += self._judge_all(seals, moment, reason)
        # Last: a new seal may stand in for one whose files are gone.
        has_one_path = self._pattern.is_one_path
        return [*events, *withdraw_seals(self._store, self._ledger, has_one_path=has_one_path)]

    def scan_pending(self, reason: Reason) -> list[ScanEvent]:
        """Scan only the saves on which a decision is due, while a trainer runs."""
        seals = self._store.seals()
        self._tracker.observe_unsettled(seals)
        return self._judge_all(seals, Moment.RUNNING, reason)

    def _judge_all(
        self, seals: Mapping[Path, Seal], moment: Moment, reason: Reason
    ) -> list[ScanEvent]:
        for save in self._tracker.unsettled():
            if self._sealer.has_sealed(save.files):
                self._tracker.drop(save.path)
        self._has_seals = self._has_seals or bool(seals)
        saves = sorted(self._tracker.unsettled(), key=self._order)
        if moment in STARTS:
            self._pass_over_older(saves, seals, moment)
        begun = self._tracker.last_begun(seals) if saves else {}
        events: list[ScanEvent] = []
        sealed: list[Path] = []
        for save in saves:
            if moment is Moment.RUNNING:
                self._learn_order(save, seals)
            facts = SaveFacts(
                save.proof,
                moment,
                in_parts=self._comes_in_parts(save, seals),
                quiet_seconds=self._clock() - save.unchanged_since,
                followed=begun[kind_of(save.path.name)] > save.files.last_change_ns,
                postponed=self._sealer.is_postponed(save.path),
                # While it runs this is looked up only if nothing else is in the way.
                held_open=save.held_open and moment is not Moment.RUNNING,
                lacks=bool(save.files.missing),
            )
            try:
                decision = self._decide(save, facts, seals)
                if decision is Decision.SEAL:
                    events += self._note_renumbering(save)
                event = self._act(save, decision, reason, seals)
                events += self._note_lacking(save, facts, decision)
            except FileNotFoundError:
                continue  # the script has deleted it meanwhile
            except Exception as error:
                # Whatever it is: one bad file does not stop the others from being looked at.
                self._sealer.postpone(save.path)
                event = Failed(save.path, str(error) or repr(error))
            events += [event] if event is not None else []
            sealed += [save.path] if isinstance(event, Sealed) else []
        # At once: each change of the ledger is a write to the disk.
        self._ledger.forget(*sealed)
        return events

    def _order(self, save: TrackedSave) -> tuple[int, int]:
        """Return the step and the time of a save; only the time where names have no numbers."""
        number, written_ns = self._pattern.step_of(save.path), save.files.last_change_ns
        step = 0 if number is None else self._descent.step_of(number, written_ns, 0)
        return step, written_ns

    def _decide(self, save: TrackedSave, facts: SaveFacts, seals: Mapping[Path, Seal]) -> Decision:
        decision = judge(facts)
        if decision is Decision.EXAMINE:
            self._examine(save, seals)
            facts = replace(facts, proof=save.proof)
            decision = judge(facts)
        if decision is Decision.SEAL and facts.moment is Moment.RUNNING:
            decision = judge(replace(facts, held_open=self._is_held_open(save)))
        return decision

    def _is_held_open(self, save: TrackedSave) -> bool:
        """Return whether the trainer is writing to it; a format that proves it whole need not ask.

        Every descriptor of the trainer is looked at, and therefore not at every scan.
        """
        if save.proof is Proof.PROVEN:
            return False
        if self._clock() >= save.held_open_until:
            save.held_open = bool(open_for_writing(save.files.paths))
            save.held_open_until = self._clock() + OPEN_FILES_SECONDS
        return save.held_open

    def _examine(self, save: TrackedSave, seals: Mapping[Path, Seal]) -> None:
        """Find out whether a save is whole. Raises OSError."""
        self._examiner.examine(
            save,
            seals,
            self._times_before(save, seals),
            names_return=self._names_return(save.path),
        )

    def _times_before(self, save: TrackedSave, seals: Mapping[Path, Seal]) -> dict[str, int]:
        before = self._tracker.previous_times(save.path, seals.get(save.path))
        return before or (save.times_before_run if save.files.members else {})

    def _names_return(self, path: Path) -> bool:
        """Return whether the script writes over a path, as far as its name tells."""
        has_digit = any(map(str.isdigit, path.name))
        # last.ckpt, say; a name with a date or a hash comes once
        return not self._pattern.tells_steps or not has_digit

    def _learn_order(self, save: TrackedSave, seals: Mapping[Path, Seal]) -> None:
        if save.files.members and self._names_return(save.path):
            self._examiner.order.learn(save.files, self._times_before(save, seals))

    def _comes_in_parts(self, save: TrackedSave, seals: Mapping[Path, Seal]) -> bool:
        """Return whether it consists of several files, of which none is known to be the last."""
        if not save.files.members or not self._names_return(save.path):
            return save.files.is_directory
        order_is_known = self._examiner.order.is_known(save.path, self._times_before(save, seals))
        return save.files.is_directory or not order_is_known

    def _act(
        self,
        save: TrackedSave,
        decision: Decision,
        reason: Reason,
        seals: Mapping[Path, Seal],
    ) -> ScanEvent | None:
        match decision:
            case Decision.SEAL:
                return self._seal(save, reason, has_older=save.path in seals)
            case Decision.REJECT:
                return self._reject(save)
            case Decision.LEAVE:
                self._ledger.forget(save.path)
                save.reported = True
                return None
            case Decision.WAIT | Decision.EXAMINE:
                return None
            case _:
                assert_never(decision)

    def _is_after_stop(self, files: SavedFiles) -> bool:
        """Return whether all of a save was written after the request to stop."""
        stop_ns = self._stop_ns()
        return stop_ns is not None and files.first_change_ns >= stop_ns - FILE_CLOCK_NS

    def _note_renumbering(self, save: TrackedSave) -> list[ScanEvent]:
        number, descent = self._pattern.step_of(save.path), self._descent
        if descent.numbers_anew or not descent.is_renumbered(number, save.files.last_change_ns):
            return []
        descent.numbers_anew = True
        self._ledger.record_descent(descent)
        assert number is not None
        assert descent.number is not None
        return [Renumbered(save.path, number, descent.number)]

    def _note_lacking(
        self, save: TrackedSave, facts: SaveFacts, decision: Decision
    ) -> list[ScanEvent]:
        """Report once that the rest of a unit does not come."""
        rests = decision is Decision.WAIT and facts.quiet_seconds >= LONG_QUIET_SECONDS
        if self._has_told_of_lacking or not (rests or decision is Decision.LEAVE):
            return []
        if not save.files.members or save.problem is None or facts.moment in STARTS:
            return []
        self._has_told_of_lacking = True
        return [Lacking(save.path, save.problem)]

    def _seal(self, save: TrackedSave, reason: Reason, *, has_older: bool) -> ScanEvent | None:
        number, written_ns = self._pattern.step_of(save.path), save.files.last_change_ns
        highest = self._store.highest_step if number is None else 0
        step = self._descent.step_of(number, written_ns, highest)
        after_stop = self._is_after_stop(save.files)
        checkpoint = self._sealer.seal(
            Sealing(
                save.files,
                self._members_of(save.files),
                step,
                number,
                Reason.EMERGENCY if after_stop else reason,
                written_here=self._ledger.was_written_here(save.path),
                keep=self._may_be_rewritten(save.path),
                keeps_all_versions=self._pattern.is_one_path,
            ),
            has_older=has_older,
        )
        if checkpoint is None:
            return None  # it has changed meanwhile, which the next scan sees
        if self._descent.is_unread and number is None:
            self._descent.unread_saves += 1
            self._ledger.record_descent(self._descent)
        self._has_seals = True
        self._tracker.drop(save.path)
        return Sealed(checkpoint, after_stop)

    def _members_of(self, files: SavedFiles) -> dict[str, str] | None:
        return relative_members(self._pattern.names, files.paths) if files.members else None

    def _may_be_rewritten(self, path: Path) -> bool:
        """Return whether the next save may destroy this one, so that a copy must be kept."""
        if self._ledger.has_rewrites or self._names_return(path):
            return True
        # Nothing is known yet of how the script names its saves.
        return not self._has_seals and self._ledger.was_written_here(path)

    def _reject(self, save: TrackedSave) -> ScanEvent | None:
        """Set a save of the run aside; report another one, once. Raises OSError."""
        doubt = save.completeness.doubt if save.completeness else ""
        reason = save.problem or doubt
        if save.stranger is None and self._ledger.was_written_here(save.path):
            moved_to = self._store.set_aside(save.files.paths, reason)
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
            if self._ledger.was_written_here(save.path) or save.stranger is not None:
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
