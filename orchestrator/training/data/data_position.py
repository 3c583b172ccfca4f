"""The position in a run's data: where each pass over it is, and where it continues after a cut.

The order of an epoch is a function of (seed, epoch), and of the number of the pass where an epoch
makes several; the position is counted in batches consumed by steps, not in batches prefetched.
"""

import weakref
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch.utils.data import DataLoader

from orchestrator.errors import MismatchError
from orchestrator.training.data.cycles import Cycles
from orchestrator.training.data.data_pass import (
    DataPass,
    Facts,
    differences,
    facts_of,
    length_of,
    start_of,
)
from orchestrator.training.data.endless import Rounds
from orchestrator.training.data.first_batch import CYCLES, FirstBatch
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

_NOT_REACHED = "before the script reached the place where it was interrupted"


def digest_of_next(state: Mapping[str, Any]) -> str:
    """Return a digest of the batches that come next in the passes and cycles of a ``state``."""
    return digest([each.get("next") for each in (*state["passes"], *state.get("cycles", ()))])


@dataclass(frozen=True)
class Cut:
    """Where the previous attempt was cut, as its checkpoint says; empty once that epoch ends.

    ``passes`` and ``previous_epoch`` hold the states of the passes of the epoch that was cut and
    of the one before it. ``in_pass`` is the index of the pass in which the checkpoint was made,
    None where it was made in no pass.
    """

    passes: list[dict[str, Any]] = field(default_factory=list)
    previous_epoch: list[dict[str, Any]] = field(default_factory=list)
    in_pass: int | None = None

    def state_of(self, index: int) -> dict[str, Any]:
        """Return the state of a pass of the epoch that was cut; empty for one it had not begun."""
        return self.passes[index] if index < len(self.passes) else {}


