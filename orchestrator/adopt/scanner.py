"""What a script saves, as its supervisor sees it: appears, changes, comes to rest, counts or not.

Nothing here waits: whoever looks says at which moment, and is told what has happened since.
"""

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from orchestrator.adopt.completeness import Completeness, check_all_new, examine
from orchestrator.adopt.files import Contents, kind_of
from orchestrator.adopt.formats import IncompleteError
from orchestrator.adopt.pattern import Pattern
from orchestrator.adopt.scan_events import (
    NO_TRAINER,
    Failed,
    LeftAlone,
    Moment,
    ScanEvent,
    Sealed,
    SetAside,
    Withdrawn,
)
from orchestrator.adopt.store import AdoptedStore, Sealing
from orchestrator.adopt.write_ledger import WriteLedger
from orchestrator.checkpoint.checkpoint import Checkpoint
from orchestrator.checkpoint.manifest import Adopted, Reason

# A directory that is proven whole counts after so long without a change; what is not proven after
# so long, since some scripts write the parts of a checkpoint with pauses between them.
QUIET_SECONDS = 1.0
LONG_QUIET_SECONDS = 30.0
# A script that overwrites its file all the time has it copied no more than this share of the time.
SEALING_SHARE = 0.1
# What the disk refused is tried again after so long.
RETRY_SECONDS = 60.0
# Of what others wrote before, reading all of which may take hours, so many of the newest count.
FROM_BEFORE = 2
# Of what does not count of that so many are named, where a pattern matches thousands.
FROM_BEFORE_TOLD = 5


@dataclass
class _Sighting:
    """Contents that are no checkpoint, or not yet, and since when they are as they are."""

    contents: Contents
    since: float
    origin: dict[str, int]
    """When its files were written last, if that was before a trainer ran."""
    finding: Completeness | None = None
    problem: str | None = None
    told: bool = False

    @property
    def is_settled(self) -> bool:
        """Whether nothing more comes of it unless it changes."""
        return self.told and self.problem is not None


