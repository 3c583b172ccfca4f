"""Where a run is in its script's loop, and what a checkpoint made there holds.

A resumed script executes once more the code between the `with` line and the batch at which it was
cut. When it arrives there, the random streams, the registered objects and the plain values that
this code has changed are put back. The phases and what leads from one to another: loop_phase.py.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from orchestrator.checkpoint.manifest import Reason
from orchestrator.errors import FreedStorageError
from orchestrator.training.data.data_position import DataPosition, digest_of_next
from orchestrator.training.loop.exactness import Exactness
from orchestrator.training.loop.loop_phase import (
    TRANSITIONS,
    LoopEvent,
    LoopPhase,
    has_replay_point,
    is_returning,
)
from orchestrator.training.loop.loop_position import InEpoch, InStep, LoopPosition
from orchestrator.training.loop.replay import NO_REPLAY_POINT, ReplayPoint, have_same_values
from orchestrator.training.state import rng
from orchestrator.training.state.digests import digest_parts
from orchestrator.training.state.gc_pause import paused_collector
from orchestrator.training.state.loaded_state import LoadedState
from orchestrator.training.state.progress import SUFFIX, Progress
from orchestrator.training.state.registered_objects import Registry

# Looked up at every step.
STEPPING = LoopPhase.STEPPING


class StateToSave(NamedTuple):
    """The state for a checkpoint, the metrics measured on it, and the doubts about it."""

    state: dict[str, Any]
    metrics: dict[str, float]
    doubts: list[str]


class LoopState:
    """The counters, the place in the loop, the position in the data and the random streams."""

    def __init__(
        self,
        registry: Registry,
        plain_state: dict[str, Any],
        seed: int,
        *,
        allow_data_change: bool = False,
    ) -> None:
        """Begin outside of any loop.

        Args:
            registry: The objects whose states are saved and restored.
            plain_state: The session's dict of plain values, which is saved with them.
            seed: From which the order of the data is derived.
            allow_data_change: Whether an epoch may go on with another loader than it had.
        """
        self.progress = Progress()
        self.data = DataPosition(seed, allow_change=allow_data_change)
        self._registry = registry
        self._plain_state = plain_state
        self.exactness = Exactness(self.data, registry.plain)
        self._phase = STEPPING
        self._position = LoopPosition()
        self._in_evaluation = False
        # While the phase has a replay point.
        self._replay_point = NO_REPLAY_POINT
        # While the script is returning: the streams at the place of the checkpoint, and those
        # after the last pass over the data that the script has repeated.
        self._streams_at_cut: dict[str, Any] = {}
        self._streams_after_pass: dict[str, Any] = {}
        # None outside of epochs; a checkpoint holds it, and a resumed epoch begins with it.
        self._streams_at_epoch: dict[str, Any] | None = None

    def registered(self) -> list[Any]:
        """Return the registered objects and the parts of composite ones."""
        return list(self._registry.parts())

    def _follow(self, event: LoopEvent) -> bool:
        """Enter the phase that the table names; return whether it is another one."""
        before, self._phase = self._phase, TRANSITIONS[self._phase, event]
        return self._phase is not before

    # --- what the loop does ------------------------------------------------------------------

    def begin_epoch(self) -> None:
        """Enter an epoch: a new one, or in a resumed run the one in which it was cut."""
        self._position = InEpoch(began_at=self.progress.step)
        if not self.data.is_returning:
            self._arrive()
            self._streams_at_epoch = self._capture_streams()
        elif self._streams_at_epoch is not None:
            rng.restore(self._streams_at_epoch, self._registry.generators)
        self._follow(LoopEvent.BEGIN_EPOCH)
        self._set_replay_point()

    def end_epoch(self) -> None:
        """Count the epoch; everything in it is done."""
        self.progress.epoch += 1
        self.data.begin_epoch()
        self._position = LoopPosition()
        self._streams_at_epoch = None
        self._leave_replay_point(LoopEvent.END_EPOCH)

    def begin_step(self) -> None:
        """Enter a step that ``session.steps()`` counts."""
        self._position = InStep(number=self.progress.step)
        self._arrive()

    def end_steps(self) -> None:
        """Leave the loop over ``session.steps()``."""
        self._position = LoopPosition()

    def begin_pass(self, loader: Iterable[Any]) -> None:
        """Enter a pass over ``loader``.

        Raises:
            MismatchError: The pass was cut, and over another loader.
        """
        self.data.check(loader)
        self._position.has_batches = True
        if self._follow(LoopEvent.BEGIN_PASS):
            self._set_replay_point()
        if self.data.is_at_cut_pass:
            self._arrive()

    @property
    def has_rounds_of_its_own(self) -> bool:
        """Whether the script has made several passes outside of ``session.epochs()``."""
        return not isinstance(self._position, InEpoch) and self.data.has_rounds

    @property
    def has_missed_cut(self) -> bool:
        """Whether the script has made passes, and none that reached the place of the checkpoint.

        Only outside of ``session.epochs()``, whose number a script may lower.
        """
        return self._streams_at_epoch is None and self.data.has_missed_cut

    def end_pass(self) -> None:
        """Leave a pass whose batches are used up."""
        if self.data.mid_batch:
            return
        self._follow(LoopEvent.END_PASS)
        if is_returning(self._phase):
            self._streams_after_pass = self._capture_streams()
        else:
            self._set_replay_point()

    def end_step(self, metrics: Mapping[str, Any]) -> None:
        """Count a step; ``metrics`` are as ``detach`` returns them."""
        progress = self.progress
        progress.step += 1
        progress.record(metrics)
        self.data.consume()
        if self._phase is not STEPPING:
            self._leave_replay_point(LoopEvent.END_STEP)

    def begin_poll(self, metrics: Mapping[str, Any]) -> None:
        """Enter a safe point without a step; ``metrics`` are as ``detach`` returns them."""
        self.progress.record(metrics)
        self._in_evaluation = True

    def end_poll(self) -> None:
        """Leave that safe point."""
        self._in_evaluation = False

    def _set_replay_point(self) -> None:
        try:
            state = self._capture(self.progress.metric_values())
        except FreedStorageError:
            if self.progress.refuses_bad_values:
                raise
            state = None
        self._replay_point = ReplayPoint(state)

    def _leave_replay_point(self, event: LoopEvent) -> None:
        self._follow(event)
        self._replay_point = NO_REPLAY_POINT
        self._streams_at_cut, self._streams_after_pass = {}, {}

    # --- saving ------------------------------------------------------------------------------

    def is_resumable(self) -> bool:
        """Return whether a run resumed from a checkpoint made here continues at the right place."""
        if self._registry.accumulates:
            return False
        if has_replay_point(self._phase):
            return self._replay_point.is_intact()
        return not self.data.mid_batch and self._position.is_resumable(self.progress.step)

    def state_to_save(self, reason: Reason) -> StateToSave:
        """Return what a checkpoint made here holds.

        Raises:
            UnstorableError: A value has no form that can be loaded safely, in a run that has saved
                nothing yet.
            FreedStorageError: A tensor has no memory at this moment.
            ConfigError: A metric is not a number, in a run that has saved nothing yet.
        """
        from_point = has_replay_point(self._phase)
        if from_point and (reason is Reason.FINAL or not self._replay_point.is_intact()):
            from_point = False
            self._position.was_changed = reason is not Reason.FINAL
        if reason in (Reason.EMERGENCY, Reason.FINAL):
            self.progress.refuses_bad_values = False
        metrics = self.progress.metric_values()
        with paused_collector():
            state = self._replay_point.state | metrics if from_point else self._capture(metrics)
        doubts = self.exactness.doubts() + state["data"]["caveats"]
        return StateToSave(state, self.progress.measured_here(metrics), list(dict.fromkeys(doubts)))

    def _capture(self, metrics: dict[str, float]) -> dict[str, Any]:
        returning = is_returning(self._phase)
        plain = self._registry.plain
        plain.is_strict = self.progress.refuses_bad_values
        return {
            "epoch": self.progress.epoch,
            "step": self.progress.step,
            **metrics,
            **self._registry.capture(),
            "state": plain.convert("session.state", lambda: self._plain_state),
            "rng": self._streams_at_cut if returning else self._capture_streams(),
            "data": {
                **self.data.state(),
                "epoch_rng": self._streams_at_epoch,
                "caveats": self._position.caveats(
                    self.progress.step, in_evaluation=self._in_evaluation
                ),
            },
        }

    def _capture_streams(self) -> dict[str, Any]:
        return rng.capture(self._registry.generators)

    # --- restoring ---------------------------------------------------------------------------

    def resume(self, restored: LoadedState) -> None:
        """Continue from a checkpoint whose registered objects have been restored already."""
        self._plain_state.clear()
        self._plain_state.update(restored.state)
        self.progress = restored.progress
        self.data.load(restored.position)
        if (noted := restored.digests.get("first_batch")) is not None:
            self.data.first_batch.expect(self.progress.epoch, restored.position, noted)
        # Last, since loading may draw from the streams.
        problems = restored.problems + rng.restore(restored.streams, self._registry.generators)
        self.exactness.begin(problems + self._differences(restored))
        self._streams_at_cut = restored.streams
        self._streams_at_epoch = restored.position.get("epoch_rng")
        self._follow(LoopEvent.RESUME)

    def _differences(self, restored: LoadedState) -> list[str]:
        """Return what of the live objects and streams does not have the digest that was saved."""
        streams = self._capture_streams()
        known = {name: streams[name] for name in restored.streams if name in streams}
        live = digest_parts({**self._registry.capture(), "rng": known})
        live["next_batch"] = digest_of_next(restored.position)
        return [
            f"{name.removesuffix(SUFFIX)} has not loaded what was saved"
            for name, saved in restored.digests.items()
            if name in live and live[name] != saved
        ]

    def _arrive(self) -> None:
        """Undo what a resumed script has repeated on its way to the place of the checkpoint."""
        before = self._phase
        if not self._follow(LoopEvent.ARRIVE):
            return
        if before is LoopPhase.REPLAYING:
            self.exactness.add(self._replay_point.undo(self._registry, self._plain_state))
        if self._streams_after_pass and not have_same_values(
            self._streams_after_pass, self._capture_streams()
        ):
            self.exactness.add(["random numbers were drawn between two passes of an epoch"])
        rng.restore(self._streams_at_cut, self._registry.generators)
        self._streams_at_cut, self._streams_after_pass = {}, {}
        self.data.arrive()
