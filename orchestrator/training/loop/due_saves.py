"""Which save is due at a safe point: for a stop, on request, or by the schedule."""

from concurrent.futures import Future

from orchestrator.checkpoint.checkpoint import Checkpoint
from orchestrator.checkpoint.manifest import Reason
from orchestrator.config import Every
from orchestrator.ipc.control_page import Field
from orchestrator.pace.save_schedule import Schedule
from orchestrator.training.exits import print_message
from orchestrator.training.state.progress import Progress

# Plain integers: the hot path looks them up at every step.
STOP_REQUEST = int(Field.STOP_REQUEST)
CHECKPOINT_REQUESTS = int(Field.CHECKPOINT_REQUESTS)


class DueSaves:
    """The stop, the requests and the schedule of one run, and how its writes have ended.

    Attributes:
        schedule: When the next periodic checkpoint is due.
        served_requests: How many requests on the control page have been answered with a save.
    """

    def __init__(self, page: memoryview, every: Every) -> None:
        """Read requests from the values of the control page."""
        self.schedule = Schedule(every)
        self.served_requests = 0
        self._page = page

    @property
    def stop_wanted(self) -> bool:
        """Whether the run is to be saved, and then to stop."""
        return bool(self._page[STOP_REQUEST])

    @property
    def requests(self) -> int:
        """How many checkpoints were requested so far, by a signal or the supervisor."""
        return self._page[CHECKPOINT_REQUESTS]

    @property
    def is_requested(self) -> bool:
        """Whether a request has not been answered yet."""
        return self.requests != self.served_requests

    def is_due(self, progress: Progress) -> bool:
        """Return whether training should save now and continue."""
        return self.is_requested or self.schedule.is_due(progress.step, progress.epoch)

    def reason(self, *, final: bool = False) -> Reason:
        """Return what a save that begins now is made for; ``final`` if it is the run's last."""
        if self.stop_wanted:
            return Reason.EMERGENCY
        if final:
            return Reason.FINAL
        return Reason.REQUESTED if self.is_requested else Reason.PERIODIC

    def record_end(self, written: Future[Checkpoint]) -> None:
        """Record how a write ended that the loop has not waited for."""
        if written.exception() is None:
            self.record_success(written.result())
        else:
            self.record_failure()

    def record_success(self, checkpoint: Checkpoint) -> None:
        """Record a successful write; print it if nothing will resume from the checkpoint."""
        self.schedule.record_success()
        if not checkpoint.manifest.healthy:
            print_unhealthy(checkpoint)

    def record_failure(self) -> None:
        """Record a failed write, after which the next save is tried again soon."""
        delay = self.schedule.record_failure()
        if not self.stop_wanted:
            print_message(f"training goes on; the next save is tried in {delay:.0f} s")


def print_unhealthy(checkpoint: Checkpoint) -> None:
    """Print that nothing will resume from a checkpoint."""
    differing = checkpoint.manifest.differing
    what = "weights that are not finite"
    if differing:
        what = f"values that differ between the ranks ({', '.join(differing)})"
    print_message(
        f"step {checkpoint.manifest.step} has {what}: its checkpoint is kept, but nothing will "
        "resume from it"
    )
