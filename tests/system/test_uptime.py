"""Time that no clock which is set can change."""

import time

import pytest

from orchestrator.system import uptime
from orchestrator.system.uptime import SHORTEST_SLEEP_SECONDS, Uptime


def test_uptime_grows_from_zero() -> None:
    """It counts from when it was made, and a machine that runs was not asleep."""
    clock, began = Uptime(), time.monotonic()
    first, second = clock.read(), clock.read()
    assert 0 <= first[0] <= second[0] <= time.monotonic() - began + 1
    assert first[1] == second[1] == 0


@pytest.mark.parametrize(
    ("slept", "counted"), [(3600.0, 3600.0), (SHORTEST_SLEEP_SECONDS / 2, 0.0)]
)
def test_sleep_counts(monkeypatch: pytest.MonkeyPatch, slept: float, counted: float) -> None:
    """Sleep is time too, and told; what may be the wait for a processor is none."""
    clock = Uptime()
    before = uptime._asleep_seconds()
    monkeypatch.setattr(uptime, "_asleep_seconds", lambda: before + slept)
    seconds, asleep = clock.read()
    assert asleep == pytest.approx(counted, abs=0.1)
    assert seconds >= asleep
