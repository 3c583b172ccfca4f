"""Takes the snapshots that the supervisor has announced to one of several ranks."""

import functools
from concurrent.futures import Future
from dataclasses import replace

from orchestrator.checkpoint.checkpoint import Checkpoint
from orchestrator.checkpoint.contents import file_of_rank
from orchestrator.checkpoint.manifest import Reason
from orchestrator.ipc.place_agreement import Decision
from orchestrator.snapshot.slots import Slots, Snapshot
from orchestrator.training.data.first_batch import FirstBatch
from orchestrator.training.exits import describe_shortly
from orchestrator.training.loop.loop_state import StateToSave
from orchestrator.training.runtime.backend import RunBackend
from orchestrator.training.runtime.rank_link import RankLink
from orchestrator.training.saving.saver import Saver
from orchestrator.training.saving.snapshotter import PendingSnapshot, SnapshotContent, Snapshotter
from orchestrator.training.state.digests import digest_parts
from orchestrator.training.state.layout_watch import LayoutWatch
from orchestrator.training.state.options import OptimizerOptions
from orchestrator.training.state.registered_objects import Registry
from orchestrator.training.state.replicas import DIGESTS, Replicas

NO_MEMORY = "there is no memory for two snapshots of the state, which several ranks need to save"
STILL_WRITING = "the checkpoints before it are still being written"
NOT_TAKEN = "no snapshot of the state could be taken"


class AgreedSnapshotter(Snapshotter):
    """Fills the slot that was announced, with the announced generation.

    Attributes:
        decision: What was announced last.
    """

    decision: Decision

    def _target(self) -> int | None:
        return None if self._is_held(self.decision.slot) else self.decision.slot

    def _begin(self, deadline: float | None) -> PendingSnapshot | None:
        # Another slot may hold the newest snapshot that all ranks have.
        return super()._begin(deadline) if self.decision.slot < self._usable else None

    def _begin_slot(self, slot: int) -> None:
        self._slots.begin(slot, self.decision.id)

    def why_not(self) -> str:
        """Return why what was announced last is not under way."""
        if self.decision.slot >= self._usable:
            return NO_MEMORY
        return STILL_WRITING if self._is_held(self.decision.slot) else NOT_TAKEN


class AgreedSaver(Saver):
    """A rank's snapshots: rank 0 takes the whole state, any other rank what is its own.

    What is common is compared by digests of all its bytes, read where they are.
    """

    _snapshotter: AgreedSnapshotter

    def __init__(
        self,
        backend: RunBackend,
        registry: Registry,
        options: OptimizerOptions,
        layout_watch: LayoutWatch | None,
        first_batch: FirstBatch,
        rank_link: RankLink,
    ) -> None:
        """Use ``rank_link`` for what the supervisor must know; the rest is as in Saver."""
        super().__init__(backend, registry, options, layout_watch, first_batch)
        self._rank_link = rank_link
        self._sharding = registry.sharding
        self._replicas = Replicas(registry.objects, registry.sharding)

    def _make_snapshotter(self, slots: Slots) -> Snapshotter:
        return AgreedSnapshotter(slots)

    @property
    def thread_seconds(self) -> float:
        """How much processor time the thread of the last snapshot has used."""
        return self._thread_seconds

    def take(
        self,
        saved: StateToSave,
        reason: Reason,
        decision: Decision,
        deadline: float,
        written: Future[Checkpoint] | None,
    ) -> str | None:
        """Begin to take the announced snapshot; return why that is not possible, None if it is.

        It waits until ``deadline`` (time.monotonic, in seconds) for memory and for the slot, which
        is held until ``written`` is done.

        Raises:
            UnstorableError: At the first save, a value has no form that can be loaded safely.
        """
        self.prove_loadable(saved.state)
        self._watch_layout(saved)
        self._snapshotter.decision = decision
        pending = self._take(saved, reason, deadline)
        if pending is None:
            return self._snapshotter.why_not()
        if written is not None:
            self._snapshotter.hold(pending.slot, written)
        pending.done.add_done_callback(functools.partial(self._tell_failure, decision.id))
        return None

    def _tell_failure(self, generation: int, done: Future[Snapshot]) -> None:
        if (error := done.exception()) is not None and isinstance(error, Exception):
            self._rank_link.skip(generation, describe_shortly(error))

    def _content(self, saved: StateToSave, reason: Reason) -> SnapshotContent:
        content = super()._content(saved, reason)
        if self._sharding is not None:
            index = self._sharding.index_of(saved.state, file_of_rank(self._rank_link.world.rank))
            content = replace(content, index=index.to_json())
        if self._rank_link.world.rank == 0:
            return replace(content, replica_digests=self._replicas.digests)
        digests = digest_parts(saved.state) | content.draft.digests
        own = self._replicas.own(saved.state) | {DIGESTS: digests}
        # Computed now: the tensors change as soon as the loop goes on, and are not copied.
        draft = replace(content.draft, replicas=self._replicas.digests(saved.state))
        # Rank 0 looks for values that are not finite in what is common.
        parameters = () if self._sharding is None else content.parameters
        return replace(content, state=own, draft=draft, parameters=parameters)
