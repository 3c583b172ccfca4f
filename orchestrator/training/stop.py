"""How a stop reaches the training loop, and how the loop ends."""

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
    """Raised at a safe point when a stop was asked for; carries the exit status.

    A SystemExit, so that code after the loop (evaluation, upload) does not run as if training had
    finished, and so that the process ends with the right status if nobody catches it.
    """

    def __init__(self, status: ExitStatus) -> None:
        super().__init__()
        self.settle(status)

    def settle(self, status: ExitStatus) -> None:
        """Take the status that is known once the state has been written, or could not be."""
        self.status = status
        self.code = int(status)


class TrainingRefused(SystemExit):
    """Raised instead of a traceback when the session cannot go on; the reason has been printed.

    ``__cause__`` is the OrchestratorError.
    """

    def __init__(self, status: ExitStatus) -> None:
        super().__init__(int(status))
        self.status = status


class SignalFlags:
    """Signal handlers that only record, in the control page that the loop reads anyway.

    Loader workers and other children forked from the trainer get the former handlers back, since
    terminating such a child must not stop the training.
    """

    def __init__(self, page: memoryview, supervised: bool) -> None:
        self._page = page
        self._supervised = supervised
        self._pid = os.getpid()
        self._previous: dict[int, Any] = {}
        self._echoes = EchoFilter()
        self._received: set[int] = set()
        self.source: str | None = None

    def install(self) -> None:
        """Take the signals over, if this is the main thread; an ignored SIGHUP stays ignored."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in STOP_SIGNALS:
            previous = signal.getsignal(number)
            if number == signal.SIGHUP and previous == signal.SIG_IGN:
                continue
            if previous is not None:  # one of C, such as faulthandler's, could not be given back
                self._previous[number] = signal.signal(number, self._record_stop)
        if signal.getsignal(signal.SIGUSR2) is not None:
            self._previous[signal.SIGUSR2] = signal.signal(signal.SIGUSR2, self._record_save)
        os.register_at_fork(after_in_child=self.restore)

    def restore(self) -> None:
        """Give every handler back."""
        while self._previous:
            number, handler = self._previous.popitem()
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _is_for_a_child(self, number: int) -> bool:
        """Whether this is a forked child that has not been given the former handlers back yet.

        A signal may come in the instant between the fork and that; the page is shared memory, so
        that recording it here would stop the trainer.
        """
        if os.getpid() == self._pid:
            return False
        self.restore()
        os.kill(os.getpid(), number)
        return True

    def _record_stop(self, number: int, frame: FrameType | None) -> None:
        if self._is_for_a_child(number):
            return
        self._page[Field.STOP_REQUEST] = 1
        if self._echoes.is_echo():
            return
        # SIGUSR1 is a notice, which `orchestrator stop` sends too: repeating it changes nothing.
        if not self._supervised and number in self._received and number != signal.SIGUSR1:
            # Nobody escalates for us: the second signal does what it does in any script.
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
        if self._is_for_a_child(number):
            return
        self._page[Field.CHECKPOINT_REQUESTS] += 1
