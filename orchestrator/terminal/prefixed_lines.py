"""Lines of several processes on one terminal, each with the name of its process before it."""

from orchestrator.terminal.console import Sink

LONGEST_LINE_BYTES = 1 << 16


class PrefixedLines:
    """A sink that passes whole lines on, each after a prefix."""

    def __init__(self, sink: Sink, prefix: str) -> None:
        self._sink = sink
        self._prefix = prefix.encode()
        self._rest = b""

    def write(self, data: bytes) -> None:
        """Pass on the lines that are whole; keep the rest, unless it is very long."""
        # A progress bar ends its lines with a carriage return. One at the end waits for the line
        # feed that may belong to it.
        lines = (self._rest + data).splitlines(keepends=True)
        self._rest = lines.pop() if lines and not lines[-1].endswith(b"\n") else b""
        if len(self._rest) > LONGEST_LINE_BYTES:
            lines.append(self._take_rest())
        if lines:
            self._sink.write(b"".join(self._prefix + line for line in lines))

    def drain(self, timeout_seconds: float) -> None:
        """Pass the rest on, and wait until all has been written or the timeout has passed."""
        if self._rest:
            self._sink.write(self._prefix + self._take_rest())
        self._sink.drain(timeout_seconds)

    def _take_rest(self) -> bytes:
        rest, self._rest = self._rest, b""
        return rest if rest.endswith(b"\r") else rest + b"\n"
