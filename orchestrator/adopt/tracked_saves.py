"""The saves of a script that are no checkpoints yet, and since when each of them is unchanged."""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from orchestrator.adopt.file_owners import FileOwners
from orchestrator.adopt.files import SavedFiles, kind_of
from orchestrator.adopt.save_check import Completeness
from orchestrator.adopt.scan_events import STARTS, Moment
from orchestrator.adopt.seal_policy import Proof
from orchestrator.adopt.seal_store import Seal
from orchestrator.adopt.unit_pattern import UnitPattern
from orchestrator.adopt.write_ledger import WriteLedger


@dataclass
class TrackedSave:
    """Files that are no checkpoint, or not yet, and what is known about them."""

    files: SavedFiles
    unchanged_since: float
    """By the scanner's clock, in seconds."""
    times_before_run: dict[str, int]
    """The modification times of its files before a trainer ran; empty for a save of the run."""
    stranger: str | None = None
    """Another user to whom a file of it belongs: it is no checkpoint, whole or not."""
    completeness: Completeness | None = None
    problem: str | None = None
    """Why it is incomplete."""
    held_open: bool = False
    """Whether the trainer had a file of it open for writing when that was last looked at."""
    held_open_until: float = 0.0
    """By the scanner's clock: how long that counts."""
    reported: bool = False
    """Whether it was reported, or need not be, that this is no checkpoint."""

    @property
    def path(self) -> Path:
        """The file or directory that the script writes."""
        return self.files.path

    @property
    def proof(self) -> Proof:
        """What is known about whether it is whole."""
        if self.problem is not None:
            return Proof.INCOMPLETE
        if self.completeness is None:
            return Proof.NOT_EXAMINED
        return Proof.PROVEN if self.completeness.proven else Proof.UNPROVEN

    @property
    def is_settled(self) -> bool:
        """Whether it stays no checkpoint unless it changes."""
        return self.reported and self.problem is not None


class SaveTracker:
    """Tracks every save that matches the pattern and is not sealed as it is now."""

    def __init__(
        self,
        pattern: UnitPattern,
        ledger: WriteLedger,
        owners: FileOwners,
        clock: Callable[[], float],
    ) -> None:
        self._pattern = pattern
        self._ledger = ledger
        self._owners = owners
        self._clock = clock
        self._saves: dict[Path, TrackedSave] = {}

    @property
    def has_undecided(self) -> bool:
        """Whether any save may still turn out to be whole."""
        return any(save.problem is None for save in self._saves.values())

    def unsettled(self) -> list[TrackedSave]:
        """Return the saves on which a decision may be due."""
        return [save for save in self._saves.values() if not save.is_settled]

    def observe(self, paths: Collection[Path], seals: Mapping[Path, Seal], moment: Moment) -> None:
        """Look at all paths that exist; saves at other paths are gone."""
        self._saves = self._look_at(paths, seals, moment)

    def observe_unsettled(self, seals: Mapping[Path, Seal]) -> None:
        """Look again only at the unsettled saves, while a trainer runs."""
        settled = {path: save for path, save in self._saves.items() if save.is_settled}
        paths = self._saves.keys() - settled.keys()
        self._saves = self._look_at(paths, seals, Moment.RUNNING) | settled

    def drop(self, path: Path) -> None:
        """Stop tracking a save that is sealed or out of the way."""
        self._saves.pop(path, None)

    def previous_times(self, path: Path, seal: Seal | None) -> dict[str, int]:
        """Return the modification times of the version that was sealed last; empty without one."""
        return seal.adopted.modified_ns if seal else self._ledger.times_before_rewrite(path)

    def last_begun(self, seals: Mapping[Path, Seal]) -> Mapping[str, int]:
        """Return when the last save of each kind of name was begun, in nanoseconds."""
        begun: dict[str, int] = defaultdict(int)
        found = {path: min(s.adopted.modified_ns.values(), default=0) for path, s in seals.items()}
        own = {path: save for path, save in self._saves.items() if save.stranger is None}
        found |= {path: save.files.first_change_ns for path, save in own.items()}
        for path, time_ns in found.items():
            kind = kind_of(path.name)
            begun[kind] = max(begun[kind], time_ns)
        return begun

    def _look_at(
        self, paths: Collection[Path], seals: Mapping[Path, Seal], moment: Moment
    ) -> dict[Path, TrackedSave]:
        found = {}
        written = []
        for path in paths:
            files, seal = self._pattern.look_at(self._pattern.members(path)), seals.get(path)
            if files is None or self._is_known(files, seal):
                continue
            save = self._saves.get(path)
            if save is None or save.files != files:
                times_before_run = save.times_before_run if save is not None else {}
                try:
                    stranger = self._owners.stranger_of(files)
                except OSError:
                    continue  # it is being taken away
                if moment in STARTS:
                    times_before_run = files.modified_ns
                elif stranger is None and self._is_work_of_run(files, seal, times_before_run):
                    written.append(path)
                save = TrackedSave(files, self._clock(), times_before_run, stranger)
                if stranger is not None:
                    save.problem = f"a file of it belongs to {stranger}; a copy would be yours"
            found[path] = save
        self._ledger.record_writes(written)
        return found

    def _is_known(self, files: SavedFiles, seal: Seal | None) -> bool:
        """Return whether it was a checkpoint as it is, or some of its files are deleted since."""
        before = self.previous_times(files.path, seal)
        if not before:
            return False
        now = files.modified_ns.items()
        return now <= before.items() and (seal is not None or len(now) < len(before))

    def _is_work_of_run(
        self, files: SavedFiles, seal: Seal | None, times_before_run: dict[str, int]
    ) -> bool:
        """Return whether the run wrote all files; not where it added some to others' files."""
        if seal is not None and seal.adopted.written_here:
            return True
        now = files.modified_ns
        before = self.previous_times(files.path, seal) or times_before_run
        return all(now[name] != before[name] for name in now.keys() & before.keys())
