"""metrics.jsonl: the metrics of a run's steps, one JSON object a line (docs/how-to/trackers.md)."""

import contextlib
import errno
import json
import os
import re
from datetime import UTC, datetime
from pathlib import Path
from time import time
from typing import Any

from orchestrator.checkpoint.manifest import json_metrics
from orchestrator.checkpoint.position import Position
from orchestrator.errors import ConfigError
from orchestrator.system.durable import Disk, append_lines, atomic_replacement
from orchestrator.system.lines_from_end import lines_from_end
from orchestrator.system.regular_files import open_regular
from orchestrator.training.exits import print_message
from orchestrator.training.state.progress import number

# Up to this many steps have a line each; of twice as many every second one has, and so on.
MOST_STEPS = 100_000
# Of this many polls each has a line, counted from one step with a line to the next; of those after
# them only the 8th, 16th, 32nd and so on.
MOST_POLLS = 4
# A loop that makes more lines than this between two flushes gets fewer.
MOST_AT_ONCE = 1000
MAXIMUM_BYTES = 1 << 31
_LINE = re.compile(rb'\{"step": (\d{1,18}), "epoch": (\d{1,18}), "poll": (true|false), ')


# Completed steps and epochs, whether it is a poll's, the time, the metrics: a plain tuple, since
# one is made at every step.
_Record = tuple[int, int, bool, float, dict[str, Any]]


class MetricsFile:
    """Collects the metrics of steps, and writes them when the session has time for that.

    Before a state is saved that a run can be resumed from, ``flush`` is called: the lines of all
    steps up to it are then in the file, and the next attempt cuts the file off there.
    """

    def __init__(self, path: Path, attempt: int | None) -> None:
        """``attempt`` is None in a run without a supervisor, which does not count them."""
        self._path = path
        self._attempt = attempt
        self._records: list[_Record] = []
        self._stride = 1
        self._thinned_by = 1
        self._polls = _PollCount()
        self._has_warned = False

    def resume(self, step: int, epoch: int) -> None:
        """Remove the lines of steps that will be done again, and a torn line."""
        self._stride = self._thinned_by = stride_at(step)
        try:
            cut_off(self._path, Position(step, epoch))
        except OSError as error:
            self._warn(error)

    def record(self, step: int, epoch: int, metrics: dict[str, Any], *, is_poll: bool) -> None:
        """Keep the metrics of a step, or of a poll, for the next flush."""
        if not metrics:
            return
        stride = self._stride
        if self._polls.keeps_next(step // stride) if is_poll else step % stride == 0:
            self._records.append((step, epoch, is_poll, time(), metrics))

    def flush(self) -> None:
        """Write what was recorded; on a full disk it is lost, with one message."""
        if not self._records:
            return
        records, self._records = self._records, []
        stride = stride_at(records[-1][0])
        self._stride = max(stride, self._stride << (len(records) // MOST_AT_ONCE).bit_length())
        try:
            if not append_lines(self._path, b"".join(map(self._line, records))):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if stride > self._thinned_by:
                self._thinned_by = stride
                thin_out(self._path, stride)
        except OSError as error:
            self._warn(error)

    def _line(self, record: _Record) -> bytes:
        step, epoch, is_poll, moment, metrics = record
        content = {
            "step": step,
            "epoch": epoch,
            "poll": is_poll,
            "time": datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds"),
            "attempt": self._attempt,
            "metrics": json_metrics(_numbers(metrics)),
        }
        return json.dumps(content).encode() + b"\n"

    def _warn(self, error: OSError) -> None:
        if not self._has_warned:
            self._has_warned = True
            problem = error.strerror or error
            print_message(
                f"cannot write {self._path}: {problem}; the metrics of some steps will be missing"
            )


class UnwrittenMetrics(MetricsFile):
    """The metrics of a rank other than 0, which are not written: those of rank 0 count."""

    def resume(self, step: int, epoch: int) -> None:
        """Leave the file to rank 0."""

    def record(self, step: int, epoch: int, metrics: dict[str, Any], *, is_poll: bool) -> None:
        """Keep nothing."""


def stride_at(step: int) -> int:
    """Return of how many steps one has a line, in the file of a run that has come to ``step``."""
    return 1 << (max(0, step - 1) // MOST_STEPS).bit_length()


def cut_off(path: Path, position: Position) -> None:
    """Truncate the file after the lines of this position. Raises OSError."""
    with contextlib.suppress(FileNotFoundError), open(_opened(path, os.O_RDWR), "r+b") as file:
        end = 0
        for begin, line in lines_from_end(file):
            found = _LINE.match(line)
            if line.endswith(b"\n") and found and _position(found) <= position:
                end = begin + len(line)
                break
        if end < os.fstat(file.fileno()).st_size:
            file.truncate(end)


def thin_out(path: Path, stride: int) -> None:
    """Keep the lines of one of ``stride`` steps, and of as many polls as new lines would have.

    Raises OSError.
    """
    polls = _PollCount()
    with (
        open(_opened(path, os.O_RDONLY), "rb") as lines,
        atomic_replacement(path, Disk(), replace=True) as file,
    ):
        for line in lines:
            if (found := _LINE.match(line)) is None:
                continue
            step = _position(found).step
            if polls.keeps_next(step // stride) if found[3] == b"true" else step % stride == 0:
                file.write(line)


def _opened(path: Path, flags: int) -> int:
    """Open the file, unless it is larger than any run makes it. Raises OSError."""
    descriptor = open_regular(path, flags)
    if os.fstat(descriptor).st_size > MAXIMUM_BYTES:
        os.close(descriptor)
        raise OSError(errno.EFBIG, f"it has more than {MAXIMUM_BYTES} bytes", str(path))
    return descriptor


class _PollCount:
    """Decides which polls have a line: the first few of a span of steps, then ever fewer."""

    def __init__(self) -> None:
        self._span = -1
        self._count = 0

    def keeps_next(self, span: int) -> bool:
        """Count the next poll, which is in the span of this number; return whether to keep it."""
        if span != self._span:
            self._span, self._count = span, 0
        count = self._count
        self._count += 1
        return count < MOST_POLLS or count & (count - 1) == 0


def _position(found: re.Match[bytes]) -> Position:
    return Position(int(found[1]), int(found[2]))


def _numbers(metrics: dict[str, Any]) -> dict[str, float]:
    values = {}
    for name, value in metrics.items():
        try:
            values[name] = number(name, value)
        except ConfigError:
            continue  # refused at the first save
    return values
