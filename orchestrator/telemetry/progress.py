"""How far a run is, and how long it still takes: the ``progress`` object of `status --json`."""

from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Self

from orchestrator.system.units import LONGEST_SECONDS, duration_text

# What the journal says of the end of a run.
_COUNTS = ("step", "epoch", "total_steps", "total_epochs")
LARGEST_COUNT = (1 << 63) - 1


@dataclass(frozen=True)
class Progress:
    """How far a run is. None means unknown.

    ``step`` and ``epoch`` count what is complete, ``total_steps`` and ``total_epochs`` the whole
    training. ``percent`` is that of the steps or, where their total is unknown, of the epochs.
    ``steps_per_second`` is the recent pace, and ``seconds_left`` follows from it.
    """

    step: int | None = None
    total_steps: int | None = None
    epoch: int | None = None
    total_epochs: int | None = None
    percent: float | None = None
    steps_per_second: float | None = None
    seconds_left: float | None = None

    @classmethod
    def of(
        cls,
        step: int | None,
        epoch: int | None,
        total_steps: int | None = None,
        total_epochs: int | None = None,
        steps_per_second: float | None = None,
    ) -> Self:
        """Return the progress that follows from the counts and the pace."""
        seconds_left = None
        if step is not None and total_steps and steps_per_second:
            seconds_left = max(0, total_steps - step) / steps_per_second
            seconds_left = round(min(seconds_left, LONGEST_SECONDS), 1)
        by_steps, by_epochs = _percent(step, total_steps), _percent(epoch, total_epochs)
        return cls(
            step=step,
            total_steps=total_steps,
            epoch=epoch,
            total_epochs=total_epochs,
            percent=by_epochs if by_steps is None else by_steps,
            steps_per_second=steps_per_second and float(f"{steps_per_second:.4g}"),
            seconds_left=seconds_left,
        )

    @classmethod
    def at_end(cls, event: dict[str, Any]) -> Self:
        """Return the progress that the event of a run's end tells; what it lacks is unknown."""
        counts = {name: event.get(name) for name in _COUNTS}
        # Another program may have written any number.
        return cls.of(
            **{
                n: c if c is not None and 0 <= c <= LARGEST_COUNT else None
                for n, c in counts.items()
            }
        )

    def facts_of_end(self) -> dict[str, int | None]:
        """Return what the journal says of it when the run ends."""
        facts = asdict(self)
        return {name: facts[name] for name in _COUNTS}


def _percent(done: int | None, total: int | None) -> float | None:
    if done is None or not total:
        return None
    return min(100.0, 10_000 * done // total / 100)  # rounded down: 100 is the end


def progress_text(progress: dict[str, Any]) -> str:
    """Return a line for people about the ``progress`` object; empty where no step is known."""
    if progress["step"] is None:
        return ""
    parts = [_of_total(f"step {progress['step']}", progress["total_steps"])]
    if (epoch := progress["epoch"]) is not None:
        total = progress["total_epochs"]
        plural = "" if (total or epoch) == 1 else "s"
        parts.append(f"{_of_total(str(epoch), total)} epoch{plural} done")
    if progress["percent"] is not None:
        parts.append(percent_text(progress["percent"]))
    if progress["steps_per_second"] is not None:
        parts.append(f"{progress['steps_per_second']:.3g} steps/s")
    if (seconds := progress["seconds_left"]) is not None:
        parts.append(f"{duration_text(seconds)} left, until {end_text(seconds)}")
    return ", ".join(parts)


def percent_text(percent: float) -> str:
    """Return whole per cent, rounded down."""
    return f"{int(percent)} %"


def end_text(seconds_left: float) -> str:
    """Return the local time that is so many seconds away, with its date if that is another day."""
    now = datetime.now(UTC)
    # The zone may have another offset then.
    end = (now + timedelta(seconds=max(0.0, min(seconds_left, LONGEST_SECONDS)))).astimezone()
    is_today = end.date() == now.astimezone().date()
    return f"{end:%H:%M}" if is_today else f"{end:%Y-%m-%d %H:%M}"


def _of_total(text: str, total: int | None) -> str:
    return text if total is None else f"{text} of {total}"
