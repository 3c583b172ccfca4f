"""The order of a script's saves: by what they descend from, and then by number.

Some scripts count from zero again after they have resumed. What such an attempt saves still comes
after what it has resumed from.
"""

from dataclasses import asdict, dataclass
from typing import Any, Self


@dataclass
class Descent:
    """What the running attempt has resumed from, and the steps of what it saves.

    ``since_ns`` is the start of the attempt by the clock. ``step`` and ``number`` are those of the
    checkpoint that it was offered; both are None if there was none. ``is_unread`` says that the
    script has not opened that checkpoint.
    """

    since_ns: int
    step: int | None = None
    number: int | None = None
    numbers_anew: bool = False
    is_unread: bool = False
    unread_saves: int = 0

    def step_of(self, number: int | None, written_ns: int, highest: int) -> int:
        """Return the step of a save.

        ``number`` is the one in its name, ``highest`` the highest step of the run.
        """
        if written_ns < self.since_ns or self.step is None:
            return highest + 1 if number is None else number
        if self.is_unread:
            # It has begun from zero: only what goes beyond the earlier attempts is progress.
            return self.unread_saves + 1 if number is None else number
        if number is None:
            return highest + 1
        if self.number is None:
            return number
        if self.is_renumbered(number, written_ns):
            return self.step + 1 + number
        return number + self.step - self.number

    def is_renumbered(self, number: int | None, written_ns: int) -> bool:
        """Return whether the attempt counts from zero again, as far as this save shows."""
        if self.number is None or number is None or written_ns < self.since_ns:
            return False
        return not self.is_unread and (self.numbers_anew or number < self.number)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Any) -> Self:
        """Parse what ``to_json`` has returned. Raises ValueError, TypeError and LookupError."""
        descent = cls(**{name: content[name] for name in cls.__dataclass_fields__})
        counts = (descent.since_ns, descent.step or 0, descent.number or 0, descent.unread_saves)
        if not all(isinstance(count, int) and count >= 0 for count in counts):
            raise ValueError("not counts")
        return descent
