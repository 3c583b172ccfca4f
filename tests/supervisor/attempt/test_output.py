"""The output of ranks, where it is printed together."""

import os
from pathlib import Path

from orchestrator.supervisor.attempt.output import OutputTarget, open_output
from tests.support import wait_until


class Recorded:
    """A sink that keeps what is written."""

    def __init__(self) -> None:
        self.text = b""

    def write(self, data: bytes) -> None:
        self.text += data

    def drain(self, timeout_seconds: float) -> None:
        """Nothing is queued."""


def test_line_of_another_rank_does_not_cut_one_of_rank_0(tmp_path: Path) -> None:
    """A line that rank 0 writes in two pieces is printed whole, after what came between them."""
    sink = Recorded()
    target = OutputTarget(sink, 1 << 20, shows_all_ranks=True)
    output = open_output(tmp_path / "output.log", target)
    with open(os.dup(output.write_descriptor), "wb", buffering=0) as trainer:
        output.start()
        trainer.write(b"hello from ")
        wait_until(lambda: output.copied_bytes, "the first piece")
        target.of_rank(1).sink.write(b"one\n")
        trainer.write(b"0\n")
    output.finish(20)
    assert sink.text.splitlines() == [b"[rank 1] one", b"hello from 0"]
