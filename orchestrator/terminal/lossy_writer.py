"""Output that is dropped, rather than waited for, when its reader stops reading."""

import contextlib
import os
import queue
import select
import threading
import time
from collections.abc import Callable

QUEUED_PIECES = 64
LINE_ENDS = (b"\n", b"\r")


class LossyWriter:
    """A bounded queue in front of a descriptor, and a daemon thread that writes.

    The descriptor itself cannot be made non-blocking, because it is shared with the shell.
    """

    def __init__(
        self,
        descriptor: int,
        patience_seconds: float | None = 0.0,
        compose: Callable[[bytes], bytes] = bytes,
        line_seconds: float = 0.0,
    ) -> None:
        """``patience_seconds`` is how long a slow reader may block ``write``, once; None: for ever.

        The rest of a line is awaited for ``line_seconds``, so that what another writer writes to
        the same file does not come between.

        The writing thread passes each piece through ``compose`` and writes the result.
        """
        self._descriptor = descriptor
        self._patience_seconds = patience_seconds
        self._compose = compose
        self._pieces: queue.Queue[bytes | threading.Event | None] = queue.Queue(QUEUED_PIECES)
        self._line_seconds = line_seconds
        self._next: list[threading.Event | None] = []
        self._is_blocked = False
        self._is_closed = False
        self._thread = threading.Thread(target=self._write_pieces, name="lossy-writer", daemon=True)
        self._thread.start()

    def write(self, data: bytes) -> None:
        """Queue ``data`` for writing; drop it if the queue stays full."""
        try:
            self._pieces.put(data, timeout=0 if self._is_blocked else self._patience_seconds)
        except queue.Full:
            self._is_blocked = True

    def wake(self) -> None:
        """Make the thread call ``compose`` soon, with empty data if nothing is queued."""
        with contextlib.suppress(queue.Full):
            self._pieces.put_nowait(b"")

    def drain(self, timeout_seconds: float) -> None:
        """Wait until all data queued so far has been written or the timeout has passed."""
        deadline = time.monotonic() + timeout_seconds
        written = threading.Event()
        with contextlib.suppress(queue.Full):
            self._pieces.put(written, timeout=timeout_seconds)
            written.wait(max(0.0, deadline - time.monotonic()))

    def close(self, timeout_seconds: float) -> None:
        """Write the queued data until the timeout, drop the rest, and stop the thread."""
        deadline = time.monotonic() + timeout_seconds
        with contextlib.suppress(queue.Full):
            self._pieces.put(None, timeout=timeout_seconds)
        self._thread.join(max(0.0, deadline - time.monotonic()))
        self._is_closed = True

    def _write_pieces(self) -> None:
        while (piece := self._take()) is not None:
            if isinstance(piece, threading.Event):
                piece.set()
            elif not self._is_closed:
                try:
                    self._write_all(self._compose(piece))
                except OSError:
                    self._is_closed = True
            self._is_blocked = False

    def _take(self) -> bytes | threading.Event | None:
        """Return what is next in the queue; data as whole lines, if the rest comes in time."""
        if self._next:
            return self._next.pop()
        piece = self._pieces.get()
        deadline = time.monotonic() + self._line_seconds
        while isinstance(piece, bytes) and piece and not piece.endswith(LINE_ENDS):
            if (remaining := deadline - time.monotonic()) <= 0:
                break
            try:
                rest = self._pieces.get(timeout=remaining)
            except queue.Empty:
                break
            if not isinstance(rest, bytes):
                self._next.append(rest)
                break
            piece += rest
        return piece

    def _write_all(self, data: bytes) -> None:
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:
                # Another process has made the shared descriptor non-blocking.
                writable = select.poll()  # select() refuses descriptors from 1024 on
                writable.register(self._descriptor, select.POLLOUT)
                writable.poll()
