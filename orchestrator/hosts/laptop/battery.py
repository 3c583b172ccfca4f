"""Saves when the battery is low, before the machine switches off."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Protocol

import psutil
import structlog

from orchestrator.errors import NoThreadError
from orchestrator.system.threads import in_thread

LOW_PERCENTS = (15.0, 5.0)
POLL_SECONDS = 60.0


class Charge(Protocol):
    """The state of a battery as psutil reports it; ``power_plugged`` None means unknown."""

    percent: float
    power_plugged: bool | None


def read_battery() -> Charge | None:
    """Return the state of the battery; None if there is none or it cannot be read."""
    # psutil has the function only on some systems, and drivers may give values it cannot read.
    read = getattr(psutil, "sensors_battery", None)
    with contextlib.suppress(OSError, ValueError, psutil.Error):
        charge: Charge | None = read() if read else None
        return charge
    return None


class LowBattery:
    """Decides when to save: once at each threshold of a discharge."""

    def __init__(self) -> None:
        self._remaining: tuple[float, ...] = LOW_PERCENTS

    def crosses_threshold(self, charge: Charge) -> bool:
        """Return whether the charge has fallen to a threshold since the last call."""
        if charge.power_plugged is not False:
            self._remaining = LOW_PERCENTS
            return False
        passed = [percent for percent in self._remaining if charge.percent <= percent]
        self._remaining = self._remaining[len(passed) :]
        return bool(passed)


async def save_on_low_battery(
    save: Callable[[], Awaitable[object]],
    read: Callable[[], Charge | None] = read_battery,
    poll_seconds: float = POLL_SECONDS,
) -> None:
    """Poll the battery, and save when it is low; return if there is no battery."""
    low = LowBattery()
    with contextlib.suppress(NoThreadError):
        while (charge := await in_thread(read)) is not None:
            if low.crosses_threshold(charge):
                structlog.get_logger().warning(
                    f"the battery is at {charge.percent:.0f} % and discharging: saving now; "
                    "training continues: plug in, or stop it with Ctrl-C or `orchestrator stop`"
                )
                await save()
            await asyncio.sleep(poll_seconds)
