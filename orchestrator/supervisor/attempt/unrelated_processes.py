"""Child processes of the supervisor that are no part of the training."""

import os

from orchestrator.spare.pool import SparePool
from orchestrator.system import process_tree
from orchestrator.system.subprocesses import SubprocessRunner


class UnrelatedProcesses:
    """The spare, external commands, and what a shell had started before it became the supervisor.

    As a subreaper the supervisor is the parent of every orphan of the trainer. All of its children
    but these belong to the attempt, and end with it.
    """

    def __init__(self, spares: SparePool, commands: SubprocessRunner) -> None:
        self._spares = spares
        self._commands = commands
        self._earlier: set[int] = set()

    def record_earlier(self) -> None:
        """Record the children that exist before the first trainer."""
        self._earlier = set(process_tree.children_of(os.getpid()))

    def pids(self) -> set[int]:
        """Return the pids of the unrelated children; their descendants are unrelated too."""
        return self._spares.spare_pids | self._earlier | self._commands.running

    def reap(self, trainers: set[int]) -> None:
        """Collect ended children, except for those that another part waits for."""
        awaited = self._spares.pids_with_waiter | self._commands.running
        process_tree.reap_children(keep=awaited | trainers)
        if self._earlier:
            self._earlier.intersection_update(process_tree.children_of(os.getpid()))
