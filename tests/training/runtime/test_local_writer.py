"""Whoever waits for a write gets an answer, whatever fails."""

import threading
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from orchestrator.checkpoint.checkpoint import Checkpoint
from orchestrator.checkpoint.manifest import Reason
from orchestrator.checkpoint.store import Store
from orchestrator.errors import CheckpointWriteError
from orchestrator.snapshot.slots import Snapshot
from orchestrator.training.runtime.backend import RunBackend
from orchestrator.training.runtime.local_writer import LocalWriter
from tests.checkpoint.support import manifest_of, new_store, publish
from tests.support import DEADLINE_SECONDS

SNAPSHOT = cast(Snapshot, SimpleNamespace(manifest=manifest_of(7)))


@dataclass
class Backend:
    """A backend that raises ``problem`` in the place of what it does after a write."""

    store: Store
    problem: BaseException | None = None
    reported: list[str] = field(default_factory=list)

    @property
    def facts(self) -> "Backend":
        return self

    def record_publish(self, checkpoint: Checkpoint, seconds: float) -> None:
        if self.problem is not None:
            raise self.problem

    def report(self, report: object, *, step: int, problem: str) -> None:
        self.reported.append(problem)
        if self.problem is not None:
            raise self.problem


def write(backend: Backend, outcome: Checkpoint | BaseException) -> Future[Checkpoint]:
    writer: Any = LocalWriter(cast(RunBackend, backend))

    def answer(snapshot: Snapshot, reason: Reason) -> Checkpoint:
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    writer._writer = SimpleNamespace(write=answer)
    written: Future[Checkpoint] = Future()
    writer.write(SNAPSHOT, Reason.PERIODIC, written)
    written.exception(DEADLINE_SECONDS)
    writer.finish()
    return written


@pytest.mark.parametrize("problem", [None, RecursionError("too deep"), SystemExit(1)])
def test_failure_after_a_write_is_an_answer(tmp_path: Path, problem: BaseException | None) -> None:
    """The loop would wait for ever for a write whose thread has ended."""
    checkpoint = publish(new_store(tmp_path), 7)
    written = write(Backend(new_store(tmp_path), problem), checkpoint)
    assert written.exception() is problem
    assert problem is not None or written.result() is checkpoint


def test_failed_report_of_a_failed_write_is_an_answer(tmp_path: Path) -> None:
    """A journal that cannot be written does not keep the loop waiting."""
    error = CheckpointWriteError(7, OSError(28, "No space left on device"))
    backend = Backend(new_store(tmp_path))
    assert write(backend, error).exception() is error
    assert backend.reported == [str(error)]
    problem = RuntimeError("no journal")
    assert write(Backend(new_store(tmp_path), problem), error).exception() is problem


def test_write_for_which_there_is_no_thread_is_a_failed_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The training goes on where the system allows no more threads."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    backend = Backend(new_store(tmp_path))
    error = write(backend, RuntimeError("not reached")).exception()
    assert isinstance(error, CheckpointWriteError)
    assert backend.reported == ["cannot save the checkpoint of step 7: can't start new thread"]