class SaveScanner:
    """Everything that matches the pattern. One look at a time."""

    def __init__(
        self,
        pattern: Pattern,
        store: AdoptedStore,
        written: WriteLedger,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.directories: list[Path] = []
        """Where something may appear, as of the last look everywhere."""
        self.any = False
        """Whether anything has ever matched."""
        self.sealing_cpu_seconds = 0.0
        """What of all looks so far was sealing, which has a limit of its own."""
        self._pattern = pattern
        self._store = store
        self._written = written
        self._clock = clock
        self._open: dict[Path, _Sighting] = {}
        self._not_before: dict[Path, float] = {}
        self._last_sealed: dict[Path, Contents] = {}

    @property
    def pending(self) -> bool:
        """Whether something may come to rest soon."""
        return any(sighting.problem is None for sighting in self._open.values())

    def forget_habits(self) -> None:
        """Another trainer begins: whether it puts new files in the place of old is to be seen."""
        self._last_sealed.clear()

    def look(self, moment: Moment, reason: Reason, everywhere: bool = True) -> list[ScanEvent]:
        """What has happened since the last look; ``reason`` is that of new checkpoints.

        Not ``everywhere``: only at what had not come to rest.
        """
        happenings: list[ScanEvent] = []
        settled = {path: s for path, s in self._open.items() if s.is_settled}
        paths: Collection[Path] = self._open.keys() - settled.keys()
        if everywhere:
            self.directories, paths = self._pattern.find()
            self.any = self.any or bool(paths)
        seals = self._store.seals()
        self._see_all(paths, seals, moment)
        if not everywhere:
            self._open |= settled
        in_order = sorted((s for s in self._open.values() if not s.is_settled), key=self._order)
        if moment in NO_TRAINER:
            self._pass_over_older(in_order, seals, moment)
        begun = self._last_begun(seals) if in_order else {}
        for sighting in in_order:
            path = sighting.contents.path
            # Another save of the kind has been begun since: then this one is done with.
            followed = begun[kind_of(path.name)] > _last_change(sighting)
            try:
                happening = self._judge(sighting, seals, moment, reason, followed)
            except FileNotFoundError:
                continue  # the script has deleted it meanwhile
            except OSError as error:
                self._not_before[path] = self._clock() + RETRY_SECONDS
                happening = Failed(path, str(error))
            happenings += [happening] if happening is not None else []
        # Afterwards: what is new may stand in for what is gone.
        return happenings + (self._withdraw() if everywhere else [])

    def _withdraw(self) -> list[ScanEvent]:
        """Give up the seals of what is gone or written anew.

        But never the last, nor the newest that is gone: without any the run would begin from zero.
        """
        happenings: list[ScanEvent] = []
        seals = self._store.seals()
        newest = max(seals.values(), key=lambda seal: seal.order, default=None)
        for path, seal in seals.items():
            contents, adopted = Contents.of(path), adopted_part(seal)
            if adopted.kept or (contents and contents.modified_ns == adopted.modified_ns):
                continue
            if len(seals) == 1 or (contents is None and seal is newest):
                continue
            if contents is None and not path.parent.is_dir():
                continue  # not mounted, perhaps
            if contents is not None:
                self._written.begun_anew(path, adopted.modified_ns)
            with contextlib.suppress(OSError):  # tried again at the next look
                self._store.withdraw(seal)
                gone = contents is None
                why = "the script has deleted it" if gone else "it is being written again"
                happenings.append(Withdrawn(seal, why))
        return happenings

    def _see_all(
        self, paths: Collection[Path], seals: dict[Path, Checkpoint], moment: Moment
    ) -> None:
        """Note what is no checkpoint, and whether that is new."""
        found = {}
        for path in paths:
            contents, seal = Contents.of(path), seals.get(path)
            if contents is None:
                continue
            if seal and adopted_part(seal).modified_ns == contents.modified_ns:
                continue
            known = self._open.get(path)
            if known is None or known.contents != contents:
                origin = known.origin if known is not None else {}
                if moment in NO_TRAINER:
                    origin = contents.modified_ns
                elif self._is_new_work(contents, seal, origin):
                    self._written.note(path)
                known = _Sighting(contents, self._clock(), origin)
            found[path] = known
        self._open = found

    def _is_new_work(
        self, contents: Contents, seal: Checkpoint | None, origin: dict[str, int]
    ) -> bool:
        """Not where something was only added to a checkpoint that others had written."""
        if seal is not None and adopted_part(seal).written_here:
            return True
        now, before = contents.modified_ns, self._before(contents.path, seal) or origin
        return all(now[name] != before[name] for name in now.keys() & before.keys())

    def _before(self, path: Path, seal: Checkpoint | None) -> dict[str, int]:
        """The times of the files of the version that was sealed last."""
        return adopted_part(seal).modified_ns if seal else self._written.previous(path)

    def _order(self, sighting: _Sighting) -> tuple[int, int]:
        """By step, then by time, which is all there is where names have no numbers."""
        return self._pattern.step_of(sighting.contents.path) or 0, _last_change(sighting)

    def _pass_over_older(
        self, in_order: list[_Sighting], seals: dict[Path, Checkpoint], moment: Moment
    ) -> None:
        """Have only the newest of those count that others wrote, and that we do not have yet."""
        good = bad = 0
        newest_ns = max(
            (_newest_ns(adopted_part(s).modified_ns) for s in seals.values()), default=0
        )
        for sighting in reversed(in_order):
            if self._written.is_ours(sighting.contents.path):
                continue
            if good == FROM_BEFORE or _last_change(sighting) < newest_ns:
                sighting.problem, sighting.told = "newer ones were there", True
                continue
            with contextlib.suppress(OSError):
                self._examine(sighting, seals)
            if (finding := sighting.finding) is not None:
                good += finding.proven or moment is Moment.FIRST
            else:
                bad += 1
                sighting.told = bad > FROM_BEFORE_TOLD

    def _judge(
        self,
        sighting: _Sighting,
        seals: dict[Path, Checkpoint],
        moment: Moment,
        reason: Reason,
        followed: bool,
    ) -> ScanEvent | None:
        quiet = self._clock() - sighting.since
        if moment is Moment.RUNNING and self._is_too_early(sighting.contents, quiet, followed):
            return None
        if sighting.finding is None and sighting.problem is None:
            self._examine(sighting, seals)
        finding = sighting.finding
        if finding is None:
            return self._incomplete(sighting, str(sighting.problem), moment)
        if (
            finding.proven
            or moment in (Moment.FIRST, Moment.ENDED_WELL)
            or (quiet >= LONG_QUIET_SECONDS and moment is not Moment.BEFORE)
            or followed
        ):
            return self._seal(sighting, reason)
        return self._incomplete(sighting, finding.doubt, moment)

    def _last_begun(self, seals: dict[Path, Checkpoint]) -> dict[str, int]:
        """When the last save of each kind of name was begun."""
        found = {path: adopted_part(seal).modified_ns for path, seal in seals.items()}
        found |= {path: sighting.contents.modified_ns for path, sighting in self._open.items()}
        begun: dict[str, int] = defaultdict(int)
        for path, times in found.items():
            kind = kind_of(path.name)
            begun[kind] = max(begun[kind], min(times.values(), default=0))
        return begun

    def _is_too_early(self, contents: Contents, quiet: float, followed: bool) -> bool:
        if contents.is_directory and quiet < QUIET_SECONDS and not followed:
            return True
        return self._clock() < self._not_before.get(contents.path, 0.0)

    def _examine(self, sighting: _Sighting, seals: dict[Path, Checkpoint]) -> None:
        contents = sighting.contents
        others = [s for s in seals.values() if adopted_part(s).is_directory]
        usual = None
        if others:
            last = max(others, key=lambda seal: seal.order).manifest
            usual = {name: file.bytes for name, file in last.files.items()}
        try:
            before = self._before(contents.path, seals.get(contents.path))
            check_all_new(contents.modified_ns, before)
            sighting.finding = examine(contents, usual)
        except IncompleteError as error:
            sighting.problem = str(error)

    def _seal(self, sighting: _Sighting, reason: Reason) -> ScanEvent | None:
        contents = sighting.contents
        path, began = contents.path, self._clock()
        cpu_began = time.thread_time()
        try:
            checkpoint = self._store.seal(
                Sealing(
                    contents,
                    self._pattern.step_of(path),
                    reason,
                    written_here=self._written.is_ours(path),
                    keep=self._pattern.is_one_path,
                    link=_replaces(self._last_sealed.get(path), contents),
                )
            )
        finally:
            self.sealing_cpu_seconds += time.thread_time() - cpu_began
        now = self._clock()
        self._not_before[path] = now + (now - began) / SEALING_SHARE
        if checkpoint is None:
            return None  # it has changed meanwhile: seen at the next look
        self._store.withdraw_older(checkpoint)
        self._last_sealed[path] = contents
        self._written.settled(path)
        self._open.pop(path, None)
        return Sealed(checkpoint, min(contents.modified_ns.values()))

    def _incomplete(self, sighting: _Sighting, reason: str, moment: Moment) -> ScanEvent | None:
        path = sighting.contents.path
        if moment is Moment.RUNNING:
            return None
        if self._written.is_ours(path):
            where = self._store.set_aside(path, reason)
            self._written.settled(path)
            self._open.pop(path, None)
            return SetAside(path, where, reason)
        if sighting.told:
            return None
        sighting.told = True
        return LeftAlone(path, reason)


def adopted_part(seal: Checkpoint) -> Adopted:
    """What the manifest of a seal says of the files."""
    assert seal.manifest.adopted is not None
    return seal.manifest.adopted


def _last_change(sighting: _Sighting) -> int:
    return _newest_ns(sighting.contents.modified_ns)


def _newest_ns(modified_ns: dict[str, int]) -> int:
    """When the last of the files was written."""
    return max(modified_ns.values(), default=0)


def _replaces(previous: Contents | None, contents: Contents) -> bool:
    """Whether the script puts new files in the place of the old ones, and leaves these alone."""
    if previous is None:
        return False
    both = previous.files.keys() & contents.files.keys()
    return all(previous.files[name].inode != contents.files[name].inode for name in both)
