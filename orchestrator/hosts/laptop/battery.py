"""A battery that runs low: save before the machine goes out."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Protocol

import psutil
import structlog

from orchestrator.errors import NoThreadError
from orchestrator.system.threads import in_thread

LOW_PERCENTS = (15.0, 5.0)
LOOK_SECONDS = 60.0


class Charge(Protocol):
    """What psutil says; ``power_plugged`` may be unknown."""

    percent: float
    power_plugged: bool | None


def read_charge() -> Charge | None:
    """None where there is no battery, or no way to ask."""
    # psutil has it only on some systems, and reads what drivers there make of it.
    read = getattr(psutil, "sensors_battery", None)
    with contextlib.suppress(OSError, ValueError, psutil.Error):
        charge: Charge | None = read() if read else None
        return charge
    return None


class LowBattery:
    """Tells when to save: once at each threshold of a discharge."""

    def __init__(self) -> None:
        self._left: tuple[float, ...] = LOW_PERCENTS

    def is_reached(self, charge: Charge) -> bool:
        """Whether the charge has fallen to the next threshold since the last look."""
        if charge.power_plugged is not False:
            self._left = LOW_PERCENTS
            return False
        passed = [percent for percent in self._left if charge.percent <= percent]
        self._left = self._left[len(passed) :]
        return bool(passed)


async def save_before_it_is_empty(
    save: Callable[[], Awaitable[object]],
    read: Callable[[], Charge | None] = read_charge,
    look_seconds: float = LOOK_SECONDS,
) -> None:
    """Look now and then, and save when it runs low; returns at once where there is no battery."""
    low = LowBattery()
    with contextlib.suppress(NoThreadError):
        while (charge := await in_thread(read)) is not None:
            if low.is_reached(charge):
                structlog.get_logger().warning(
                    f"the battery is at {charge.percent:.0f} % and discharging: saving now; "
                    "training continues: plug in, or stop it with Ctrl-C or `orchestrator stop`"
                )
                await save()
            await asyncio.sleep(look_seconds)
