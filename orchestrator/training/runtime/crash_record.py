"""Records uncaught exceptions, outside the `with` block too, for the supervisor."""

import atexit
import contextlib
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from orchestrator.ipc.messages import ATTEMPT_VARIABLE, RUN_DIR_VARIABLE, SOCKET_VARIABLE
from orchestrator.rundir.paths import RunDir, run_root_above
from orchestrator.system.durable import Disk, write_json
from orchestrator.training.exits import describe
from orchestrator.training.runtime.rank_link import World

_pid = os.getpid()


def install() -> None:
    """Install the hooks; those that the script has, or sets later, work as before."""
    if multiprocessing.parent_process() is not None:
        return  # a loader worker, say: the trainer decides what its end means
    hook, thread_hook = sys.excepthook, threading.excepthook

    def uncaught(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        _record(error)
        hook(kind, error, trace)

    def uncaught_in_thread(arguments: threading.ExceptHookArgs) -> None:
        # A hook may end the process. Where it does not, the exception has not ended the training.
        file = _record(arguments.exc_value, thread=arguments.thread)
        thread_hook(arguments)
        if file is not None:
            with contextlib.suppress(OSError):
                Disk().remove(file, below=run_root_above(file))

    sys.excepthook, threading.excepthook = uncaught, uncaught_in_thread
    atexit.register(_record_at_exit, uncaught)


def _record_at_exit(hook: Callable[..., None]) -> None:
    # A hook that was set later may have replaced this one; Python keeps the exception.
    if sys.excepthook is not hook:
        _record(getattr(sys, "last_value", None))


def _record(error: BaseException | None, thread: threading.Thread | None = None) -> Path | None:
    """Write error.json; return its path, or None if it was not written."""
    if error is None or os.getpid() != _pid or SOCKET_VARIABLE not in os.environ:
        return None
    # Whatever goes wrong here, the script's own traceback must follow.
    with contextlib.suppress(Exception):
        attempt = int(os.environ[ATTEMPT_VARIABLE])
        run, rank = RunDir(Path(os.environ[RUN_DIR_VARIABLE])), World.of(os.environ).rank
        file = run.attempt(attempt).rank(rank).error_file
        description = describe(error)
        if description is None or os.path.exists(file):
            return None  # the first is the cause; those of other threads and processes follow it
        if thread is not None:
            description["thread"] = thread.name
        write_json(file, description, below=run_root_above(file))
        return file
    return None