class DataPosition:
    """The positions of all passes that the current epoch has begun, in the order of their begin.

    ``is_returning`` holds from ``load`` of a checkpoint that was made in a pass until the script is
    in that pass again (``arrive``), or has left the way there by a step or the end of the epoch.
    """

    def __init__(self, seed: int, *, allow_change: bool = False) -> None:
        """With ``allow_change`` a pass may continue with another loader than it had."""
        self.seed = seed
        self.problems: list[str] = []
        self.is_returning = False
        self.first_batch = FirstBatch()
        self._allow_change = allow_change
        self._is_resumed = False
        self._open: list[DataPass] = []
        self._passes: list[DataPass] = []
        self._cut = Cut()
        self._cycles = Cycles()
        self._states_of_last_epoch: list[dict[str, Any]] = []
        # Kept from epoch to epoch, for the sake of persistent workers.
        self._loaders: weakref.WeakKeyDictionary[DataLoader[Any], SeekableLoader]
        self._loaders = weakref.WeakKeyDictionary()

    def state(self) -> dict[str, Any]:
        """Return what the checkpoint keeps under ``data``."""
        begun = [each.state() for each in self._passes]
        return {
            "seed": self.seed,
            "passes": begun + self._cut.passes[len(begun) :],
            "pass": self._cut.in_pass if self.is_returning else self._current_pass(),
            "last_epoch": self._states_of_last_epoch,
            "cycles": self._cycles.states(),
        }

    @property
    def used_passes(self) -> list[DataPass]:
        """The passes of this epoch whose batches steps have used; an evaluation is none."""
        return [each for each in self._passes if each.consumed]

    def _current_pass(self) -> int | None:
        """Return the first pass that is open, or else the last one; evaluations do not count."""
        used = self.used_passes
        if not used:
            return None
        return self._passes.index(next((p for p in used if p in self._open), used[-1]))

    # --- restoring ---------------------------------------------------------------------------

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from what ``state`` returned."""
        self._is_resumed = True
        self.seed = int(state["seed"])
        self._states_of_last_epoch = list(state["last_epoch"])
        self._cycles.load(state.get("cycles", ()))
        self._cut = Cut(list(state["passes"]), self._states_of_last_epoch, state["pass"])
        self.is_returning = self._cut.in_pass is not None

    @property
    def is_at_cut_pass(self) -> bool:
        """Whether the next pass to begin is the one to return to; True if there is none."""
        return not self.is_returning or self._cut.in_pass == len(self._passes)

    @property
    def has_missed_cut(self) -> bool:
        """Whether passes were begun, and not the one to return to."""
        return self.is_returning and bool(self._passes)

    @property
    def has_rounds(self) -> bool:
        """Whether steps have used two passes of this epoch in a row over loaders that are alike."""
        used = self.used_passes
        return len(used) > 1 and not self._open and not differences(used[-2].facts, used[-1].facts)

    def arrive(self) -> None:
        """Record that the script is back where the checkpoint was made."""
        self.is_returning = False

    # --- what the loop does ------------------------------------------------------------------

    def begin_epoch(self) -> None:
        """Forget the positions of the epoch that ended."""
        if self.is_returning:
            self.problems.append(f"an epoch ended {_NOT_REACHED}")
            self.is_returning = False
        # Their data does not come again, so that their past is not compared any more.
        self._states_of_last_epoch = [each.state() | {"past": None} for each in self._passes]
        self._cut = Cut()
        self._passes = []
        self._open = []

    def consume(self) -> None:
        """Count every batch that was taken as used by a step; under zip several passes are open."""
        if self.is_returning:
            self.problems.append(f"a step ended {_NOT_REACHED}")
            self.is_returning = False
        # Two loops: to join the lists would take longer than both.
        for each in self._open:
            each.consumed = each.taken
        for each in self._cycles.passes:
            each.consumed = each.taken

    @property
    def mid_batch(self) -> bool:
        """Whether batches were taken that no step has consumed yet."""
        begun = (*self._open, *self._cycles.passes)
        return any(each.taken != each.consumed for each in begun)

    def check(self, loader: Iterable[Any]) -> None:
        """Refuse another loader than the one that the next pass was cut over.

        Raises:
            MismatchError: It is another one, and such a change is not allowed.
        """
        index = len(self._passes)
        self._refuse_change(self._cut.state_of(index), loader, f"pass {index + 1} over the data")

    def _refuse_change(self, saved: Mapping[str, Any], loader: Iterable[Any], place: str) -> None:
        changes = differences(saved["loader"], facts_of(loader)) if saved.get("batches") else []
        if changes and not self._allow_change:
            raise MismatchError(
                f"cannot resume at batch {saved['batches']} of {place}: "
                "the data or the loader has changed\n  "
                + "\n  ".join(changes)
                + "\nundo that, or resume anyway with --allow-data-change "
                "(ORCHESTRATOR_ALLOW_DATA_CHANGE=on); the run is APPROXIMATE then"
            )

    def start_of_next(self, loader: Iterable[Any]) -> int:
        """Return the number of the batch at which the next pass, over ``loader``, begins."""
        return start_of(self._cut.state_of(len(self._passes)), facts_of(loader))

    def batches(self, loader: Iterable[Any], epoch: int) -> Generator[Any, None, bool]:
        """Yield the batches that this epoch has left; return whether steps used them all."""
        index = len(self._passes)
        inside_another = bool(self._open)
        facts, saved = facts_of(loader), self._cut.state_of(index)
        changed = self._record_changes(index, facts)
        start = start_of(saved, facts)
        # A second pass in the same epoch has an order of its own.
        seed = rng.derive_seed(self.seed, epoch, index)
        own_state = self._last_known_state(index).get("own")
        ended = bool(self._cut.state_of(index).get("ended", False))
        opened = self._open_pass(loader, seed, epoch, start, own_state, ended=ended)
        with rng.scoped(seed):  # a sampler may draw its batches to count them
            length = length_of(loader)
        this = DataPass(facts, saved, start, opened, length)
        self._add_doubts(opened)
        self._passes.append(this)
        self._open.append(this)
        try:
            name, key = f"pass {index + 1} over the data", (epoch, index)
            yield from self._take(this, opened.batches, name, key, changed=changed)
            this.ended = True
            return this.taken == this.consumed
        finally:
            if this in self._open:
                self._open.remove(this)
            if inside_another and not this.consumed and this in self._passes:
                # An evaluation between two steps. A resumed run does not repeat it, so it has no
                # place among the passes; one beside them is repeated and needs its own.
                self._passes.remove(this)

    def _last_known_state(self, index: int) -> dict[str, Any]:
        """Return the state of a pass in the epoch that was cut, or else in the one before it."""
        saved = self._cut.state_of(index)
        # A pass that begins inside another may be an evaluation, which has no number of its own.
        if saved or self._open or index >= len(self._cut.previous_epoch):
            return saved
        return self._cut.previous_epoch[index]

    def _record_changes(self, index: int, facts: Facts | None) -> bool:
        """Return whether the loader of this pass was another one before the cut; a problem then."""
        known = self._last_known_state(index)
        changes = differences(known["loader"], facts) if known else []
        if changes:
            self.problems.append(f"pass {index + 1} over the data: {', '.join(changes)}")
        return bool(changes)

    def cycle(self, loader: Iterable[Any]) -> Iterator[Any]:
        """Return the batches of ``loader`` without end, from where the cycle is.

        Cycles are known by the order of these calls, and do not end with an epoch. The iterator
        raises MismatchError where the cycle was cut over another loader, and ConfigError where a
        pass over the loader has no batch.

        Raises:
            ConfigError: There is a cycle over this loader already.
        """
        return self._cycle(loader, self._cycles.add(loader))

    def _cycle(self, loader: Iterable[Any], index: int) -> Iterator[Any]:
        facts, saved = facts_of(loader), self._cycles.cut(index)
        place = f"cycle {index + 1} over the data"
        self._refuse_change(saved, loader, place)
        changes = differences(saved["loader"], facts) if saved else []
        if changes:
            self.problems.append(f"{place}: {', '.join(changes)}")
        seed = rng.derive_seed(self.seed, -1, index)  # no epoch has that number
        open_round = partial(self._open_pass, loader)
        opened = Rounds(loader, open_round, seed, saved, facts).opened()
        this = DataPass(facts, saved, start_of(saved, facts), opened)
        self._add_doubts(opened)
        self._cycles.begin(index, this)
        key = (CYCLES, index)
        yield from self._take(this, opened.batches, place, key, changed=bool(changes))

    def _add_doubts(self, opened: Opened) -> None:
        if self._is_resumed:
            self.problems += [each for each in opened.doubts if each not in self.problems]

    def _take(
        self,
        this: DataPass,
        batches: Iterator[Any],
        name: str,
        key: tuple[int, int],
        *,
        changed: bool,
    ) -> Iterator[Any]:
        """Yield the batches of a pass; compare what was skipped, and the first that comes."""
        for batch in batches:
            if this.taken == this.start and not changed:
                self._check_position(name, this)
            if self.first_batch.is_awaited:
                differs = self.first_batch.differs((*key, this.taken), batch)
                if differs and not changed:
                    self.problems.append(
                        f"{name}: batch {this.taken + 1} holds other data than it had after the "
                        "snapshot"
                    )
            this.taken += 1
            yield batch
        if this.taken == this.start and not changed:
            self._check_position(name, this)

    def _open_pass(
        self, loader: Any, seed: int, epoch: int, start: int, own_state: Any, *, ended: bool = False
    ) -> Opened:
        """Open a pass from batch ``start`` on; ``ended`` says that it has no more."""
        if has_positions(loader):
            if loader not in self._loaders:
                self._loaders[loader] = SeekableLoader(loader)
            return self._loaders[loader].open(seed, epoch, start)
        begin_epoch(loader, epoch)
        if has_own_state(loader) and (own_state is not None or not start):
            return open_by_own_state(loader, seed, start, own_state, ended=ended)
        return open_by_reading(loader, seed, start)

    def _check_position(self, name: str, this: DataPass) -> None:
        if not this.continues_as_saved():
            self.problems.append(f"{name} continues with other samples than expected")
        elif not this.has_saved_past():
            self.problems.append(
                f"{name}: {this.facts['sampler']} has drawn other indices for the "
                "batches before the cut than it had"
                if this.facts
                else f"{name}: the loader has given other batches before the cut than it had"
            )
