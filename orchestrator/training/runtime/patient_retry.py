"""Retries the last write of a run for some minutes, until a stop is requested."""

import time

import tenacity

from orchestrator.errors import CheckpointWriteError
from orchestrator.pace.save_schedule import FIRST_RETRY_SECONDS
from orchestrator.training.exits import print_message
from orchestrator.training.stop import StopSignals

PATIENCE_SECONDS = 300.0
STOP_POLL_SECONDS = 0.1


def patient_retrying(stop_signals: StopSignals) -> tenacity.Retrying:
    """Return a loop that retries a write for some minutes, or until a stop is requested.

    It raises the last CheckpointWriteError when no attempt has succeeded.
    """

    def sleep(seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and not stop_signals.stop_wanted:
            time.sleep(min(STOP_POLL_SECONDS, max(0.0, end - time.monotonic())))

    return tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(CheckpointWriteError),
        wait=tenacity.wait_exponential(FIRST_RETRY_SECONDS, max=60.0),
        stop=tenacity.stop_after_delay(PATIENCE_SECONDS) | _StopWhenWanted(stop_signals),
        sleep=sleep,
        before_sleep=_print_patience,
        reraise=True,
    )


def _print_patience(retry_state: tenacity.RetryCallState) -> None:
    print_message(
        f"the last save of the run is tried again for up to {PATIENCE_SECONDS / 60:.0f} "
        "minutes: freeing space on the disk helps; a stop ends the attempts"
    )


class _StopWhenWanted(tenacity.stop.stop_base):
    def __init__(self, stop_signals: StopSignals) -> None:
        self._stop_signals = stop_signals

    def __call__(self, retry_state: tenacity.RetryCallState) -> bool:
        return self._stop_signals.stop_wanted
