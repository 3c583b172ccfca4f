"""Position within one pass over a loader, and a check that it continues with the expected batch."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch.utils.data import BatchSampler

from orchestrator.training.data.other_loaders import Opened, has_positions

Facts = dict[str, Any]


class DataPass:
    """The position in one pass, in batches.

    Attributes:
        facts: What the loader is; None where that cannot be known.
        length: How many batches the whole pass has; None where that is not known.
        start: The batch at which this process began.
        taken: How many batches were given to the loop.
        consumed: How many of them a completed step has used; only they count after a resume.
        ended: Whether the loader has no more.
    """

    __slots__ = (
        *("_own_state", "_past", "_saved", "_upcoming"),
        *("consumed", "ended", "facts", "length", "start", "taken"),
    )

    def __init__(
        self,
        facts: Facts | None,
        saved: Mapping[str, Any],
        start: int,
        opened: Opened,
        length: int | None = None,
    ) -> None:
        """Begin at batch ``start``; ``saved`` is its ``state`` before the cut, or empty."""
        self.facts = facts
        self.length = length
        self.start = self.consumed = self.taken = start
        self.ended = False
        self._saved = saved
        # Not its batches: their workers end when the loop leaves them.
        self._upcoming = opened.upcoming
        self._past = opened.past
        self._own_state = opened.own_state

    def state(self) -> dict[str, Any]:
        """Return what the checkpoint keeps of the pass."""
        # Its end may be seen only in this process: by then a loader's own state begins a new pass.
        if (
            self._saved
            and self.taken == self.start
            and self.ended == self._saved.get("ended", False)
        ):
            return dict(self._saved)
        past = self._past(self.consumed)
        if past is None and self.consumed == self.start:
            past = self._saved.get("past")  # a pass that was used up may draw nothing
        own = self._own_state() if self.taken == self.consumed else None
        return {
            "batches": self.consumed,
            "loader": self.facts,
            "past": past,
            "next": self._upcoming(self.consumed),
            "own": own,
            "ended": self.ended,
        }

    def continues_as_saved(self) -> bool:
        """Return whether the samples of its first batch since the cut are those to come next."""
        expected = self._saved.get("next")
        return expected is None or self._upcoming(self.start) == expected

    def has_saved_past(self) -> bool:
        """Return whether what was skipped is what had been taken before the cut."""
        expected = self._saved.get("past")
        return expected is None or self._past(self.start) in (None, expected)


def length_of(loader: Any) -> int | None:
    """Return how many batches a pass over ``loader`` has; None where it does not say."""
    # It is only shown: whatever a loader raises here, the training goes on without it.
    try:
        return len(loader)
    except Exception:
        return None


def start_of(saved: Mapping[str, Any], facts: Facts | None) -> int:
    """Return the batch at which a pass continues; with another batch size, by its first sample."""
    batches = int(saved.get("batches", 0))
    before, now = ((each or {}).get("batch_size") for each in (saved.get("loader"), facts))
    return batches * before // now if before and now else batches


def facts_of(loader: Iterable[Any]) -> Facts | None:
    """Return what must not change if positions are to mean the same; None where it is unknown."""
    if not has_positions(loader):
        return None
    samples_in_batches: Any = loader
    sampler = samples_in_batches.batch_sampler
    by = sampler.sampler if type(sampler) is BatchSampler else sampler
    try:
        samples = len(samples_in_batches.dataset)
    except TypeError:
        samples = None
    return {
        "samples": samples,
        "sampler": type(samples_in_batches.sampler if by is None else by).__name__,
        "batch_size": getattr(sampler, "batch_size", samples_in_batches.batch_size),
        "drop_last": getattr(sampler, "drop_last", samples_in_batches.drop_last),
    }


def differences(then: Facts | None, now: Facts | None) -> list[str]:
    """Return what differs, with both values."""
    if then is None or now is None:
        return [] if then == now else ["the kind of loader"]
    return [
        f"{name.replace('_', ' ')} {then[name]} then, {now[name]} now"
        for name in then
        if then[name] != now.get(name)
    ]
