"""The start of all ranks of an attempt."""

import asyncio
import os
import signal
from pathlib import Path
from typing import Any, cast

import pytest

from orchestrator.adopt.resume_argument import ResumeArgument
from orchestrator.errors import ConfigError
from orchestrator.rundir.paths import RunDir
from orchestrator.spare.pool import SparePool
from orchestrator.supervisor.attempt.attempt import Attempt
from orchestrator.supervisor.attempt.launcher import LaunchSpec, launch
from orchestrator.supervisor.attempt.output import OutputTarget
from orchestrator.supervisor.attempt.unrelated_processes import UnrelatedProcesses
from orchestrator.supervisor.checkpoints.snapshot_write_queue import SnapshotWriteQueue
from orchestrator.supervisor.stop_request import StopRequest
from orchestrator.system.subprocesses import SubprocessRunner
from orchestrator.terminal.lossy_writer import LossyWriter
from tests.checkpoint.support import new_store
from tests.supervisor.support import GRACE_SECONDS, RecordedEvents, catalog_of

pytestmark = pytest.mark.processes


class NoSpares:
    """No spare; before the second rank starts, the command is deleted."""

    spare_pids: frozenset[int] = frozenset()
    pids_with_waiter: frozenset[int] = frozenset()

    def __init__(self, program: Path) -> None:
        self._program = program
        self._starts = 0

    async def make_trainer(self, *_: Any) -> None:
        self._starts += 1
        if self._starts == 2:
            self._program.unlink()


def test_rank_that_does_not_start_ends_those_that_did(tmp_path: Path) -> None:
    """No process of the attempt is left once the start has failed."""
    program = tmp_path / "train.sh"
    program.write_text("#!/bin/sh\nsleep 600 & sleep 600\n")
    program.chmod(0o700)
    store = new_store(tmp_path)
    queue = SnapshotWriteQueue(
        store, catalog_of(store), StopRequest(GRACE_SECONDS), RecordedEvents(), 2
    )
    target = OutputTarget(LossyWriter(1), 1 << 20)
    attempt = Attempt(RunDir(tmp_path), 1, None, None, queue, target)
    spares = cast(SparePool, NoSpares(program))
    unrelated = UnrelatedProcesses(spares, SubprocessRunner())
    unrelated.record_earlier()
    spec = LaunchSpec(
        [str(program)],
        ResumeArgument(),
        os.environ,
        os.open(tmp_path, os.O_RDONLY),
        (),
        signal.SIGTERM,
        unrelated,
    )
    try:
        with pytest.raises(ConfigError, match="cannot run"):
            asyncio.run(launch(spec, attempt, spares))
        unrelated.reap(trainers=set())
        assert attempt.main.process.tree() == []
    finally:
        os.close(spec.lock_descriptor)
        attempt.close()
