"""Work in a second thread, beside work that waits for a device."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import TypeVar

Result = TypeVar("Result")


@contextlib.contextmanager
def in_second_thread(work: Callable[[], Result]) -> Iterator[Future[Result]]:
    """Run ``work`` while the block runs; after the block the future has its result or exception.

    Where the system allows no more threads, ``work`` runs after the block.
    """
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    thread = threading.Thread(target=run, daemon=True)
    try:
        thread.start()
    except RuntimeError:
        yield future
        run()
        return
    try:
        yield future
    finally:
        thread.join()
