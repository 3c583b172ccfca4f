"""Protects loader workers from the signals that stop the trainer.

Schedulers, service managers and terminals signal every process of a job. A loader worker that dies
of that makes torch raise in the main thread, and the emergency checkpoint is never written.
"""

import contextlib
import signal
import threading
import weakref
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from orchestrator.training.stop import STOP_SIGNALS

_SHIELDED = {*STOP_SIGNALS, signal.SIGUSR2}
WORKER_END_SECONDS = 5.0


class WorkerShield:
    """While installed, every DataLoader starts its workers with the stop signals blocked.

    The signal mask is inherited through fork and exec, so there is no instant at which a worker is
    exposed; a handler set in ``worker_init_fn`` would leave one. Signals that arrive meanwhile stay
    pending in the trainer and are delivered when the mask is lifted.
    """

    def __init__(self) -> None:
        self._original = DataLoader.__iter__
        self._iterators: weakref.WeakSet[Any] = weakref.WeakSet()

    def install(self) -> None:
        """Begin to shield; ``restore`` ends it."""
        original, iterators = self._original, self._iterators

        def shielded_iter(loader: DataLoader[Any]) -> Any:
            with _signals_blocked():
                iterator = original(loader)
            if loader.num_workers > 0:
                iterators.add(iterator)
            return iterator

        DataLoader.__iter__ = shielded_iter  # type: ignore[method-assign]

    def restore(self) -> None:
        """Stop shielding, and end the workers that still live.

        The interpreter would end them with SIGTERM, which they do not hear, and wait for ever.
        """
        DataLoader.__iter__ = self._original  # type: ignore[method-assign]
        for iterator in list(self._iterators):
            workers = list(getattr(iterator, "_workers", ()))
            with contextlib.suppress(Exception):
                iterator._shutdown_workers()
            for worker in workers:
                worker.join(WORKER_END_SECONDS if worker.is_alive() else 0)
                if worker.is_alive():
                    worker.kill()
                    worker.join(WORKER_END_SECONDS)


@contextlib.contextmanager
def sigchld_default() -> Iterator[None]:
    """Inside, a worker's death does not raise in the main thread: torch's handler is set aside.

    Its death is noticed all the same, at the next batch.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL if previous is None else previous)


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SHIELDED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
