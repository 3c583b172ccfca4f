"""Writes the metrics of a run to a file for the textfile collector of the node exporter."""

import asyncio
import importlib.util
import os
import threading
from collections.abc import Callable
from pathlib import Path

import structlog

from orchestrator.errors import ConfigError, NoThreadError
from orchestrator.system.durable import remove_temporaries, replace_disposable_file
from orchestrator.system.races import first_of
from orchestrator.system.threads import in_thread
from orchestrator.telemetry.status import Status

LIBRARY = "prometheus_client"
# The collector reads files with this ending and no others, the temporary ones least of all.
SUFFIX = ".prom"
# Prometheus asks about as often.
INTERVAL_SECONDS = 15.0
LAST_WRITE_SECONDS = 5.0


def check_metrics_file(path: Path) -> None:
    """Check that metrics can be written to a file, or below a directory. Raises ConfigError."""
    if importlib.util.find_spec(LIBRARY) is None:
        raise ConfigError(
            f"cannot use --metrics-file without the package {LIBRARY}, which is the extra "
            f"`metrics`: install it (pip install {LIBRARY}), or leave the option out"
        )
    directory = path if os.path.isdir(path) else path.parent
    if not os.path.isdir(directory):
        raise ConfigError(
            f"cannot write --metrics-file {path}: there is no directory {directory}; create it, "
            "or name the one that the node exporter reads (--collector.textfile.directory)"
        )
    if directory is not path and path.suffix != SUFFIX:
        raise ConfigError(
            f"cannot use --metrics-file {path}: the node exporter reads only files that end in "
            f"{SUFFIX}; name such a file, or a directory"
        )
    if not os.access(directory, os.W_OK | os.X_OK):
        raise ConfigError(
            f"cannot write --metrics-file {path}: you may not create files in {directory}; have "
            "its owner allow it, or name another one"
        )


def file_of_run(path: Path, run_id: str) -> Path:
    """Return the file for a run: the path itself, or in a directory one that no other run has."""
    return path / f"orchestrator-{run_id}{SUFFIX}" if os.path.isdir(path) else path


class Textfile:
    """The file with the metrics of a run, replaced again and again while the run goes on.

    Its last content, with the state in which the run has ended, stays.
    """

    def __init__(
        self,
        path: Path,
        status: Callable[[], Status],
        interval_seconds: float = INTERVAL_SECONDS,
    ) -> None:
        self._path = path
        self._status = status
        self._interval_seconds = interval_seconds
        self._begun = self._written = 0
        self._one_write = threading.Lock()
        self._is_failing = False
        self._log = structlog.get_logger()

    async def run(self) -> None:
        """Write the file until cancelled, and once more then."""
        try:
            while True:
                await self._write()
                await asyncio.sleep(self._interval_seconds)
        finally:
            await first_of(self._write(), timeout_seconds=LAST_WRITE_SECONDS)

    async def _write(self) -> None:
        self._begun += 1
        number, status = self._begun, self._status()
        problem = None
        try:
            # In a thread: the directory may be on a disk that does not answer.
            await in_thread(lambda: self._replace(number, status))
        except OSError as error:
            problem = error.strerror
        except NoThreadError as error:
            problem = str(error)
        if problem is not None and not self._is_failing:
            self._log.warning(
                f"cannot write --metrics-file {self._path}: {problem}; training goes on"
            )
        self._is_failing = problem is not None

    def _replace(self, number: int, status: Status) -> None:
        # Only those who ask for metrics pay for the library: 45 ms and 2.5 MB.
        from orchestrator.telemetry.prometheus import prometheus_text

        # Prometheus and people who read it know nothing of this process's directory.
        run_dir = os.path.abspath(status.run_dir)
        text = prometheus_text([status.to_json() | {"run_dir": run_dir}])
        with self._one_write:
            if not self._written:
                remove_temporaries(self._path.parent, [self._path.name])
            # A write that was stuck does not replace the one that came after it.
            if number > self._written:
                replace_disposable_file(self._path, text)
                self._written = number
