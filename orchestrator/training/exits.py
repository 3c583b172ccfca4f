"""How a session says what stopped it: a sentence, a status, a description of an exception."""

import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from orchestrator.errors import OrchestratorError
from orchestrator.exitcodes import ExitStatus
from orchestrator.rundir.journal import utc_now
from orchestrator.training.stop import TrainingRefused, TrainingStopped

MOST_CAUSES = 5


def print_message(text: str) -> None:
    """Print to standard error."""
    # Nobody may be reading any more: no reason to lose the state.
    with contextlib.suppress(OSError, ValueError, AttributeError):
        print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """Turn errors of ours into a message and the right exit status, without a traceback."""
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
    """End a run's ``with`` block: without ``error`` it is complete; ``leave`` learns what it was.

    Raises TrainingRefused, and what ``complete`` raises.
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
    """The status that an ending of ours carries; None for anything else."""
    return error.status if isinstance(error, TrainingStopped | TrainingRefused) else None


def describe(error: BaseException) -> dict[str, Any] | None:
    """The content of error.json; None for an end that is no exception of the script."""
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
    """What the supervisor tells kinds of failures by; a cause may say more than what it caused."""
    cause = error.__cause__ if causes else None  # an exception may be its own cause
    number = getattr(error, "errno", None)
    return {
        "type": type(error).__qualname__,
        "message": str(error),
        "bases": [base.__qualname__ for base in type(error).__mro__[1:]],
        "errno": number if isinstance(number, int) else None,
        "cause": None if cause is None else _identity(cause, causes - 1),
    }
