"""A process's part in a run: its home, the signals that stop it, its loader workers, its end."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orchestrator.errors import CheckpointWriteError, ConfigError
from orchestrator.exitcodes import ExitStatus
from orchestrator.ipc.control_page import Field, Phase
from orchestrator.ipc.messages import SOCKET_VARIABLE
from orchestrator.rundir.journal import utc_now
from orchestrator.system.durable import write_json
from orchestrator.system.recorded_command import recorded
from orchestrator.training.exits import describe, say, status_of
from orchestrator.training.runtime.backend import RunBackend
from orchestrator.training.runtime.metrics import MetricsFile
from orchestrator.training.runtime.patient_retry import patient_retrying
from orchestrator.training.runtime.standalone import Standalone
from orchestrator.training.runtime.supervised import Supervised
from orchestrator.training.runtime.worker_signals import WorkerShield
from orchestrator.training.state.registry import Progress
from orchestrator.training.stop import SignalFlags, TrainingStopped


class RunMembership:
    """Held from the opening of a session, or of a framework's run, until its end."""

    def __init__(self, run_dir: Path | None) -> None:
        """Join the supervisor's run, or open one. Raises ConfigError, RunInUseError."""
        if os.environ.get("WORLD_SIZE", "").strip() not in ("", "1"):
            raise ConfigError(
                "cannot train with several processes yet: WORLD_SIZE is "
                f"{os.environ['WORLD_SIZE']}; start one process per run"
            )
        self.home: RunBackend = (
            Supervised() if SOCKET_VARIABLE in os.environ else Standalone(run_dir)
        )
        self.page = self.home.page.values
        self.metrics = MetricsFile(self.home.run.metrics_file, self.home.attempt)
        self._signals = SignalFlags(self.page, self.home.supervised)
        self._shield = WorkerShield()
        self._signals.install()
        self._shield.install()

    @property
    def stop_source(self) -> str | None:
        """Who asked for a stop, as far as that is known."""
        return self._signals.source

    @property
    def stop_wanted(self) -> bool:
        """Whether somebody wants the run to stop."""
        return bool(self.page[Field.STOP_REQUEST])

    def complete(self, progress: Progress, steps_at_start: int, save: Callable[[], Any]) -> None:
        """Publish the final checkpoint and then the mark that training is complete.

        After weeks of training a disk that is full just now is worth a wait of some minutes.
        """
        if steps_at_start == progress.step and self.home.run.done_file.exists():
            say(
                f"training is complete already (step {progress.step}); to train further, raise "
                "the script's number of epochs or steps; another training, such as the next fold, "
                "needs a run directory of its own"
            )
            if (self.home.run.read_done() or {}).get("command") == recorded(self.home.command):
                return
        else:
            for attempt in patient_retrying(lambda: self.stop_wanted):
                with attempt:
                    save()
        for attempt in patient_retrying(lambda: self.stop_wanted):
            with attempt:
                self._mark_complete(progress)

    def _mark_complete(self, progress: Progress) -> None:
        done = {
            "step": progress.step,
            "epoch": progress.epoch,
            "time": utc_now(),
            "command": recorded(self.home.command),
        }
        try:
            write_json(self.home.run.done_file, done)
        except OSError as cause:
            error = CheckpointWriteError(progress.step, cause)
            self.home.failed(error)
            raise error from cause

    def end_workers(self) -> None:
        """End the loader workers, which hear no signal."""
        self._shield.restore()

    def leave(self, error: BaseException | None) -> None:
        """Say how it ended, and give back what was taken."""
        if error is None or isinstance(error, TrainingStopped):
            self.page[Field.PHASE] = Phase.DONE
        status = ExitStatus.COMPLETE if error is None else status_of(error)
        # A device that has failed says so again when a metric is read from it.
        with contextlib.suppress(RuntimeError):
            self.metrics.flush()
        self.home.leave(status, None if error is None or status is not None else describe(error))
        self._signals.restore()
