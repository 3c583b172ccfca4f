"""Saving when the battery is low."""

import asyncio
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from structlog.testing import capture_logs

from orchestrator.hosts.laptop.battery import read_battery, save_on_low_battery


@dataclass
class Charge:
    percent: float
    power_plugged: bool | None


@pytest.mark.parametrize(
    ("discharge", "saves"),
    [
        ([(80, False), (16, False)], 0),
        ([(16, False), (15, False), (14, False)], 1),
        ([(15, False), (5, False), (4, False)], 2),
        ([(4, False), (3, False)], 1),
        ([(15, False), (16, True), (15, False)], 2),
        ([(10, True), (10, None)], 0),
    ],
)
def test_low_battery_saves_once_at_each_threshold(
    discharge: list[tuple[float, bool | None]], saves: int
) -> None:
    """Each discharge saves once per threshold; without information about the plug, never."""
    charges = [Charge(*point) for point in discharge]
    made = []

    async def save() -> None:
        made.append(True)

    with capture_logs() as logs:
        read = lambda: charges.pop(0) if charges else None  # noqa: E731
        asyncio.run(save_on_low_battery(save, read, poll_seconds=0.0))
    assert len(made) == len(logs) == saves
    assert all("discharging: saving now" in log["event"] for log in logs)


@pytest.mark.skipif(not psutil.LINUX, reason="reads what Linux has in /sys")
@pytest.mark.parametrize(("plugged", "status"), [(False, "Discharging"), (True, "Charging")])
def test_battery_is_read_from_the_files_of_the_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plugged: bool, status: str
) -> None:
    """The kernel's files for a battery and a mains adapter are understood."""
    files = {
        "BAT0/energy_now": "7000000",
        "BAT0/energy_full": "50000000",
        "BAT0/power_now": "9000000",
        "BAT0/status": status,
        "AC0/online": str(int(plugged)),
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    monkeypatch.setattr("psutil._pslinux.POWER_SUPPLY_PATH", str(tmp_path))
    charge = read_battery()
    assert charge is not None
    assert (round(charge.percent), charge.power_plugged) == (14, plugged)


@pytest.mark.skipif(not psutil.LINUX, reason="reads what Linux has in /sys")
def test_machine_without_a_battery_is_not_polled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watch returns on a machine without a battery."""
    monkeypatch.setattr("psutil._pslinux.POWER_SUPPLY_PATH", str(tmp_path))

    async def save() -> None:
        raise AssertionError

    asyncio.run(asyncio.wait_for(save_on_low_battery(save), 20.0))
