"""The session: what a training script uses to be stopped, saved and resumed."""

import builtins
import os
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

import torch

from orchestrator.checkpoint.manifest import Reason
from orchestrator.errors import CheckpointWriteError, ConfigError
from orchestrator.ipc.control_page import Field, Phase
from orchestrator.training.agreed_safe_points import AgreedSafePoints
from orchestrator.training.data.batches import Batches
from orchestrator.training.exits import conclude, refusing
from orchestrator.training.loop.due_saves import DueSaves
from orchestrator.training.loop.loop_state import LoopState
from orchestrator.training.loop.mistakes import LoopMistakes
from orchestrator.training.loop.resume import resume_newest, start_from_classic
from orchestrator.training.loop.totals import LoopTotals
from orchestrator.training.runtime.membership import RunMembership
from orchestrator.training.runtime.metrics import MetricsFile
from orchestrator.training.runtime.rank_link import World
from orchestrator.training.safe_points import SafePoints
from orchestrator.training.saving.agreed_saver import AgreedSaver
from orchestrator.training.saving.agreed_saves import AgreedSaves
from orchestrator.training.saving.saver import Saver
from orchestrator.training.saving.session_saves import SessionSaves
from orchestrator.training.state.options import OptimizerOptions
from orchestrator.training.state.progress import detach
from orchestrator.training.state.registered_objects import Registry
from orchestrator.training.state.replicas import refuse_sharded
from orchestrator.training.stop import TrainingStopped

# Plain integers: the hot path looks them up at every step.
STEP = int(Field.STEP)
PHASE = int(Field.PHASE)
TRAIN = int(Phase.TRAIN)


@dataclass(frozen=True, slots=True)
class _OpenRun:
    """What a session works with inside its ``with`` block.

    ``page`` and ``metrics`` are those of the membership, which every step uses.
    """

    membership: RunMembership
    page: memoryview
    metrics: MetricsFile
    saves: SessionSaves
    safe_points: SafePoints | AgreedSafePoints
    steps_at_start: int
    mistakes: LoopMistakes
    totals: LoopTotals


