"""How a stop reaches the training loop, and the exceptions by which the loop ends."""

import contextlib
import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

from orchestrator.exitcodes import ExitStatus
from orchestrator.ipc.control_page import Field
from orchestrator.system.stop_signals import STOP_SIGNALS, EchoFilter


class TrainingStopped(SystemExit):
    """Raised at a safe point when a stop is requested; carries the exit status.

    It is a SystemExit, so that code after the loop (evaluation, upload) does not run as if training
    had finished, and so that an uncaught one ends the process with the right status.

    Attributes:
        status: The exit status: STOPPED_SAVED (75) or STOPPED_UNSAVED (74).
    """

    def __init__(self, status: ExitStatus) -> None:
        super().__init__()
        self.set_status(status)

    def set_status(self, status: ExitStatus) -> None:
        """Replace the status, once it is known whether the state could be written."""
        self.status = status
        self.code = int(status)


class TrainingRefused(SystemExit):
    """Raised in the place of a traceback when the session cannot continue.

    The reason has been printed; ``__cause__`` is the OrchestratorError.

    Attributes:
        status: The exit status that belongs to the error.
    """

    def __init__(self, status: ExitStatus) -> None:
        super().__init__(int(status))
        self.status = status


class StopSignals:
    """Signal handlers that only record, in the control page that the loop reads anyway.

    Loader workers and other children forked from the trainer get the former handlers back, since
    terminating such a child must not stop the training.

    Attributes:
        source: The name of the signal that requested the stop; None if no signal has.
    """

    def __init__(self, page: memoryview, *, supervised: bool) -> None:
        """Without a supervisor, a second signal of the same kind ends the process at once."""
        self._page = page
        self._supervised = supervised
        self._pid = os.getpid()
        self._previous: dict[int, Any] = {}
        self._echoes = EchoFilter()
        self._received: set[int] = set()
        self.source: str | None = None

    @property
    def stop_wanted(self) -> bool:
        """Whether a stop is requested, by a signal or by the supervisor."""
        return bool(self._page[Field.STOP_REQUEST])

    def install(self) -> None:
        """Install the handlers, if this is the main thread; an ignored SIGHUP stays ignored."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in STOP_SIGNALS:
            previous = signal.getsignal(number)
            if number == signal.SIGHUP and previous == signal.SIG_IGN:
                continue
            if previous is not None:  # one of C, such as faulthandler's, could not be restored
                self._previous[number] = signal.signal(number, self._record_stop)
        if signal.getsignal(signal.SIGUSR2) is not None:
            self._previous[signal.SIGUSR2] = signal.signal(signal.SIGUSR2, self._record_save)
        os.register_at_fork(after_in_child=self.restore)

    def restore(self) -> None:
        """Restore every former handler."""
        while self._previous:
            number, handler = self._previous.popitem()
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _pass_on_in_child(self, number: int) -> bool:
        """Return whether this is a forked child, whose former handler then gets the signal.

        A signal may arrive between the fork and the restoring of the handlers. The page is shared
        memory, so that recording it here would stop the trainer.
        """
        if os.getpid() == self._pid:
            return False
        self.restore()
        os.kill(os.getpid(), number)
        return True

    def _record_stop(self, number: int, frame: FrameType | None) -> None:
        if self._pass_on_in_child(number):
            return
        self._page[Field.STOP_REQUEST] = 1
        if self._echoes.is_echo():
            return
        # SIGUSR1 is a notice, which `orchestrator stop` sends too: repeating it changes nothing.
        if not self._supervised and number in self._received and number != signal.SIGUSR1:
            # No supervisor escalates: the second signal does what it does in any script.
            handler = self._previous.pop(number, signal.SIG_DFL)
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
            os.kill(os.getpid(), number)
            return
        self._received.add(number)
        self.source = signal.Signals(number).name
        if not self._supervised:
            text = (
                f"{self.source}: saving at the next safe point; "
                "the same signal again: end at once\n"
            )
            # The terminal may be gone: that is why the signal came.
            with contextlib.suppress(OSError, ValueError):
                os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, text.encode())

    def _record_save(self, number: int, frame: FrameType | None) -> None:
        if self._pass_on_in_child(number):
            return
        self._page[Field.CHECKPOINT_REQUESTS] += 1
