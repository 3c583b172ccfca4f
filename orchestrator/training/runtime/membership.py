"""A process's membership in a run: backend, signal handlers, loader workers, metrics, exit."""

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orchestrator.errors import CheckpointWriteError, ConfigError, OrchestratorError
from orchestrator.exitcodes import ExitStatus
from orchestrator.ipc.control_page import Field, Phase
from orchestrator.ipc.messages import SOCKET_VARIABLE, several_processes
from orchestrator.rundir.completion import has_other_arguments
from orchestrator.rundir.journal import utc_now
from orchestrator.system.durable import write_json
from orchestrator.system.recorded_command import recorded
from orchestrator.training.exits import describe, print_message, status_of
from orchestrator.training.runtime.backend import Report, RunBackend
from orchestrator.training.runtime.local_writer import report_failure
from orchestrator.training.runtime.metrics import MetricsFile, UnwrittenMetrics
from orchestrator.training.runtime.patient_retry import patient_retrying
from orchestrator.training.runtime.saving_clock import SavingClock
from orchestrator.training.runtime.standalone import Standalone
from orchestrator.training.runtime.supervised import Supervised
from orchestrator.training.runtime.worker_signals import WorkerShield
from orchestrator.training.state.progress import Progress
from orchestrator.training.stop import StopSignals, TrainingRefused, TrainingStopped


class RunMembership:
    """What a session, or a framework's run, holds from its beginning to its end.

    Attributes:
        backend: The supervised or standalone backend.
        page: The values of the control page.
        saving_clock: Measures how long the loop stands still to save.
        metrics: The run's metrics.jsonl.
        stop_signals: Whether a stop is requested, and by which signal.
    """

    def __init__(self, run_dir: Path | None) -> None:
        """Join the supervisor's run, or open one in ``run_dir``.

        Raises:
            ConfigError: There are several ranks, or the supervisor cannot be reached.
            RunInUseError: Another process works on the run.
        """
        is_supervised = SOCKET_VARIABLE in os.environ
        size = os.environ.get("WORLD_SIZE", "").strip()
        # A supervisor refuses them itself, since torchrun would hide the reason from it.
        if size not in ("", "1") and not (is_supervised and size.isdecimal()):
            raise ConfigError(f"cannot train with several processes: {several_processes(size)}")
        self.backend: RunBackend = Supervised() if is_supervised else Standalone(run_dir)
        facts = self.backend.facts
        self.page = facts.memory.page.values
        self.saving_clock = SavingClock(self.page)
        kind = MetricsFile if facts.world.is_main else UnwrittenMetrics
        self.metrics = kind(facts.run_dir.metrics_file, facts.attempt)
        self.stop_signals = StopSignals(self.page, supervised=facts.supervised)
        self._done_file = facts.run_dir.done_file
        self._shield = WorkerShield()
        self._has_reported_stop = False
        self._pid = os.getpid()
        self.stop_signals.install()
        self._shield.install()

    @property
    def is_of_this_process(self) -> bool:
        """Whether this process has joined the run, and is no fork of the one that has."""
        return os.getpid() == self._pid

    def begin_training(self) -> None:
        """Record that the state is there, and the script's loop begins."""
        self.page[Field.TRAINING_NS] = time.monotonic_ns()
        self.page[Field.PHASE] = Phase.TRAIN

    def report_stop(self, step: int) -> None:
        """Report, once, that the stop has reached the loop after ``step`` steps."""
        if not self._has_reported_stop:
            self._has_reported_stop = True
            source = self.stop_signals.source or "request"
            saving = self.saving_clock.seconds
            self.backend.report(
                Report.STOP_NOTICED, step=step, source=source, saving_seconds=saving
            )

    def withdraw_completion(self) -> None:
        """Remove the mark of completion: the run is trained further."""
        self._done_file.unlink(missing_ok=True)

    def complete(self, progress: Progress, steps_at_start: int, save: Callable[[], Any]) -> None:
        """Publish the final checkpoint with ``save``, then the mark that training is complete.

        After weeks of training, a disk that is full at that moment is worth a wait of some minutes.
        """
        if steps_at_start == progress.step and os.path.exists(self._done_file):
            print_message(self._complete_already(progress.step))
            done, start = self.backend.facts.run_dir.read_done(), self.backend.facts.store.start
            if done is not None and (start is None or not has_other_arguments(done, start)):
                return
        else:
            for attempt in patient_retrying(self.stop_signals):
                with attempt:
                    save()
        for attempt in patient_retrying(self.stop_signals):
            with attempt:
                self._mark_complete(progress)

    def _complete_already(self, step: int) -> str:
        if step == 0:
            return (
                "training is complete already, but no step was ever counted: call session.step() "
                f"after each optimizer step, delete {self._done_file} and run again"
            )
        return (
            f"training is complete already (step {step}); to train further, raise the script's "
            "number of epochs or steps; another training, such as the next fold, needs a run "
            "directory of its own"
        )

    def _mark_complete(self, progress: Progress) -> None:
        if not self.backend.facts.world.is_main:
            return
        done = {
            "step": progress.step,
            "epoch": progress.epoch,
            "time": utc_now(),
            "command": recorded(self.backend.facts.settings.command),
            "start": self.backend.facts.store.start_record,
        }
        try:
            write_json(self._done_file, done)
        except OSError as cause:
            error = CheckpointWriteError(progress.step, cause, place=self._done_file.parent)
            report_failure(self.backend, error)
            raise error from cause

    def end_workers(self) -> None:
        """End the loader workers, which receive no signal."""
        self._shield.restore()

    def leave(self, error: BaseException | None) -> None:
        """Report how the session ended, and restore the signal handlers."""
        if error is None or isinstance(error, TrainingStopped):
            self.page[Field.PHASE] = Phase.DONE
        status = ExitStatus.COMPLETE if error is None else status_of(error)
        # A device that has failed reports that again when a metric is read from it.
        with contextlib.suppress(RuntimeError):
            self.metrics.flush()
        refusal = error.__cause__ if isinstance(error, TrainingRefused) else error
        if isinstance(refusal, OrchestratorError) and self.backend.facts.supervised:
            self.backend.report(Report.REFUSED, reason=str(refusal))
            status = refusal.status
        self.backend.leave(status, None if error is None or status is not None else describe(error))
        self.stop_signals.restore()