class Session:
    """One training run, as a context manager around the training loop.

    A session saves the registered objects, the position in the data, every random stream and
    ``session.state``; it restores them when the script is run again. It works under a supervisor
    (``orchestrator run``) and without one.

    Inside the ``with`` block the methods print a message and raise TrainingRefused, which ends the
    process with the right exit status, where an error needs no traceback. A stop raises
    TrainingStopped at the next safe point. Both are SystemExit.

    Attributes:
        state: A dict of plain values (numbers, strings, lists, dicts, tensors) that is saved and
            restored with the rest.
        resumed_from: The path of the checkpoint that the run was resumed from; None in a run that
            was not resumed.

    Example:
        ```python
        model = torch.nn.Linear(4, 1)
        optimizer = torch.optim.Adam(model.parameters())
        loader = DataLoader(dataset, batch_size=32, shuffle=True)

        with Session(model=model, optimizer=optimizer) as session:
            for epoch in session.epochs(10):
                for inputs, targets in session.batches(loader):
                    loss = torch.nn.functional.mse_loss(model(inputs), targets)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    session.step(loss=loss)
        ```
    """

    def __init__(
        self,
        *,
        run_dir: str | Path | None = None,
        start_from: str | Path | None = None,
        keep_options: Iterable[str] = (),
        before_restore: Callable[[dict[str, Any]], object] | None = None,
        **objects: Any,
    ) -> None:
        """Register the objects whose states are saved and restored.

        Args:
            run_dir: Where the run is kept if no supervisor says it; {name} and {args} stand for the
                script's name and its arguments. Default: runs/<script>.
            start_from: A file in the classic form {'epoch', 'model_state_dict',
                'optimizer_state_dict', 'loss'} with which a run begins that has no checkpoints of
                its own.
            keep_options: The optimizer options, such as ("lr",), that a resumed run takes from the
                script and not from the checkpoint. A learning rate goes on where its schedule is.
            before_restore: Called in a run that is resumed, before the objects are restored, with
                ``session.state`` as it was saved. It repeats what the script has done to its
                objects in mid-training: adds a group to an optimizer, prunes a layer.
            **objects: Models, optimizers, schedulers, scalers: whatever has ``state_dict()`` and
                ``load_state_dict()``; and random generators of Python, NumPy or torch. The name of
                each is its key in the checkpoint, followed by ``_state_dict``.

        Raises:
            TrainingRefused: An object has no state, or a name is reserved; the reason is printed.
        """
        self.state: dict[str, Any] = {}
        self.resumed_from: Path | None = None
        self._run_dir = Path(run_dir) if run_dir is not None else None
        self._start_from = Path(start_from) if start_from is not None else None
        self._keep_options = (
            (keep_options,) if isinstance(keep_options, str) else tuple(keep_options)
        )
        self._before_restore = before_restore
        self._registry = Registry()
        with refusing():
            self._registry.add(objects)
        self._loop_state = LoopState(self._registry, self.state, torch.initial_seed())
        self._run: _OpenRun | None = None
        self._world = World.of(os.environ)
        self._is_forked = False
        self._run_id: str | None = None

    # --- entering and leaving ----------------------------------------------------------------

    def __enter__(self) -> Self:
        """Join or open the run, restore the newest valid checkpoint, handle stop signals.

        Raises:
            TrainingRefused: That is not possible: the checkpoint does not fit the objects, another
                process works on the run, a setting is wrong. The reason has been printed.
        """
        self._is_forked = False
        with refusing():
            membership = RunMembership(self._run_dir)
            try:
                self._run = self._begin(membership)
            except BaseException as error:
                self._leave(membership, error)
                raise
        return self

    def _begin(self, membership: RunMembership) -> _OpenRun:
        backend, page = membership.backend, membership.page
        settings = backend.facts.settings
        self._run_id = backend.facts.store.run_id
        self._registry.add_scalers()
        options = OptimizerOptions(self._registry, self._keep_options)
        # With the hook, only the script knows what it can load.
        watch = self._registry.layout_watch() if self._before_restore is None else None
        self._loop_state = LoopState(
            self._registry,
            self.state,
            torch.initial_seed(),
            allow_data_change=settings.allow_data_change,
        )
        if (rank_link := backend.facts.rank_link) is not None:
            refuse_sharded(self._registry.objects, is_prepared=self._registry.is_prepared)
        page[Field.PHASE] = Phase.RESTORE
        due = DueSaves(page, settings.every)
        self.resumed_from = resume_newest(
            backend, self._registry, self._loop_state, options, self._before_restore
        )
        if watch is not None:
            watch.begin(self.global_step)
        if self.resumed_from is not None:
            due.schedule.begin(self.global_step, self.epoch)
        elif self._start_from is not None:
            start_from_classic(self._start_from, self._registry, self._loop_state)
        mistakes = LoopMistakes(self._loop_state.progress.step, self.state)
        totals = LoopTotals(
            page,
            self._loop_state.progress,
            self._loop_state.data,
            is_resumed=self.resumed_from is not None,
        )
        saver = (backend, self._registry, options, watch, self._loop_state.data.first_batch)
        of_run = (membership, due, self._loop_state)
        saves: SessionSaves
        safe_points: SafePoints | AgreedSafePoints
        if rank_link is None:
            saves = SessionSaves(*of_run, Saver(*saver), mistakes)
            safe_points = SafePoints(membership, due, saves, totals)
        else:
            agreed = AgreedSaver(*saver, rank_link)
            saves = agreed_saves = AgreedSaves(*of_run, agreed, mistakes, rank_link)
            safe_points = AgreedSafePoints(membership, agreed_saves, totals)
        membership.metrics.resume(self.global_step, self.epoch)
        page[Field.STEP] = self.global_step
        page[Field.EPOCH] = self.epoch
        membership.begin_training()
        _forget_in_children(self)
        mistakes.begin()
        step = self._loop_state.progress.step
        return _OpenRun(
            membership, page, membership.metrics, saves, safe_points, step, mistakes, totals
        )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Mark the run complete, or record how it ended; then end loader workers.

        A forked child that leaves the block is not the session: nothing happens.

        Raises:
            TrainingRefused: The final checkpoint cannot be saved; the reason has been printed.
        """
        if self._is_forked:
            return
        conclude(error, self._complete, partial(self._leave, self._open_run.membership))

    def _complete(self) -> None:
        run = self._open_run
        if self._loop_state.has_missed_cut:
            raise ConfigError(
                "cannot complete the run: the script has ended before the pass over the data in "
                f"which the checkpoint of step {self.global_step} was made, so that nothing was "
                "trained; let its loop begin at the first round again, or write `for epoch in "
                "session.epochs(N)` in a new run"
            )
        run.mistakes.check(self._registry.parts(), self._loop_state.progress.step, at_end=True)
        save = partial(run.saves.save_now, Reason.FINAL)
        run.membership.complete(self._loop_state.progress, run.steps_at_start, save)

    def _leave(self, membership: RunMembership, error: BaseException | None) -> None:
        run, self._run = self._run, None
        if run is not None:
            run.mistakes.close()
        membership.end_workers()
        if run is not None:
            if isinstance(error, TrainingStopped):
                # It was being written while the workers ended.
                run.saves.wait_for_emergency(error)
            run.saves.close()
        membership.leave(error)

    def _leave_to_parent(self) -> None:
        # The page, the slots and the connection are the parent's.
        self._is_forked, self._run = self._run is not None, None

    @property
    def _open_run(self) -> _OpenRun:
        if self._is_forked:
            with refusing():
                raise ConfigError(
                    "cannot use the session in a forked child: it belongs to the process that has "
                    "entered its `with` block; end the child with os._exit(), or leave the block"
                )
        if self._run is None:
            _refuse_outside()
        return self._run

    # --- what scripts read and register ------------------------------------------------------

    @property
    def epoch(self) -> int:
        """The number of completed epochs."""
        if self._run is not None:
            self._run.mistakes.asked = True
        return self._loop_state.progress.epoch

    @property
    def global_step(self) -> int:
        """The number of completed steps."""
        if self._run is not None:
            self._run.mistakes.asked = True
        return self._loop_state.progress.step

    @property
    def exactness(self) -> str | None:
        """EXACT, or APPROXIMATE and why; None in a run that was not resumed.

        EXACT means that the run continues bit for bit like one that was not interrupted.
        """
        return self._loop_state.exactness.text()

    @property
    def rank(self) -> int:
        """Which of the run's ranks this process is, from 0; 0 in a run of one."""
        return self._world.rank

    @property
    def world_size(self) -> int:
        """The number of the run's ranks, which are started by ``--nproc-per-node``."""
        return self._world.size

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, of which each run has one."""
        return self._world.is_main

    @property
    def run_id(self) -> str:
        """The id of the run, the same in each of its attempts; known from the ``with`` line on."""
        if self._run_id is None:
            _refuse_outside()
        return self._run_id

    def register(self, **objects: Any) -> None:
        """Register more objects, before the ``with`` block, in which they are restored.

        Args:
            **objects: As for the constructor.

        Raises:
            TrainingRefused: The block has been entered already, an object has no state, or a name
                is taken; the reason has been printed.

        Example:
            ```python
            session = Session(model=model)
            session.register(optimizer=optimizer)
            with session:
                ...
            ```
        """
        with refusing():
            self._refuse_inside(objects, "register")
            self._registry.add(objects)

    def keep(self, **objects: Any) -> Self:
        """Register objects that have no ``state_dict()``, before the ``with`` block.

        They are a list, dict, set, deque, array or tensor that the script changes in place, or any
        object whose attributes hold such values: a replay buffer, an environment. Everything that
        they hold is stored with each snapshot, and put back into these objects on a resume.
        Functions, classes and modules among it stay as the script has made them.

        Args:
            **objects: The objects by name. One with a ``state_dict()`` is registered as usual.

        Returns:
            The session, for the ``with`` line.

        Raises:
            TrainingRefused: The block has been entered already, part of an object cannot be stored,
                or a name is taken; the reason has been printed.

        Example:
            ```python
            replay = deque(maxlen=100_000)
            with Session(model=model, optimizer=optimizer).keep(replay=replay, env=env) as session:
                for step in session.steps(1_000_000):
                    replay.append(...)
                    session.step()
            ```
        """
        with refusing():
            self._refuse_inside(objects, "keep")
            self._registry.keep(objects)
        return self

    def _refuse_inside(self, objects: Iterable[str], verb: str) -> None:
        if self._run is not None:
            raise ConfigError(
                f"cannot {verb} {', '.join(objects)} inside the `with` block: the state is "
                f"restored when it is entered; {verb} before it"
            )

    # --- the loop ----------------------------------------------------------------------------

    def epochs(self, total: int) -> Iterator[int]:
        """Yield the epochs that are left of ``total``; between two of them is a safe point.

        Args:
            total: The number of epochs of the whole training.

        Yields:
            The number of the epoch, from 0 to ``total - 1``.

        Raises:
            TrainingStopped: A stop was requested, and the state is saved.

        Example:
            ```python
            for epoch in session.epochs(10):
                for batch in session.batches(loader):
                    ...
                    session.step()
            ```
        """
        run = self._open_run
        run.totals.announce(epochs=total)
        while self.epoch < total:
            self._begin_epoch()
            yield self.epoch
            self._end_epoch()
            run.safe_points.reach()

    def _begin_epoch(self) -> None:
        self._open_run.mistakes.asked = True
        with refusing():
            self._loop_state.begin_epoch()

    def _end_epoch(self) -> None:
        run = self._open_run
        run.totals.end_epoch()
        self._loop_state.end_epoch()
        run.totals.refresh()
        run.page[Field.EPOCH] = self.epoch

    def steps(self, total: int) -> Iterator[int]:
        """Yield the steps that are left of ``total``, for loops without epochs.

        Args:
            total: The number of steps of the whole training.

        Yields:
            The number of the step, from 0 to ``total - 1``.

        Raises:
            RuntimeError: A round of the loop has not called ``session.step()``.

        Example:
            ```python
            for step in session.steps(100_000):
                ...
                session.step(loss=loss)
            ```
        """
        mistakes = self._open_run.mistakes
        self._open_run.totals.announce(steps=total)
        while (step := self.global_step) < total:
            mistakes.rounds += 1
            with refusing():
                self._loop_state.begin_step()
            yield step
            if self.global_step == step:
                raise RuntimeError("session.steps() needs one session.step() in each round")
        self._loop_state.end_steps()

    def batches(self, loader: Iterable[Any]) -> Batches:
        """Return the batches of ``loader`` that this epoch has left.

        A DataLoader over a map-style dataset starts at any batch without reading the ones before
        it. A loader with a ``state_dict`` is asked for its own position. Any other is read from its
        beginning, up to the batch where the run was cut.

        Args:
            loader: The loader, or any iterable of batches.

        Returns:
            An iterator over the batches, as the loader makes them. ``len()`` of it is that of the
            loader, and its ``position`` says how many batches of the pass are behind the loop,
            those before a resume included: ``tqdm(batches, initial=batches.position)``.

        Raises:
            TrainingRefused: The iterator raises it where the run was cut in this pass, and over
                another loader: other data or another batch size. The reason has been printed.

        Example:
            ```python
            for inputs, targets in session.batches(loader):
                ...
                session.step(loss=loss)
            ```
        """
        start = partial(self._loop_state.data.start_of_next, loader)
        return Batches(loader, self._batches(loader), start)

    def _batches(self, loader: Iterable[Any]) -> Iterator[Any]:
        loop_state, run = self._loop_state, self._open_run
        page, run.mistakes.asked = run.page, True
        if loop_state.has_rounds_of_its_own:
            run.mistakes.say_rounds()
        with refusing():
            loop_state.begin_pass(loader)
        used_up = yield from loop_state.data.batches(loader, loop_state.progress.epoch)
        if used_up:
            page[PHASE] = Phase.EVALUATE
            with refusing():
                loop_state.end_pass()

    def enumerate(self, loader: Iterable[Any], start: int = 0) -> Iterator[tuple[int, Any]]:
        """Yield number and batch, as ``enumerate(loader)`` would in a run without interruption.

        Args:
            loader: As for ``batches``.
            start: The number of the first batch of the pass.

        Yields:
            The number of the batch in its pass over the loader, and the batch.

        Raises:
            TrainingRefused: As ``batches``.

        Example:
            ```python
            for number, (inputs, targets) in session.enumerate(loader):
                ...
                session.step(loss=loss)
            ```
        """
        first = start + self._loop_state.data.start_of_next(loader)
        yield from builtins.enumerate(self.batches(loader), first)

    def cycle(self, loader: Iterable[Any]) -> Iterator[Any]:
        """Return the batches of ``loader`` without end, in another order in each pass over it.

        It takes the place of ``itertools.cycle(loader)`` and of loops that make a new
        ``iter(loader)`` where the last one ends. Several cycles may be open at a time: a resumed
        script has to make them in the same order.

        Args:
            loader: As for ``batches``; not an iterator, which has one pass only.

        Returns:
            An iterator over the batches, as the loader makes them.

        Raises:
            TrainingRefused: As ``batches``; or there is a cycle over the loader already. The
                iterator raises it where a pass has no batch, so that there would be no end.

        Example:
            ```python
            batches = session.cycle(loader)
            for step in session.steps(100_000):
                inputs, targets = next(batches)
                ...
                session.step(loss=loss)
            ```
        """
        _ = self._open_run
        with refusing():
            return _refusing_each(self._loop_state.data.cycle(loader))

    def step(self, **metrics: Any) -> None:
        """Complete a step, which is a safe point: about 2 us where nothing is due.

        Args:
            **metrics: Single numbers, or tensors of one element on any device; a tensor on a device
                is not waited for. They go to metrics.jsonl and into the next checkpoint.

        Raises:
            TrainingStopped: A stop was requested, and the state is saved.
            TrainingRefused: The state cannot be saved, or a metric is no number, in a run that has
                saved nothing yet; the reason has been printed.

        Example:
            ```python
            session.step(loss=loss, learning_rate=scheduler.get_last_lr()[0])
            ```
        """
        self._end_step(**metrics).safe_points.reach()

    def _end_step(self, **metrics: Any) -> _OpenRun:
        run, loop_state = self._run or self._open_run, self._loop_state
        progress, page = loop_state.progress, run.page
        if progress.step == run.steps_at_start:
            run.membership.withdraw_completion()
        plain = detach(metrics)
        loop_state.end_step(plain)
        step = progress.step
        run.metrics.record(step, progress.epoch, plain, is_poll=False)
        page[STEP] = step
        page[PHASE] = TRAIN
        return run

    def poll(self, **metrics: Any) -> None:
        """Pass a safe point without a step, in an evaluation or a warm-up.

        After an epoch's batches, what is saved is the state at their end, and a resumed run does
        everything after it again: the evaluation, a scheduler's step. Between a batch and its step
        nothing is saved, since the state belongs to neither.

        Args:
            **metrics: As for ``step``.

        Raises:
            TrainingStopped: A stop was requested, and the state is saved.
            TrainingRefused: The state cannot be saved, or a metric is no number, in a run that has
                saved nothing yet; the reason has been printed.

        Example:
            ```python
            for batch in validation_loader:
                correct += evaluate(model, batch)
                session.poll()
            session.poll(accuracy=correct / len(validation_set))
            ```
        """
        run, plain = self._open_run, detach(metrics)
        self._loop_state.begin_poll(plain)
        progress = self._loop_state.progress
        run.metrics.record(progress.step, progress.epoch, plain, is_poll=True)
        run.page[PHASE] = Phase.EVALUATE
        try:
            run.safe_points.poll()
        finally:
            self._loop_state.end_poll()

    def checkpoint(self) -> Path | None:
        """Save now, and wait until the checkpoint is durable.

        Returns:
            The directory of the new checkpoint; None if the disk refused it: training continues.

        Raises:
            TrainingRefused: It is called between a batch and its step, or while gradients are
                accumulated, or the state cannot be saved; the reason has been printed.

        Example:
            ```python
            if accuracy > session.state.get("best", 0.0):
                session.state["best"] = accuracy
                session.checkpoint()
            ```
        """
        saves = self._open_run.saves
        with refusing():
            if self.world_size > 1:
                raise ConfigError(
                    "cannot save at a place of the script's choice with several ranks yet: they "
                    "save where all of them are between two steps; leave session.checkpoint() out, "
                    "and use --every or `orchestrator checkpoint`"
                )
            if self._loop_state.data.mid_batch:
                raise ConfigError(
                    "cannot save between a batch and its step: call session.checkpoint() after "
                    "session.step()"
                )
            if self._registry.accumulates:
                raise ConfigError(
                    "cannot save while gradients are accumulated: call session.checkpoint() where "
                    "accelerator.sync_gradients is true"
                )
            try:
                return saves.save_now(Reason.REQUESTED).path
            except CheckpointWriteError:
                return None


def _refusing_each(batches: Iterator[Any]) -> Iterator[Any]:
    while True:
        with refusing():
            batch = next(batches)
        yield batch


def _forget_in_children(session: Session) -> None:
    leave_to_parent = weakref.WeakMethod(session._leave_to_parent)

    def in_child() -> None:
        if (leave := leave_to_parent()) is not None:
            leave()

    os.register_at_fork(after_in_child=in_child)


def _refuse_outside() -> NoReturn:
    with refusing():
        raise ConfigError(
            "cannot use a session outside of its `with` block: enter it with "
            "`with Session(...) as session:` and train inside"
        )
