"""Signals that one cause sends together."""

from orchestrator.system.stop_signals import EchoFilter


def requests(times: list[float]) -> list[float]:
    """Return those of the signals at ``times``, in seconds, that count as requests."""
    now = [0.0]
    echoes, counted = EchoFilter(clock=lambda: now[0]), []
    for time in times:
        now[0] = time
        if not echoes.is_echo():
            counted.append(time)
    return counted


def test_echo_is_not_a_second_request() -> None:
    """Signals that arrive together are one request; a later one is another."""
    assert requests([0.0, 0.1, 0.9, 5.0]) == [0.0, 0.9, 5.0]


def test_echoes_do_not_extend_the_echo_time() -> None:
    """Signals without a pause count as requests again after the echo time."""
    assert len(requests([number * 0.25 for number in range(50)])) == 25
