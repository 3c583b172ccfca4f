"""Where a run is in its script's loop, and what a checkpoint made there holds.

A resumed script executes once more what lies between the `with` and the batch at which it was cut.
On this way back the streams, the registered objects and plain values that it changes are put back
when it arrives; a checkpoint made on the way is the one that the run was resumed from.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from orchestrator.checkpoint.manifest import Reason, exactness_of
from orchestrator.training.data.position import DataPosition, digest_of_next
from orchestrator.training.loop.replay import ReplayPoint, same
from orchestrator.training.state import rng
from orchestrator.training.state.digests import digest_parts
from orchestrator.training.state.plain_values import to_plain
from orchestrator.training.state.registry import SUFFIX, Progress, Registry
from orchestrator.training.state.restore import Restored


@dataclass
class LoopPosition:
    """One round of ``session.epochs()`` or ``session.steps()``, or neither."""

    epoch_began_at_step: int | None = None
    has_batches: bool = False
    open_step: int | None = None
    """The step that ``steps()`` has begun; done once the session's count is beyond it."""
    was_changed: bool = False
    """Whether a checkpoint was demanded after weights had changed outside the known places."""

    def is_resumable(self, step: int) -> bool:
        """Whether the session's counters describe this place.

        Not inside a step. Nor after the only step of an epoch that does not use
        ``session.batches()``: the epoch may be over, and a run resumed from there would do it
        again; its end is an instant away if so.
        """
        if self.open_step is not None:
            return step > self.open_step
        if self.epoch_began_at_step is None or self.has_batches:
            return True
        return step - self.epoch_began_at_step != 1

    def caveats(self, step: int, polling: bool) -> list[str]:
        """Why a run resumed from here could differ from one that was not interrupted."""
        if self.was_changed:
            return [
                "it was made with changed weights outside the batches, and that part runs again"
            ]
        if self.epoch_began_at_step is not None and not self.has_batches:
            if step > self.epoch_began_at_step:
                return [
                    "the epoch starts over, since its batches do not come from session.batches()"
                ]
        elif polling and (self.has_batches or self.open_step is not None):
            return ["it was made inside an evaluation between two steps, which does not run again"]
        return []


class StateToSave(NamedTuple):
    """The state for a checkpoint, the metrics that were measured on it, and the doubts about it."""

    state: dict[str, Any]
    metrics: dict[str, float]
    doubts: list[str]


