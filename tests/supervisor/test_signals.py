"""Signals as the supervisor takes them."""

import signal

from orchestrator.supervisor.signals import SignalReceiver


def test_an_echo_is_not_a_second_request() -> None:
    """Signals that one cause sends together are one request; a later one is another."""
    now, received = [0.0], []
    receiver = SignalReceiver(received.append, clock=lambda: now[0])
    for time, number in [
        (0.0, signal.SIGTERM),
        (0.1, signal.SIGHUP),
        (0.9, signal.SIGINT),
        (5.0, signal.SIGINT),
    ]:
        now[0] = time
        receiver.receive_stop(number)
    assert received == [signal.SIGTERM, signal.SIGINT, signal.SIGINT]
