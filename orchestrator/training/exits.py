"""How a session ends: the message, the exit status, the description of an exception."""

import contextlib
import os
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from orchestrator.errors import OrchestratorError
from orchestrator.exitcodes import ExitStatus
from orchestrator.rundir.journal import utc_now
from orchestrator.terminal.printing import print_text
from orchestrator.training.stop import TrainingRefused, TrainingStopped

MOST_CAUSES = 5


def print_message(text: str) -> None:
    """Print to standard error."""
    # Its reader may be gone, which is no reason to lose the state.
    with contextlib.suppress(OSError, ValueError, AttributeError):
        print_text(text, to_stderr=True)


def describe_shortly(error: BaseException) -> str:
    """Return the class and the first line of an exception; torch's messages have many lines."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


def warn(text: str, *, depth: int = 1) -> None:
    """Warn about the code ``depth`` calls above the caller; never raise, also where errors are.

    With ``python -W error`` a notice must not end a training: it is printed there.
    """
    try:
        warnings.warn(text, stacklevel=depth + 2)
    except Warning:
        print_message(f"warning: {text}")


@contextlib.contextmanager
def without_warnings() -> Iterator[None]:
    """Ignore warnings where they are errors, such as torch's own; only while the loop waits.

    The filters belong to the whole process: changing them in a thread would disturb the script.
    """
    if not any(action == "error" for action, *_ in warnings.filters):
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """Turn an OrchestratorError into a message and the right exit status, without a traceback.

    Raises:
        TrainingRefused: An OrchestratorError was raised inside.
    """
    try:
        yield
    except OrchestratorError as error:
        print_message(str(error))
        raise TrainingRefused(error.status) from error


def conclude(
    error: BaseException | None,
    complete: Callable[[], None],
    leave: Callable[[BaseException | None], None],
) -> None:
    """End a ``with`` block: without ``error`` the run is complete; ``leave`` is called in any case.

    Raises:
        TrainingRefused: The run could not be completed.
    """
    try:
        if error is None:
            with refusing():
                complete()
    except BaseException as failure:
        error = failure
        raise
    finally:
        leave(error)


def status_of(error: BaseException) -> ExitStatus | None:
    """Return the status that a session's own exception carries; None for any other."""
    return error.status if isinstance(error, TrainingStopped | TrainingRefused) else None


def describe(error: BaseException) -> dict[str, Any] | None:
    """Return the content of error.json; None for sys.exit() and Ctrl-C, which are no failures."""
    if not isinstance(error, Exception):
        return None
    frames = traceback.extract_tb(error.__traceback__)
    return {
        **_identity(error),
        "frame": f"{frames[-1].filename}:{frames[-1].lineno} {frames[-1].name}" if frames else None,
        "traceback": "".join(traceback.format_exception(error)),
        "pid": os.getpid(),
        "time": utc_now(),
    }


def _identity(error: BaseException, causes: int = MOST_CAUSES) -> dict[str, Any]:
    """Return what the supervisor classifies failures by, for the exception and its causes."""
    cause = error.__cause__ if causes else None  # an exception may be its own cause
    number = getattr(error, "errno", None)
    return {
        "type": type(error).__qualname__,
        "message": str(error),
        "bases": [base.__qualname__ for base in type(error).__mro__[1:]],
        "errno": number if isinstance(number, int) else None,
        "cause": None if cause is None else _identity(cause, causes - 1),
    }
