"""Output to people and programs that may stop reading: it is dropped, and nobody waits for them."""

import contextlib
import os
import queue
import select
import threading
import time
from collections.abc import Callable

WAITING_PIECES = 64


class LossyWriter:
    """A bounded queue in front of a descriptor, and a daemon thread that writes.

    The descriptor itself cannot be made non-blocking: it is shared with the shell that gave it.
    """

    def __init__(
        self,
        descriptor: int,
        patience_seconds: float | None = 0.0,
        compose: Callable[[bytes], bytes] = bytes,
    ) -> None:
        """``patience_seconds`` is how long a slow reader may hold up the writer, once.

        None: as long as it likes. ``compose`` makes of each piece what is written, in the thread.
        """
        self._descriptor = descriptor
        self._patience_seconds = patience_seconds
        self._compose = compose
        self._pieces: queue.Queue[bytes | threading.Event | None] = queue.Queue(WAITING_PIECES)
        self._is_blocked = False
        self._is_gone = False
        self._thread = threading.Thread(target=self._write_pieces, name="outlet", daemon=True)
        self._thread.start()

    def write(self, data: bytes) -> None:
        """Have ``data`` written, or dropped when the queue stays full."""
        try:
            self._pieces.put(data, timeout=0 if self._is_blocked else self._patience_seconds)
        except queue.Full:
            self._is_blocked = True

    def wake(self) -> None:
        """Have ``compose`` called soon, with nothing if nothing is queued."""
        with contextlib.suppress(queue.Full):
            self._pieces.put_nowait(b"")

    def drain(self, timeout_seconds: float) -> None:
        """Wait at most so long until what is queued now has been written."""
        deadline = time.monotonic() + timeout_seconds
        written = threading.Event()
        with contextlib.suppress(queue.Full):
            self._pieces.put(written, timeout=timeout_seconds)
            written.wait(max(0.0, deadline - time.monotonic()))

    def close(self, timeout_seconds: float) -> None:
        """Wait at most so long for what is queued; the rest is dropped."""
        deadline = time.monotonic() + timeout_seconds
        with contextlib.suppress(queue.Full):
            self._pieces.put(None, timeout=timeout_seconds)
        self._thread.join(max(0.0, deadline - time.monotonic()))
        self._is_gone = True

    def _write_pieces(self) -> None:
        while (piece := self._pieces.get()) is not None:
            if isinstance(piece, threading.Event):
                piece.set()
            elif not self._is_gone:
                try:
                    self._write_all(self._compose(piece))
                except OSError:
                    self._is_gone = True
            self._is_blocked = False

    def _write_all(self, data: bytes) -> None:
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:
                # Another process has made the shared descriptor non-blocking.
                select.select([], [self._descriptor], [])
