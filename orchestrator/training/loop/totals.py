"""How many steps and epochs the whole training has, for those who watch it."""

import math

from orchestrator.ipc.control_page import Field
from orchestrator.training.data.data_position import DataPosition
from orchestrator.training.state.progress import Progress

# A loop over more has no end that anybody waits for.
LARGEST_TOTAL = 10**14


class Totals:
    """The totals that are announced once, on the control page."""

    def __init__(self, page: memoryview) -> None:
        self._page = page

    def announce(self, *, steps: float | None = None, epochs: float | None = None) -> None:
        """Show totals; None for what is not known."""
        self._page[Field.TOTAL_STEPS] = _count(steps)
        self._page[Field.TOTAL_EPOCHS] = _count(epochs)

    def refresh(self) -> None:
        """Show what has changed; called about once a second."""


class LoopTotals(Totals):
    """The totals of a session's loop, whose epochs have as many steps as their data gives.

    The steps of an epoch are those that the last whole one has taken. Before there is one, they
    follow from the length of its loaders and the number of batches to a step so far. An epoch that
    leaves batches over, or whose data has no length, says nothing about the next one.
    """

    def __init__(
        self, page: memoryview, progress: Progress, data: DataPosition, *, is_resumed: bool
    ) -> None:
        """With ``is_resumed`` the first epoch may not begin at its beginning."""
        super().__init__(page)
        self._progress = progress
        self._data = data
        self._is_whole = not is_resumed
        self._epochs = 0
        self._began_at = progress.step
        self._steps_of_epoch: int | None = None
        self._is_regular = True

    def announce(self, *, steps: float | None = None, epochs: float | None = None) -> None:
        """Show totals; where only the epochs are known, the steps follow from the data."""
        super().announce(steps=steps, epochs=epochs)
        self._epochs = _count(epochs) if steps is None else 0
        self._began_at = self._progress.step
        self.refresh()

    def end_epoch(self) -> None:
        """Learn from an epoch that is over, before it is counted."""
        used, step = self._data.used_passes, self._progress.step
        self._is_regular = bool(used) and all(
            each.ended and each.length is not None for each in used
        )
        is_known = self._is_regular and self._is_whole
        self._steps_of_epoch = step - self._began_at if is_known else None
        self._began_at, self._is_whole = step, True

    def refresh(self) -> None:
        """Show how many steps there are, as far as that is known now."""
        if self._epochs and (total := self._total_steps()) is not None:
            self._page[Field.TOTAL_STEPS] = _count(total)

    def _total_steps(self) -> int | None:
        """Return the steps of the whole training, 0 if unknown; None where there is no news."""
        epochs_left = self._epochs - self._progress.epoch
        if epochs_left <= 0:
            return self._progress.step
        if not self._is_regular:
            return 0
        if self._steps_of_epoch is not None:
            return self._began_at + epochs_left * self._steps_of_epoch
        used, step = self._data.used_passes, self._progress.step
        lengths = [each.length for each in used if each.length is not None]
        consumed = sum(each.consumed for each in used)
        batches, steps = consumed - sum(each.start for each in used), step - self._began_at
        if len(lengths) < len(used) or batches <= 0 or steps <= 0:
            return None
        length = sum(lengths)
        # The steps in this epoch from now on, and those of each epoch after it.
        left = math.ceil(max(0, length - consumed) * steps / batches)
        return step + left + (epochs_left - 1) * math.ceil(length * steps / batches)


def _count(total: float | None) -> int:
    """Return a total as the page has it: 0 for one that is unknown or has no end."""
    if total is None or not 0 < total <= LARGEST_TOTAL:
        return 0
    return math.ceil(total)
