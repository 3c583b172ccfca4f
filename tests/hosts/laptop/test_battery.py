"""Saving before a battery is empty."""

import asyncio
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from structlog.testing import capture_logs

from orchestrator.hosts.laptop.battery import read_charge, save_before_it_is_empty


@dataclass
class Charge:
    percent: float
    power_plugged: bool | None


@pytest.mark.parametrize(
    ("course", "saves"),
    [
        ([(80, False), (16, False)], 0),
        ([(16, False), (15, False), (14, False)], 1),
        ([(15, False), (5, False), (4, False)], 2),
        ([(4, False), (3, False)], 1),
        ([(15, False), (16, True), (15, False)], 2),
        ([(10, True), (10, None)], 0),
    ],
)
def test_saves_once_at_each_threshold_of_a_discharge(
    course: list[tuple[float, bool | None]], saves: int
) -> None:
    """And again after it was plugged in; where nothing is said of the plug, never."""
    left = [Charge(*point) for point in course]
    made = []

    async def save() -> None:
        made.append(True)

    with capture_logs() as logs:
        look = lambda: left.pop(0) if left else None  # noqa: E731
        asyncio.run(save_before_it_is_empty(save, look, look_seconds=0.0))
    assert len(made) == len(logs) == saves
    assert all("discharging: saving now" in log["event"] for log in logs)


@pytest.mark.skipif(not psutil.LINUX, reason="reads what Linux has in /sys")
@pytest.mark.parametrize(("plugged", "status"), [(False, "Discharging"), (True, "Charging")])
def test_psutil_reads_what_the_kernel_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plugged: bool, status: str
) -> None:
    """The files that Linux has for a battery and a mains adapter are understood."""
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
    charge = read_charge()
    assert charge is not None
    assert (round(charge.percent), charge.power_plugged) == (14, plugged)


@pytest.mark.skipif(not psutil.LINUX, reason="reads what Linux has in /sys")
def test_a_machine_without_battery_is_not_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watch ends by itself."""
    monkeypatch.setattr("psutil._pslinux.POWER_SUPPLY_PATH", str(tmp_path))

    async def save() -> None:
        raise AssertionError

    asyncio.run(asyncio.wait_for(save_before_it_is_empty(save), 20.0))
