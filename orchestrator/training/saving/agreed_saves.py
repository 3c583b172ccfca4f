"""How one of several ranks saves: where all of them have agreed to, and nowhere else."""

import time
from concurrent.futures import Future

from orchestrator.checkpoint.checkpoint import Checkpoint
from orchestrator.checkpoint.manifest import Reason
from orchestrator.errors import CheckpointWriteError, FreedStorageError
from orchestrator.ipc.control_page import Field
from orchestrator.ipc.place_agreement import Decision, Kind, Places
from orchestrator.training.exits import print_message
from orchestrator.training.loop.due_saves import DueSaves
from orchestrator.training.loop.loop_state import LoopState
from orchestrator.training.loop.mistakes import LoopMistakes
from orchestrator.training.runtime.local_writer import WRITE_WAIT_SECONDS
from orchestrator.training.runtime.membership import RunMembership
from orchestrator.training.runtime.rank_link import RankLink
from orchestrator.training.saving.agreed_saver import AgreedSaver
from orchestrator.training.saving.session_saves import SLOT_WAIT_SECONDS, SessionSaves

# The supervisor's death ends this process, so that no wait for it is longer.
WAIT_SECONDS = 0.0005
LEFT_THE_LOOP = "the script has left its loop at a place where its state cannot be saved"
_REASONS = {
    Kind.STOP: Reason.EMERGENCY,
    Kind.SAVE: Reason.PERIODIC,
    Kind.SNAPSHOT: Reason.PERIODIC,
    Kind.FINAL: Reason.FINAL,
}


class AgreedSaves(SessionSaves):
    """The save strategy of a session that is one of several ranks.

    Attributes:
        places: The places of the loop, at which decisions of the supervisor are acted on.
    """

    saver: AgreedSaver

    def __init__(
        self,
        membership: RunMembership,
        due: DueSaves,
        loop_state: LoopState,
        saver: AgreedSaver,
        mistakes: LoopMistakes,
        rank_link: RankLink,
    ) -> None:
        super().__init__(membership, due, loop_state, saver, mistakes)
        self._rank_link = rank_link
        self._owed: Decision | None = None
        self.places = Places(self._page, self._wait)

    def _wait(self) -> None:
        """Wait for the supervisor; a stop that this process alone was sent has to be told."""
        self.report_stop()
        time.sleep(WAIT_SECONDS)

    def report_stop(self) -> None:
        """Report that a stop is requested, if it is: the supervisor announces where to stop."""
        if self._page[Field.STOP_REQUEST]:
            self._membership.report_stop(self.progress.step)

    @property
    def has_owed(self) -> bool:
        """Whether a decision waits for a place at which the state can be saved."""
        return self._owed is not None

    def act(self, decision: Decision | None) -> None:
        """Act on a decision here, or at the next place at which the state can be saved.

        All ranks run the same loop, so that this is the same place for all of them.

        Raises:
            TrainingStopped: It was to stop, and the state is being saved.
        """
        self._owed = decision or self._owed
        if self._owed is None or not self._loop_state.is_resumable():
            return
        decision, self._owed = self._owed, None
        self._carry_out(decision)

    def _carry_out(self, decision: Decision) -> Future[Checkpoint] | None:
        written = self._take(decision)
        if decision.kind is Kind.STOP:
            self._emergency = written
            self._raise_stopped()
        return written

    def _take(self, decision: Decision) -> Future[Checkpoint] | None:
        """Take the snapshot of a decision; return what gets its checkpoint, if it becomes one."""
        self._report_lost_exactness()
        self._membership.metrics.flush()
        began, written = time.perf_counter(), None
        if decision.kind is not Kind.SNAPSHOT:
            written = self._rank_link.expect(decision.id, self.progress.step)
        with self._phase_save():
            reason, deadline = _REASONS[decision.kind], self._deadline_of(decision.kind)
            try:
                saved = self._loop_state.state_to_save(reason)
                problem = self.saver.take(saved, reason, decision, deadline, written)
            except FreedStorageError as error:
                problem = str(error)
        if problem is None:
            self.progress.refuses_bad_values = False
        else:
            self._rank_link.skip(decision.id, problem)
        self._mistakes.check(self._loop_state.registered(), self.progress.step)
        cost = time.perf_counter() - began + self.saver.thread_seconds
        self._page[Field.SNAPSHOT_COST_NS] = int(cost * 1e9)
        if written is not None:
            written.add_done_callback(_print_failure)
        return written

    def _deadline_of(self, kind: Kind) -> float:
        """Return until when (time.monotonic) the loop waits for the slot of a decision."""
        match kind:
            case Kind.STOP:
                return self._stop_deadline()
            case Kind.FINAL:
                return time.monotonic() + WRITE_WAIT_SECONDS
        return time.monotonic() + SLOT_WAIT_SECONDS

    def save_now(self, reason: Reason) -> Checkpoint:
        """Wait at the end for all ranks, and until the last checkpoint is durable.

        Raises:
            CheckpointWriteError: The disk refused it, or a rank could not save.
            TrainingStopped: A stop came first.
        """
        if self._owed is not None:
            owed, self._owed = self._owed, None
            if owed.kind is Kind.STOP:
                self._carry_out(owed)
            # The supervisor decides nothing else before this one is done or given up.
            self._rank_link.skip(owed.id, LEFT_THE_LOOP)
        with self._membership.saving_clock:
            while True:
                decision = self.places.arrive_at_end()
                written = self._carry_out(decision)
                if decision.kind is Kind.FINAL and written is not None:
                    return self._wait_until_durable(written, time.monotonic() + WRITE_WAIT_SECONDS)


def _print_failure(written: Future[Checkpoint]) -> None:
    if isinstance(error := written.exception(), CheckpointWriteError):
        print_message(str(error))
