"""Where in the script's loop the session is, as far as it can know."""

from dataclasses import dataclass


@dataclass
class Place:
    """One round of ``session.epochs()`` or ``session.steps()``, or neither."""

    epoch_began_at_step: int | None = None
    has_batches: bool = False
    open_step: int | None = None
    """The step that ``steps()`` has begun; done once the session's count is beyond it."""
    was_changed: bool = False
    """Whether a checkpoint was demanded after weights had changed outside the known places."""

    def is_resumable(self, step: int) -> bool:
        """Whether the session's counters describe this place.

        Not inside a step. Nor after the only step of an epoch that does not use
        ``session.batches()``: the epoch may be over, and a run resumed from there would do it
        again; its end is an instant away if so.
        """
        if self.open_step is not None:
            return step > self.open_step
        if self.epoch_began_at_step is None or self.has_batches:
            return True
        return step - self.epoch_began_at_step != 1

    def caveats(self, step: int, polling: bool) -> list[str]:
        """Why a run resumed from here could differ from one that was not interrupted."""
        if self.was_changed:
            return ["it was made outside the batches with changed weights; that part runs again"]
        if self.epoch_began_at_step is not None and not self.has_batches:
            if step > self.epoch_began_at_step:
                return [
                    "the epoch begins anew, since its batches do not come from session.batches()"
                ]
        elif polling and (self.has_batches or self.open_step is not None):
            return ["it was made inside an evaluation between two steps, which does not run again"]
        return []
