"""What follows when a checkpoint is there, or when a save has failed."""

from typing import Any

import structlog

from orchestrator.checkpoint.checkpoint import Checkpoint
from orchestrator.checkpoint.checkpoint_journal import CheckpointJournal
from orchestrator.snapshot.slots import Snapshot
from orchestrator.supervisor.checkpoints.catalog import CheckpointCatalog
from orchestrator.supervisor.run_facts import RunFacts
from orchestrator.supervisor.save_requests import SaveRequests
from orchestrator.supervisor.stop_request import CLOSING_SHARE


class Publisher:
    """Implements RunEvents: records each checkpoint, rotates, and answers those who wait for it."""

    def __init__(
        self,
        facts: RunFacts,
        catalog: CheckpointCatalog,
        requests: SaveRequests,
        journal: CheckpointJournal,
    ) -> None:
        self._facts = facts
        self._catalog = catalog
        self._requests = requests
        self._journal = journal
        self._is_grace_checked = False
        self._differing: list[str] = []
        self._log = structlog.get_logger()

    def snapshot_taken(self, facts: dict[str, Any]) -> None:
        """Record the snapshot in the journal, which holds a sample of them."""
        self._journal.record_snapshot(facts, self._facts.attempt_number)

    def checkpoint_written(
        self, snapshot: Snapshot, checkpoint: Checkpoint, seconds: float
    ) -> None:
        """Publish the checkpoint, and tell the trainer, which may use the slot again."""
        self.checkpoint_published(checkpoint.name, {"seconds": seconds})
        self._send_to_trainers(
            type="written", generation=snapshot.generation, name=checkpoint.name, seconds=seconds
        )

    def write_failed(self, snapshot: Snapshot, problem: str) -> None:
        """Report the problem, and tell the trainer, which may use the slot again."""
        self.save_failed({"step": snapshot.manifest.step, "problem": problem})
        self._send_to_trainers(type="write_failed", generation=snapshot.generation, problem=problem)

    def not_taken(self, generation: int, step: int, problem: str) -> None:
        """Report the problem, and tell the ranks that do not wait for it."""
        self.save_failed({"step": step, "problem": problem})
        self._send_to_trainers(type="write_failed", generation=generation, problem=problem)

    def replicas_differ(self, step: int, names: list[str]) -> None:
        """Report them, once until other tensors differ."""
        if names == self._differing:
            return
        self._differing = names
        self._journal.record_difference(self._facts.attempt_number, step=step, tensors=names)
        self._log.error(
            "the ranks hold different values of the same tensors: what is saved from now on is "
            "kept, and nothing resumes from it",
            step=step,
            tensors=", ".join(names),
            details=[
                "they have drifted apart: look for a step that not every rank takes, for a "
                "parameter outside of DistributedDataParallel, for bad memory"
            ],
        )

    def checkpoint_published(self, name: str, facts: dict[str, Any]) -> None:
        """Record the checkpoint in catalog, journal and failure budget, and begin to rotate."""
        seconds = facts.get("seconds")
        checkpoint = self._catalog.record_published(name, seconds=seconds)
        if checkpoint is None:
            return
        self._facts.problem = None
        self._facts.save_seconds = self._facts.save_seconds if seconds is None else seconds
        self._log.info(
            "checkpoint", step=checkpoint.manifest.step, reason=checkpoint.manifest.reason.value
        )
        self._requests.answer_all({"type": "published", "path": str(checkpoint.shown_path)})
        self._warn_of_short_grace(seconds)
        self._catalog.begin_rotation()

    def save_failed(self, facts: dict[str, Any]) -> None:
        """Report the problem in journal, log and status, and to those who wait for a save."""
        problem = str(facts.get("problem"))
        self._journal.record_failure(
            problem,
            self._facts.attempt_number,
            step=facts.get("step"),
            adopted=facts.get("adopted"),
        )
        self._facts.problem = problem
        self._log.error(problem)
        self._requests.answer_all({"type": "failed", **facts})

    def _send_to_trainers(self, **message: Any) -> None:
        for rank in self._facts.attempt.ranks if self._facts.attempt is not None else ():
            if rank.peer is not None:
                rank.peer.send(message)

    def _warn_of_short_grace(self, save_seconds: Any) -> None:
        if self._is_grace_checked or not isinstance(save_seconds, float):
            return
        self._is_grace_checked = True
        grace_seconds = self._facts.stop.grace_seconds
        if save_seconds > grace_seconds * (1 - CLOSING_SHARE):
            self._log.warning(
                f"saving takes {save_seconds:.1f} s and --grace is {grace_seconds:g} s: a "
                "stop would have no time to save; raise --grace, and the time that the host allows"
            )
