"""Where the script is in the loop that the session counts, and what that means for a checkpoint."""

from dataclasses import dataclass

_CHANGED = "the run stopped in code after the batches that changes weights; that code runs again"
_OWN_BATCHES = "the epoch starts over, since its batches do not come from session.batches()"
_EVALUATION = "it was made inside an evaluation between two steps, which does not run again"


@dataclass
class LoopPosition:
    """Outside of ``session.epochs()`` and ``session.steps()``; the base of the other two."""

    has_batches: bool = False
    """Whether ``session.batches()`` was asked for here."""
    was_changed: bool = False
    """Whether a checkpoint was demanded after weights had changed since the replay point."""

    def is_resumable(self, step: int) -> bool:
        """Return whether the session's counters describe this place after ``step`` steps."""
        return True

    def caveats(self, step: int, *, in_evaluation: bool) -> list[str]:
        """Return why a run resumed from here may differ from one that was not interrupted."""
        if self.was_changed:
            return [_CHANGED]
        return [_EVALUATION] if in_evaluation and self.has_batches else []


@dataclass
class InEpoch(LoopPosition):
    """In a round of ``session.epochs()``, which began after ``began_at`` steps."""

    began_at: int = 0

    def is_resumable(self, step: int) -> bool:
        """Return False after the only step of an epoch that does not use ``session.batches()``.

        The epoch may be over, and a run resumed from there would do it again; if it is, its end
        is an instant away.
        """
        return self.has_batches or step - self.began_at != 1

    def caveats(self, step: int, *, in_evaluation: bool) -> list[str]:
        """Add that an epoch whose batches the session does not know starts over."""
        if self.was_changed or self.has_batches:
            return super().caveats(step, in_evaluation=in_evaluation)
        return [_OWN_BATCHES] if step > self.began_at else []


@dataclass
class InStep(LoopPosition):
    """In a round of ``session.steps()``: in step ``number``, counted from 0, or after it."""

    number: int = 0

    def is_resumable(self, step: int) -> bool:
        """Return whether the step is complete."""
        return step > self.number

    def caveats(self, step: int, *, in_evaluation: bool) -> list[str]:
        """Return the doubts; every evaluation here is between two steps."""
        if self.was_changed:
            return [_CHANGED]
        return [_EVALUATION] if in_evaluation else []
