"""The ledger of a run's wall time: the seconds of each part, in all and by attempt.

Training counts until an attempt begins at an earlier step: what lies beyond that step moves to
``done_twice``. So the ledger keeps which steps the counted seconds belong to, of a bounded number
of stretches.
"""

from dataclasses import dataclass, field
from enum import StrEnum

RECENT_ATTEMPTS = 20
MOST_STRETCHES = 64


class Part(StrEnum):
    """What wall time is spent for (docs/explanation/goodput.md)."""

    TRAINING = "training"
    DONE_TWICE = "done_twice"
    SAVING = "saving"
    STARTING = "starting"
    RESTARTING = "restarting"
    STOPPING = "stopping"
    WAITING = "waiting"
    IDLE = "idle"
    UNKNOWN = "unknown"


Seconds = dict[str, float]


@dataclass
class Share:
    """What the time of one attempt was spent for, the time before it included.

    ``attempt`` is None where no attempt came, and in a run without a supervisor.
    """

    serial: int
    attempt: int | None = None
    seconds: Seconds = field(default_factory=dict)


@dataclass
class Stretch:
    """The seconds of training from one step to another, and the serial number of their share."""

    first_step: int
    last_step: int
    seconds: float
    serial: int


@dataclass
class TimeLedger:
    """The seconds of each part: of the whole run, and of its newest attempts."""

    seconds: Seconds = field(default_factory=dict)
    shares: list[Share] = field(default_factory=lambda: [Share(0)])
    stretches: list[Stretch] = field(default_factory=list)
    """The training that counts, by steps; their order is that of the steps."""

    @property
    def current(self) -> Share:
        """The share that time is added to."""
        return self.shares[-1]

    def begin_share(self, attempt: int | None = None) -> None:
        """Begin the share of the next attempt, whose number may not be known yet."""
        if self.current.seconds or self.current.attempt is not None:
            self.shares = [*self.shares, Share(self.current.serial + 1)][-RECENT_ATTEMPTS:]
        self.current.attempt = attempt

    def add(self, seconds: Seconds) -> None:
        """Add time to the current share."""
        for part, more in seconds.items():
            _add(self.seconds, part, more)
            _add(self.current.seconds, part, more)

    def count(self, first_step: int, last_step: int, seconds: float) -> None:
        """Say which steps the ``seconds`` of training, which were added, belong to."""
        last_step, serial = max(first_step, int(last_step)), self.current.serial
        self.stretches.append(Stretch(first_step, last_step, float(seconds), serial))
        if len(self.stretches) > MOST_STRETCHES:
            oldest, second = self.stretches[:2]
            first, last = oldest.first_step, max(oldest.last_step, second.last_step)
            both = Stretch(first, last, oldest.seconds + second.seconds, second.serial)
            self.stretches[:2] = [both]

    def roll_back(self, step: int) -> None:
        """Let the training beyond ``step`` not count: it is done again."""
        while self.stretches and self.stretches[-1].last_step > step:
            last = self.stretches.pop()
            kept = 0.0
            if last.first_step < step:
                kept = (step - last.first_step) / (last.last_step - last.first_step)
                self.stretches.append(
                    Stretch(last.first_step, step, last.seconds * kept, last.serial)
                )
            self._move_to_done_twice(last.seconds * (1 - kept), last.serial)

    def _move_to_done_twice(self, seconds: float, serial: int) -> None:
        of_share = [share.seconds for share in self.shares if share.serial == serial]
        for parts in (self.seconds, *of_share):
            moved = min(seconds, parts.get(Part.TRAINING, 0.0))
            _add(parts, Part.TRAINING, -moved)
            _add(parts, Part.DONE_TWICE, moved)


def _add(parts: Seconds, part: str, seconds: float) -> None:
    parts[part] = max(0.0, parts.get(part, 0.0) + seconds)
