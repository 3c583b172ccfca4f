"""Writes the state of a session into the store, and decides when the next write is due."""

import io
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any, cast

import tenacity
import torch

from orchestrator import __version__
from orchestrator.checkpoint.manifest import Manifest, Reason
from orchestrator.checkpoint.reading import Checkpoint
from orchestrator.checkpoint.store import Store
from orchestrator.config import Every
from orchestrator.errors import CheckpointWriteError, UnstorableError
from orchestrator.journal import utc_now
from orchestrator.training.shield import sigchld_default

FIRST_RETRY_SECONDS = 5.0
LONGEST_RETRY_SECONDS = 300.0
PATIENCE_SECONDS = 300.0
STOP_POLL_SECONDS = 0.1
NEVER = 1 << 62


@dataclass
class Schedule:
    """When the next periodic checkpoint is due, as the two numbers that the hot path compares."""

    every: Every
    next_step: int = 0
    next_time_ns: int = 0
    next_epoch: int = NEVER
    _failures: int = 0

    def saved(self, step: int, epoch: int) -> None:
        """A checkpoint was written."""
        self._failures = 0
        self.next_step = self.next_time_ns = self.next_epoch = NEVER
        match self.every.unit:
            case "seconds":
                self.next_time_ns = time.monotonic_ns() + int(self.every.amount * 1e9)
            case "steps":
                self.next_step = _next_multiple(step, int(self.every.amount))
            case "epochs":
                self.next_epoch = _next_multiple(epoch, int(self.every.amount))

    def failed(self) -> None:
        """A write failed: try again soon, then ever more rarely."""
        delay = min(FIRST_RETRY_SECONDS * 2**self._failures, LONGEST_RETRY_SECONDS)
        self._failures += 1
        self.next_step = self.next_epoch = NEVER
        self.next_time_ns = time.monotonic_ns() + int(delay * 1e9)

    def is_due(self, step: int, epoch: int) -> bool:
        """Whether a checkpoint should be written now."""
        return (
            step >= self.next_step
            or epoch >= self.next_epoch
            or time.monotonic_ns() >= self.next_time_ns
        )


def patient_retrying(
    report: Callable[[CheckpointWriteError], None], stop_wanted: Callable[[], bool]
) -> tenacity.Retrying:
    """Tries a write again for some minutes, or until a stop is wanted.

    The caller gets the last CheckpointWriteError when that did not help.
    """

    def report_last(retry_state: tenacity.RetryCallState) -> None:
        error = retry_state.outcome and retry_state.outcome.exception()
        if isinstance(error, CheckpointWriteError):
            report(error)

    def sleep(seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and not stop_wanted():
            time.sleep(min(STOP_POLL_SECONDS, max(0.0, end - time.monotonic())))

    return tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(CheckpointWriteError),
        wait=tenacity.wait_exponential(FIRST_RETRY_SECONDS, max=60.0),
        stop=tenacity.stop_after_delay(PATIENCE_SECONDS) | _StopWhenWanted(stop_wanted),
        before_sleep=report_last,
        sleep=sleep,
        reraise=True,
    )


def _next_multiple(count: int, interval: int) -> int:
    return (count // interval + 1) * interval


class _StopWhenWanted(tenacity.stop.stop_base):
    def __init__(self, stop_wanted: Callable[[], bool]) -> None:
        self._stop_wanted = stop_wanted

    def __call__(self, retry_state: tenacity.RetryCallState) -> bool:
        return self._stop_wanted()


class Saver:
    """The blocking way to a checkpoint: torch.save into the store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._proved_loadable = False

    def save(
        self,
        state: dict[str, Any],
        reason: Reason,
        metrics: dict[str, float],
        healthy: bool,
    ) -> Checkpoint:
        """Publish ``state``. Raises CheckpointWriteError, and UnstorableError at the first save."""
        manifest = Manifest(
            run_id=self._store.run_id,
            step=state["step"],
            epoch=state["epoch"],
            reason=reason,
            metrics=metrics,
            healthy=healthy,
            time=utc_now(),
            files={},
            versions={
                "python": platform.python_version(),
                "torch": str(torch.__version__),
                "orchestrator": __version__,
            },
        )
        if not self._proved_loadable:
            _prove_loadable(state)
            self._proved_loadable = True
        # A loader worker that dies during torch.save would make it raise.
        with sigchld_default():
            return self._store.publish(
                manifest, lambda file: torch.save(state, cast(IO[bytes], file))
            )


def _prove_loadable(state: dict[str, Any]) -> None:
    """Save and load everything but the tensors, so that a refusal comes in the first minute.

    Raises UnstorableError that names the entry.
    """
    for key, value in state.items():
        buffer = io.BytesIO()
        try:
            torch.save(_without_tensors(value), buffer)
            buffer.seek(0)
            torch.load(buffer, weights_only=True)
        except Exception as error:  # pickle lets through whatever an object's methods raise
            problem = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UnstorableError(key, problem) from error


def _without_tensors(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return None
    if isinstance(value, dict):
        return {key: _without_tensors(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return type(value)(_without_tensors(item) for item in value)
    return value
