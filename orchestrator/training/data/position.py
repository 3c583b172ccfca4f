"""The position in a run's data: where each pass over it is, and where it goes on after a cut.

The order of an epoch is a function of (seed, epoch), and of the number of the pass where an epoch
makes several; the position is counted in batches consumed by steps, not in batches prefetched.
"""

import weakref
from collections.abc import Generator, Iterable, Mapping
from typing import Any

from torch.utils.data import DataLoader

from orchestrator.errors import MismatchError
from orchestrator.training.data.data_pass import DataPass, Facts, differences, facts_of, start_of
from orchestrator.training.data.other_loaders import (
    Opened,
    has_own_state,
    has_positions,
    open_by_own_state,
    open_by_reading,
)
from orchestrator.training.data.seekable_loader import SeekableLoader
from orchestrator.training.state import rng
from orchestrator.training.state.accelerate import begin_epoch
from orchestrator.training.state.digests import digest


def digest_of_next(state: Mapping[str, Any]) -> str:
    """A digest of the batches that come next in the passes of a position's ``state``."""
    return digest([each.get("next") for each in state["passes"]])


class DataPosition:
    """The positions of all passes that the current epoch has begun, in the order of their begin."""

    def __init__(self, seed: int, *, allow_change: bool = False) -> None:
        """With ``allow_change`` a pass goes on with another loader than it had, and says so."""
        self.seed = seed
        self.problems: list[str] = []
        self.resumed_pass: int | None = None
        """The pass in which the checkpoint was made, until the script is there again."""
        self._allow_change = allow_change
        self._open: list[DataPass] = []
        self._passes: list[DataPass] = []
        self._to_resume: list[dict[str, Any]] = []
        # The states of the passes of the epoch before this one; on resume, those of the epoch
        # before the cut, until this epoch ends.
        self._last_epoch: list[dict[str, Any]] = []
        self._before_cut: list[dict[str, Any]] = []
        # Kept from epoch to epoch, for the sake of persistent workers.
        self._loaders: weakref.WeakKeyDictionary[DataLoader[Any], SeekableLoader]
        self._loaders = weakref.WeakKeyDictionary()

    def state(self) -> dict[str, Any]:
        """What the checkpoint keeps under ``data``."""
        return {
            "seed": self.seed,
            "passes": [p.state() for p in self._passes] + self._to_resume[len(self._passes) :],
            "pass": self._current_pass() if self.resumed_pass is None else self.resumed_pass,
            "last_epoch": self._last_epoch,
        }

    def _current_pass(self) -> int | None:
        """The first of those that are open, or the last that was; evaluations do not count."""
        used = [each for each in self._passes if each.consumed]
        if not used:
            return None
        return self._passes.index(next((p for p in used if p in self._open), used[-1]))

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from what ``state`` returned."""
        self.seed = int(state["seed"])
        self._to_resume = list(state["passes"])
        self.resumed_pass = state["pass"]
        self._last_epoch = self._before_cut = list(state["last_epoch"])

    def begin_epoch(self) -> None:
        """Forget the positions of the epoch that ended."""
        if self.resumed_pass is not None:
            self.problems.append("the epoch ended before the interrupted pass over the data")
        self._last_epoch = [each.state() for each in self._passes]
        self._before_cut = []
        self._passes = []
        self._to_resume = []
        self._open = []
        self.resumed_pass = None

    def consume(self) -> None:
        """A step has used every batch that was taken: several passes may be open, as under zip."""
        if self.resumed_pass is not None:
            self.problems.append("a step came before the interrupted pass over the data")
            self.resumed_pass = None
        for each in self._open:
            each.consumed = each.taken

    @property
    def is_at_resumed_pass(self) -> bool:
        """Whether the next pass to begin is the one in which the checkpoint was made."""
        return self.resumed_pass in (None, len(self._passes))

    @property
    def mid_batch(self) -> bool:
        """Whether batches were taken that no step has consumed yet."""
        return any(each.taken != each.consumed for each in self._open)

    def check(self, loader: Iterable[Any]) -> None:
        """Refuse another loader than the one the next pass was cut over. Raises MismatchError."""
        index = len(self._passes)
        saved = self._saved(index)
        changes = differences(saved["loader"], facts_of(loader)) if saved.get("batches") else []
        if changes and not self._allow_change:
            raise MismatchError(
                f"cannot resume at batch {saved['batches']} of pass {index + 1} over the data: "
                "the data or the loader has changed\n  "
                + "\n  ".join(changes)
                + "\nundo that, or resume anyway with --allow-data-change "
                "(ORCHESTRATOR_ALLOW_DATA_CHANGE=on); the run is APPROXIMATE then"
            )

    def batches(self, loader: Iterable[Any], epoch: int) -> Generator[Any, None, bool]:
        """The batches of this epoch that are still to do; returns whether steps used them all."""
        index = len(self._passes)
        inside_another = bool(self._open)
        facts, saved = facts_of(loader), self._saved(index)
        changed = self._note_changes(index, facts)
        start = start_of(saved, facts)
        # A second pass in the same epoch has an order of its own.
        seed = rng.derive_seed(self.seed, epoch, index)
        opened = self._open_pass(loader, seed, epoch, index, start)
        this = DataPass(facts, saved, start, opened)
        self._passes.append(this)
        self._open.append(this)
        try:
            for batch in opened.batches:
                if this.taken == this.start and not changed:
                    self._check_first_batch(index, this)
                this.taken += 1
                yield batch
            this.ended = True
            return this.taken == this.consumed
        finally:
            if this in self._open:
                self._open.remove(this)
            if inside_another and not this.consumed and this in self._passes:
                # An evaluation between two steps. A resumed run does not repeat it, so it has no
                # place among the passes; one beside them is repeated and needs its own.
                self._passes.remove(this)

    def _saved(self, index: int) -> dict[str, Any]:
        return self._to_resume[index] if index < len(self._to_resume) else {}

    def _seen_last(self, index: int) -> dict[str, Any]:
        """The state of this pass in the epoch that was cut, or else in the one before."""
        saved = self._saved(index)
        # One that begins inside another may be an evaluation, which has no number of its own.
        if saved or self._open or index >= len(self._before_cut):
            return saved
        return self._before_cut[index]

    def _note_changes(self, index: int, facts: Facts | None) -> bool:
        """Whether there was another loader here before the run was cut; a problem then."""
        seen = self._seen_last(index)
        changes = differences(seen["loader"], facts) if seen else []
        if changes:
            self.problems.append(f"pass {index + 1} over the data: {', '.join(changes)}")
        return bool(changes)

    def _open_pass(self, loader: Any, seed: int, epoch: int, index: int, start: int) -> Opened:
        if has_positions(loader):
            if loader not in self._loaders:
                self._loaders[loader] = SeekableLoader(loader)
            return self._loaders[loader].open(seed, epoch, start)
        begin_epoch(loader, epoch)
        own_state, ended = self._seen_last(index).get("own"), self._saved(index).get("ended", False)
        if has_own_state(loader) and (own_state is not None or not start):
            opened = open_by_own_state(loader, seed, start, own_state, ended=ended)
            self.problems += opened.doubts
            return opened
        return open_by_reading(loader, seed, start)

    def _check_first_batch(self, index: int, this: DataPass) -> None:
        if not this.goes_on_as_saved():
            self.problems.append(
                f"pass {index + 1} over the data continues with other samples than expected"
            )
