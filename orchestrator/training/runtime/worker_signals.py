"""Protects loader workers from the signals that stop the trainer.

Schedulers, service managers and terminals signal every process of a job. A loader worker that dies
of that makes torch raise in the main thread, and the emergency checkpoint is never written.
"""

import contextlib
import multiprocessing
import signal
import threading
import time
import weakref
from collections.abc import Iterator
from multiprocessing import forkserver, resource_tracker
from typing import Any

from torch.utils.data import DataLoader

from orchestrator.system.stop_signals import STOP_SIGNALS

_SHIELDED = {*STOP_SIGNALS, signal.SIGUSR2}
WORKER_END_SECONDS = 3.0


class WorkerShield:
    """Makes every DataLoader start its workers with the stop signals blocked, while installed.

    The signal mask is inherited through fork and exec, so there is no instant at which a worker is
    exposed; a handler set in ``worker_init_fn`` would leave one. Signals that arrive in between
    stay pending in the trainer and are delivered when the mask is lifted.
    """

    def __init__(self) -> None:
        self._originals: dict[type[DataLoader[Any]], Any] = {}
        self._persistent: weakref.WeakSet[DataLoader[Any]] = weakref.WeakSet()
        self._iterators: weakref.WeakSet[Any] = weakref.WeakSet()
        # The iterator of a loop that was left may be gone by the end; its workers may not be.
        self._workers: weakref.WeakSet[Any] = weakref.WeakSet()

    def install(self) -> None:
        """Begin to shield; ``restore`` ends it."""
        self._originals = {kind: kind.__iter__ for kind in _kinds_with_own_iter(DataLoader)}
        for kind, original in self._originals.items():
            kind.__iter__ = self._shielding(original)  # type: ignore[method-assign]

    def _shielding(self, original: Any) -> Any:
        iterators, workers, persistent = self._iterators, self._workers, self._persistent

        def shielded_iter(loader: DataLoader[Any]) -> Any:
            if loader.num_workers > 0:
                _prepare(loader)
            with _signals_blocked():
                iterator = original(loader)
            if loader.num_workers > 0:
                iterators.add(iterator)
                if loader.persistent_workers:
                    persistent.add(loader)
                workers.update(getattr(iterator, "_workers", ()))
            return iterator

        return shielded_iter

    def restore(self) -> None:
        """Stop shielding, and end the workers that are still alive.

        The interpreter would end them with SIGTERM, which they block, and wait for them for ever.
        """
        for kind, original in self._originals.items():
            kind.__iter__ = original  # type: ignore[method-assign]
        for iterator in list(self._iterators):
            with contextlib.suppress(Exception):
                iterator._shutdown_workers()
        for loader in list(self._persistent):
            # It would be used again, by an evaluation after training for example.
            loader._iterator = None
        deadline = time.monotonic() + WORKER_END_SECONDS
        for worker in list(self._workers):
            worker.join(max(0.0, deadline - time.monotonic()))
        for worker in list(self._workers):
            if worker.is_alive():
                worker.kill()
                worker.join(WORKER_END_SECONDS)


def _kinds_with_own_iter(kind: type[DataLoader[Any]]) -> list[type[DataLoader[Any]]]:
    """Return it and its subclasses, such as torchdata's, that start their workers themselves."""
    below = [each for sub in kind.__subclasses__() for each in _kinds_with_own_iter(sub)]
    return [kind, *below] if "__iter__" in vars(kind) else below


def _prepare(loader: DataLoader[Any]) -> None:
    """Start multiprocessing's own processes before the signals are blocked.

    Starting the resource tracker lifts SIGTERM and SIGINT off the mask. A fork server must not
    inherit the mask, since later children of the script would have it.
    """
    context: Any = loader.multiprocessing_context or multiprocessing
    method = context.get_start_method()
    if method == "fork":
        return
    resource_tracker.ensure_running()
    if method == "forkserver":
        forkserver.ensure_running()
        if not isinstance(loader.worker_init_fn, _BlockFirst):
            loader.worker_init_fn = _BlockFirst(loader.worker_init_fn)


class _BlockFirst:
    """Blocks the signals in a worker of the fork server, whose mask it has, as soon as it runs."""

    def __init__(self, init: Any) -> None:
        self._init = init

    def __call__(self, worker: int) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, _SHIELDED)
        if self._init is not None:
            self._init(worker)


@contextlib.contextmanager
def sigchld_default() -> Iterator[None]:
    """Set torch's SIGCHLD handler aside: a worker's death then raises nothing in the main thread.

    The death is noticed at the next batch.
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