class LoopState:
    """The counters, the place, the position in the data and the random streams of a run.

    ``problems`` are the reasons why a resumed run may differ from one that was not interrupted;
    None while it was not resumed.
    """

    def __init__(
        self,
        registry: Registry,
        plain_state: dict[str, Any],
        seed: int,
        *,
        allow_data_change: bool = False,
    ) -> None:
        """``plain_state`` is the session's dict of plain values, saved with the rest."""
        self.progress = Progress()
        self.data = DataPosition(seed, allow_change=allow_data_change)
        self.problems: list[str] | None = None
        self._registry = registry
        self._plain_state = plain_state
        self._place = LoopPosition()
        self._polling = False
        self._replay_point: ReplayPoint | None = None
        # On the way back: the streams at its end, those where its epoch began, those after the last
        # pass over the data that it repeats.
        self._streams: dict[str, Any] | None = None
        self._epoch_streams: dict[str, Any] | None = None
        self._passed_streams: dict[str, Any] | None = None

    @property
    def exactness(self) -> str | None:
        """EXACT, or APPROXIMATE and why; None in a run that was not resumed."""
        return None if self.problems is None else exactness_of(self._doubts())

    # --- what the loop does ------------------------------------------------------------------

    def begin_epoch(self) -> None:
        """The loop enters an epoch, anew or on the way back."""
        self._place = LoopPosition(epoch_began_at_step=self.progress.step)
        if self.data.resumed_pass is None:
            self._arrive()
            self._epoch_streams = self._capture_streams()
        elif self._epoch_streams is not None:
            rng.restore(self._epoch_streams, self._registry.generators)
        self._remember()

    def end_epoch(self) -> None:
        """Everything in the epoch has been done."""
        self._streams = self._epoch_streams = None
        self.progress.epoch += 1
        self.data.begin_epoch()
        self._place = LoopPosition()
        self._replay_point = None

    def begin_step(self) -> None:
        """The loop enters a step that ``session.steps()`` counts."""
        self._place = LoopPosition(open_step=self.progress.step)
        self._arrive()

    def end_steps(self) -> None:
        """``session.steps()`` has no more."""
        self._place = LoopPosition()

    def begin_pass(self, loader: Iterable[Any]) -> None:
        """The loop asks for the batches of ``loader``. Raises MismatchError for a changed one."""
        self.data.check(loader)
        self._place.has_batches = True
        if self._streams is not None and self._replay_point is None:
            self._remember()
        if self.data.is_at_resumed_pass:
            self._arrive()

    def end_pass(self) -> None:
        """The batches are used up."""
        if self.data.mid_batch:
            return
        if self._streams is None:
            self._remember()
        else:
            self._passed_streams = self._capture_streams()

    def end_step(self, metrics: dict[str, Any]) -> None:
        """A step is done."""
        self.progress.step += 1
        self.progress.note(metrics)
        self.data.consume()
        self._replay_point = self._streams = None

    def poll(self, metrics: dict[str, Any]) -> None:
        """A safe point without a step begins; ``end_poll`` ends it."""
        self.progress.note(metrics)
        self._polling = True

    def end_poll(self) -> None:
        """That safe point is passed."""
        self._polling = False

    # --- saving ------------------------------------------------------------------------------

    def is_resumable(self) -> bool:
        """Whether a run resumed from a checkpoint made here would continue at the right place."""
        if self._registry.accumulates:
            return False
        if self._replay_point is not None:
            return self._replay_point.is_intact()
        if self.data.mid_batch:
            return False
        return self._place.is_resumable(self.progress.step)

    def content(self, reason: Reason) -> StateToSave:
        """What to keep. Raises UnstorableError and ConfigError for values that cannot be kept."""
        point = self._replay_point
        if point is not None and (reason is Reason.FINAL or not point.is_intact()):
            point = None
            self._place.was_changed = reason is not Reason.FINAL
        if reason in (Reason.EMERGENCY, Reason.FINAL):
            self.progress.refuses_bad_metrics = False
        metrics = self.progress.metric_values()
        state = self._capture(metrics) if point is None else point.state | metrics
        doubts = self._doubts() + state["data"]["caveats"]
        return StateToSave(state, self.progress.measured_here(metrics), list(dict.fromkeys(doubts)))

    def _doubts(self) -> list[str]:
        return (self.problems or []) + self.data.problems

    def _capture(self, metrics: dict[str, float]) -> dict[str, Any]:
        return {
            "epoch": self.progress.epoch,
            "step": self.progress.step,
            **metrics,
            **self._registry.capture(),
            "state": to_plain(self._plain_state, "session.state"),
            "rng": self._capture_streams() if self._streams is None else self._streams,
            "data": {
                **self.data.state(),
                "epoch_rng": self._epoch_streams,
                "caveats": self._place.caveats(self.progress.step, self._polling),
            },
        }

    def _capture_streams(self) -> dict[str, Any]:
        return rng.capture(self._registry.generators)

    def _remember(self) -> None:
        self._replay_point = ReplayPoint(self._capture(self.progress.metric_values()))

    # --- restoring ---------------------------------------------------------------------------

    def take_over(self, restored: Restored) -> None:
        """Continue from a checkpoint whose registered objects have been restored already."""
        self._plain_state.clear()
        self._plain_state.update(restored.state)
        self.progress = restored.progress
        self.data.load(restored.position)
        # Last, since loading may draw from the streams.
        self.problems = restored.problems + rng.restore(restored.streams, self._registry.generators)
        self.problems += self._differences(restored)
        self._streams = restored.streams
        self._epoch_streams = restored.position.get("epoch_rng")

    def _differences(self, restored: Restored) -> list[str]:
        """What of the live objects and streams is not what the digests of the checkpoint say."""
        streams = self._capture_streams()
        known = {name: streams[name] for name in restored.streams if name in streams}
        here = digest_parts({**self._registry.capture(), "rng": known})
        here["next_batch"] = digest_of_next(restored.position)
        return [
            f"{name.removesuffix(SUFFIX)} has not loaded what was saved"
            for name, there in restored.digests.items()
            if name in here and here[name] != there
        ]

    def _arrive(self) -> None:
        """Undo what a resumed script has repeated on its way to where the checkpoint was made."""
        if self._streams is None or self.problems is None:
            return
        if self._replay_point is not None:
            self.problems += self._replay_point.undo(self._registry, self._plain_state)
        if self._passed_streams is not None and not same(
            self._passed_streams, self._capture_streams()
        ):
            self.problems.append("random numbers were drawn between two passes of an epoch")
        rng.restore(self._streams, self._registry.generators)
        self._streams = self._passed_streams = self.data.resumed_pass = None
