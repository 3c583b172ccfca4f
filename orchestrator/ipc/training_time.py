"""What a trainer's time was spent for so far, as its control page tells, also after its death."""

from orchestrator.ipc.control_page import ControlPage, Field

NANOSECONDS = 1e9


def training_time(page: ControlPage, began: float, until: float) -> dict[str, float | None]:
    """Return the parts of the time from ``began`` to ``until`` (time.monotonic) in seconds.

    Returns:
        ``starting_seconds``, until the session had its state; ``training_seconds`` from then to the
        last safe point or save; ``saving_seconds``, while the loop waited for saves; and
        ``unfinished_seconds``, from the last safe point or save on. They add up to the whole. Each
        is None before training has begun.
    """
    values = page.values
    names = ("starting_seconds", "training_seconds", "saving_seconds", "unfinished_seconds")
    if not values[Field.TRAINING_NS]:
        return dict.fromkeys(names)
    # A broken trainer may write anything.
    begun = min(max(began, values[Field.TRAINING_NS] / NANOSECONDS), until)
    last = max(values[Field.HEARTBEAT_NS], values[Field.SAVED_NS]) / NANOSECONDS
    last = min(max(begun, last), until)
    saving = min(max(0.0, values[Field.SAVING_NS] / NANOSECONDS), last - begun)
    parts = (begun - began, last - begun - saving, saving, until - last)
    return {name: round(seconds, 3) for name, seconds in zip(names, parts, strict=True)}
