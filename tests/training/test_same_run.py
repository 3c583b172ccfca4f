"""Loops of other shapes: a resumed run never differs from an uninterrupted one without saying so.

Each attempt trains until its end or until a SIGTERM that the loop raises itself. Where a shape
cannot be resumed exactly, the session has to refuse, to save later, or to say APPROXIMATE.
"""

import contextlib
import gc
import signal
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from orchestrator.training import Session, TrainingRefused, TrainingStopped

POINTS = TensorDataset(torch.arange(24.0).reshape(12, 2) / 24)
Loop = Callable[["Run", int | None], None]


class Run:
    """One attempt: a model, an optimizer, a session, and what the steps have seen."""

    def __init__(self, root: Path) -> None:
        torch.manual_seed(0)
        self.model = torch.nn.Linear(2, 1)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 1, 0.5)
        self.session = Session(
            run_dir=root, model=self.model, optimizer=self.optimizer, scheduler=self.scheduler
        )
        self.seen: list[Any] = []

    def update(self, points: torch.Tensor) -> torch.Tensor:
        loss = (self.model(points) - 1).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss

    def result(self) -> list[float]:
        return [value for p in self.model.parameters() for value in p.flatten().tolist()]


def loader(shuffle: bool = False, batch_size: int = 2) -> Any:
    return DataLoader(POINTS, batch_size, shuffle=shuffle)


def term() -> None:
    signal.raise_signal(signal.SIGTERM)


def assert_same_run(tmp_path: Path, loop: Loop, stop: int) -> None:
    """The cut run equals the whole one, or the session says that it may not."""
    whole = Run(tmp_path / "whole")
    loop(whole, None)
    first = Run(tmp_path / "cut")
    with pytest.raises(TrainingStopped):
        loop(first, stop)
    second = Run(tmp_path / "cut")
    loop(second, None)
    if loop in EXACT_LOOPS:
        assert second.session.exactness == "EXACT"
    if second.session.exactness == "EXACT":
        assert first.seen + second.seen == whole.seen
        assert second.result() == whole.result()
    else:
        assert str(second.session.exactness).startswith("APPROXIMATE")


def two_loaders(run: Run, stop: int | None) -> None:
    with run.session as session:
        for _ in session.epochs(1):
            pairs = zip(session.batches(loader()), session.batches(loader(True)), strict=True)
            for (a,), (b,) in pairs:
                loss = run.update(torch.cat([a, b]))
                run.seen.append((a.tolist(), b.tolist()))
                if session.global_step + 1 == stop:
                    term()
                session.step(loss=loss)


def evaluation_before_the_step(run: Run, stop: int | None) -> None:
    with run.session as session:
        for _ in session.epochs(1):
            for (a,) in session.batches(loader(True)):
                loss = run.update(a)
                run.seen.append(a.tolist())
                if session.global_step % 2 == 0:
                    for _ in session.batches(loader(batch_size=4)):
                        session.poll()
                if session.global_step + 1 == stop:
                    term()
                session.step(loss=loss)


def evaluation_after_the_step(run: Run, stop: int | None) -> None:
    with run.session as session:
        for _ in session.epochs(2):
            for (a,) in session.batches(loader(True)):
                loss = run.update(a)
                run.seen.append(a.tolist())
                if session.global_step + 1 == stop:
                    term()
                session.step(loss=loss)
                if session.global_step % 2 == 0:
                    for _ in loader():  # a plain loader: creating its iterator draws a number
                        session.poll()


def alternating_loaders(run: Run, stop: int | None) -> None:
    with run.session as session:
        for _ in session.epochs(2):
            for batch_size in (3, 2, 4):
                for (a,) in session.batches(loader(True, batch_size)):
                    loss = run.update(a)
                    run.seen.append(a.tolist())
                    if session.global_step + 1 == stop:
                        term()
                    session.step(loss=loss)


def evaluation_between_two_passes(run: Run, stop: int | None) -> None:
    with run.session as session:
        for _ in session.epochs(1):
            for batch_size in (4, 2):
                for (a,) in session.batches(loader(True, batch_size)):
                    loss = run.update(a)
                    run.seen.append(a.tolist())
                    if session.global_step + 1 == stop:
                        term()
                    session.step(loss=loss)
                    for _ in session.batches(loader(batch_size=6)):
                        session.poll()


def evaluation_before_the_batches(run: Run, stop: int | None) -> None:
    with run.session as session:
        for _ in session.epochs(2):
            for _ in session.batches(loader()):
                session.poll()
            for (a,) in session.batches(loader(True)):
                loss = run.update(a)
                run.seen.append(a.tolist())
                if session.global_step + 1 == stop:
                    term()
                session.step(loss=loss)


def work_before_the_batches(run: Run, stop: int | None) -> None:
    with run.session as session:
        torch.rand(2)
        for epoch in session.epochs(3):
            if epoch:
                run.scheduler.step()
            scale = torch.rand(())
            session.state["sum"] = 0.0
            for (a,) in session.batches(loader(True)):
                loss = run.update(a * scale + torch.rand(()))
                session.state["sum"] += loss.item()
                run.seen.append((epoch, scale.item(), session.state["sum"]))
                if session.global_step + 1 == stop:
                    term()
                session.step(loss=loss)


def work_between_two_passes(run: Run, stop: int | None) -> None:
    with run.session as session:
        for _ in session.epochs(2):
            for batch_size in (6, 3):
                for (a,) in session.batches(loader(True, batch_size)):
                    loss = run.update(a + torch.rand(()))
                    run.seen.append(a.tolist())
                    if session.global_step + 1 == stop:
                        term()
                    session.step(loss=loss)
                run.scheduler.step()


def work_between_two_passes_without_epochs(run: Run, stop: int | None) -> None:
    with run.session as session:
        torch.rand(2)
        for batch_size in (6, 3):
            for (a,) in session.batches(loader(True, batch_size)):
                loss = run.update(a + torch.rand(()))
                run.seen.append(a.tolist())
                if session.global_step + 1 == stop:
                    term()
                session.step(loss=loss)
            run.scheduler.step()


def work_before_each_step(run: Run, stop: int | None) -> None:
    with run.session as session:
        torch.rand(2)
        for _ in session.steps(8):
            loss = run.update(torch.rand(2, 2))
            run.seen.append(loss.item())
            if session.global_step + 1 == stop:
                term()
            session.step(loss=loss)


def second_batch_drawn_in_the_loop(run: Run, stop: int | None) -> None:
    with run.session as session:
        for _ in session.epochs(2):
            others = session.batches(loader(True))
            for (a,) in session.batches(loader(True)):
                noise = torch.rand(())
                (b,) = next(others)
                loss = run.update(a + b + noise)
                run.seen.append((a.tolist(), b.tolist(), noise.item()))
                if session.global_step + 1 == stop:
                    term()
                session.step(loss=loss)


def stopped_again_on_the_way(run: Run, stop: int | None) -> None:
    with run.session as session:
        for _ in session.epochs(2):
            run.scheduler.step()
            torch.rand(2)
            if session.resumed_from is not None and stop is not None:
                term()
            session.poll()
            for (a,) in session.batches(loader(True)):
                loss = run.update(a + torch.rand(()))
                run.seen.append(a.tolist())
                if session.global_step + 1 == stop:
                    term()
                session.step(loss=loss)


def endless_passes(run: Run, stop: int | None) -> None:
    def forever(session: Session) -> Any:
        while True:
            yield from session.batches(loader(True))

    with run.session as session:
        batches = forever(session)
        for _ in session.steps(20):
            (a,) = next(batches)
            loss = run.update(a)
            run.seen.append(a.tolist())
            if session.global_step + 1 == stop:
                term()
            session.step(loss=loss)


LOOPS: list[Loop] = [
    two_loaders,
    evaluation_before_the_step,
    evaluation_after_the_step,
    evaluation_between_two_passes,
    evaluation_before_the_batches,
    work_before_the_batches,
    work_between_two_passes,
    work_between_two_passes_without_epochs,
    work_before_each_step,
    second_batch_drawn_in_the_loop,
    alternating_loaders,
    endless_passes,
]


EXACT_LOOPS: list[Loop] = [
    two_loaders,
    evaluation_before_the_batches,
    work_before_the_batches,
    work_between_two_passes,
    work_between_two_passes_without_epochs,
    work_before_each_step,
    second_batch_drawn_in_the_loop,
    endless_passes,
]


@pytest.mark.parametrize("stop", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("loop", LOOPS, ids=[loop.__name__ for loop in LOOPS])
def test_loop_of_any_shape_resumes_like_the_uninterrupted_one(
    tmp_path: Path, loop: Loop, stop: int
) -> None:
    """Several loaders, nested evaluations and endless passes lose and repeat no batch."""
    assert_same_run(tmp_path, loop, stop)


@pytest.mark.parametrize("stop", [2, 6, 8])
def test_stop_on_the_way_back_loses_nothing(tmp_path: Path, stop: int) -> None:
    """A resumed run that is stopped before its first batch saves what it was resumed from."""
    whole, first = Run(tmp_path / "whole"), Run(tmp_path / "cut")
    stopped_again_on_the_way(whole, None)
    for run in (first, Run(tmp_path / "cut")):
        with pytest.raises(TrainingStopped):
            stopped_again_on_the_way(run, stop)
    last = Run(tmp_path / "cut")
    stopped_again_on_the_way(last, None)
    assert last.session.exactness == "EXACT"
    assert first.seen + last.seen == whole.seen
    assert last.result() == whole.result()


def draw_between_two_passes(run: Run) -> None:
    torch.rand(())


def write_into_weights(run: Run) -> None:
    torch.nn.init.ones_(run.model.weight)


def begin_a_list(run: Run) -> None:
    run.session.state["losses"] = []


def step_without_batches(run: Run) -> None:
    run.session.step()


@pytest.mark.parametrize(
    ("work", "reason"),
    [
        (draw_between_two_passes, "random numbers were drawn between two passes"),
        (write_into_weights, "tensors were changed on the way"),
        (begin_a_list, "session.state['losses'] was changed on the way"),
        (step_without_batches, "a step ended before the script reached"),
    ],
)
def test_change_that_cannot_be_undone_makes_the_run_approximate(
    tmp_path: Path, work: Callable[[Run], None], reason: str
) -> None:
    """Work between two passes that runs again and leaves its mark makes the run APPROXIMATE."""

    def loop(run: Run, stop: int | None) -> None:
        with run.session as session:
            for _ in session.epochs(1):
                for _ in session.batches(loader()):
                    session.step()
                work(run)
                for (a,) in session.batches(loader(True)):
                    session.state.setdefault("losses", []).append(run.update(a).item())
                    if session.global_step + 1 == stop:
                        term()
                    session.step()

    with pytest.raises(TrainingStopped):
        loop(Run(tmp_path), stop=9)
    resumed = Run(tmp_path)
    loop(resumed, stop=None)
    assert str(resumed.session.exactness).startswith(f"APPROXIMATE: {reason}")


def test_state_set_by_the_script_before_its_loop_stays(tmp_path: Path) -> None:
    """A learning rate that is set again between the `with` line and the loop is meant."""
    for rate, stop in ((0.1, 2), (0.01, None)):
        run = Run(tmp_path)
        with contextlib.suppress(TrainingStopped), run.session as session:
            run.optimizer.param_groups[0]["lr"] = rate
            for _ in session.epochs(1):
                run.model.train()
                for (a,) in session.batches(loader(True)):
                    assert run.optimizer.param_groups[0]["lr"] == rate
                    if session.global_step + 1 == stop:
                        term()
                    session.step(loss=run.update(a))
    assert run.session.exactness == "EXACT"


def test_endless_passes_have_orders_of_their_own(tmp_path: Path) -> None:
    """Each pass of a loop without epochs is shuffled again."""
    run = Run(tmp_path)
    endless_passes(run, None)
    assert run.seen[:6] != run.seen[6:12] != run.seen[12:18]


def averaged_weights_during_evaluation(run: Run, stop: int | None) -> None:
    with run.session as session:
        for epoch in session.epochs(2):
            for (a,) in session.batches(loader()):
                session.step(loss=run.update(a))
            own = [p.detach().clone() for p in run.model.parameters()]
            for parameter in run.model.parameters():
                parameter.data.mul_(0.5)  # as EMA wrappers swap in their average
            if epoch == stop:
                term()
            session.poll(accuracy=1.0)
            for parameter, value in zip(run.model.parameters(), own, strict=True):
                parameter.data.copy_(value)


def test_weights_swapped_in_for_an_evaluation_are_not_saved(tmp_path: Path) -> None:
    """A stop while averaged weights stand in for the model's does not train on from those."""
    assert_same_run(tmp_path, averaged_weights_during_evaluation, stop=0)


def test_checkpoint_between_batch_and_step(tmp_path: Path) -> None:
    """A checkpoint that the script demands before session.step() does not repeat the batch."""

    def loop(run: Run, crash: bool) -> None:
        with run.session as session:
            for _ in session.epochs(1):
                for (a,) in session.batches(loader()):
                    loss = run.update(a)
                    if crash and session.global_step == 3:
                        session.checkpoint()
                        raise ZeroDivisionError
                    session.step(loss=loss)

    whole, second = Run(tmp_path / "whole"), Run(tmp_path / "cut")
    loop(whole, crash=False)
    with pytest.raises((ZeroDivisionError, TrainingRefused, RuntimeError)):
        loop(Run(tmp_path / "cut"), crash=True)
    loop(second, crash=False)
    assert second.result() == whole.result() or second.session.exactness != "EXACT"


@pytest.mark.parametrize("change", ["batch_size", "dataset"])
def test_changed_data_makes_the_run_approximate(tmp_path: Path, change: str) -> None:
    """A position in other batches is not silently taken for one in these."""

    def loop(data: Any, stop: bool) -> Session:
        session = Session(run_dir=tmp_path, model=torch.nn.Linear(2, 1))
        with session:
            for _ in session.epochs(1):
                for _ in session.batches(data):
                    if stop and session.global_step == 1:
                        term()
                    session.step()
        return session

    with pytest.raises(TrainingStopped):
        loop(DataLoader(POINTS, 2, shuffle=True), stop=True)
    if change == "batch_size":
        other: Any = DataLoader(POINTS, 4, shuffle=True)
    else:
        other = DataLoader(TensorDataset(torch.ones(20, 2)), 2, shuffle=True)
    try:
        exactness = loop(other, stop=False).exactness
    except TrainingRefused as refused:
        assert refused.status == 78
    else:
        assert str(exactness).startswith("APPROXIMATE")


@pytest.mark.parametrize("same_loader", [False, True])
def test_evaluation_that_a_resumed_run_leaves_out_is_noticed(
    tmp_path: Path, same_loader: bool
) -> None:
    """A pass that takes the place of another is not silently continued at its position."""

    def loop(stop: bool) -> Session:
        session = Session(run_dir=tmp_path, model=torch.nn.Linear(2, 1))
        with session:
            for _ in session.epochs(1):
                if stop:
                    for _ in session.batches(loader(same_loader)):
                        session.poll()
                for _ in session.batches(loader(True)):
                    if stop and session.global_step == 1:
                        term()
                    session.step()
        return session

    with pytest.raises(TrainingStopped):
        loop(stop=True)
    assert str(loop(stop=False).exactness).startswith("APPROXIMATE: ")


def test_epoch_that_leaves_out_its_batches_is_noticed(tmp_path: Path) -> None:
    """An epoch that a resumed run ends without the pass it was cut in is not taken for the same."""
    with pytest.raises(TrainingStopped):
        evaluation_before_the_batches(Run(tmp_path), stop=3)
    resumed = Run(tmp_path)
    with resumed.session as session:
        for _ in session.epochs(1):
            pass
    assert str(session.exactness).startswith("APPROXIMATE: an epoch ended before the script")


def test_neighbouring_seeds_order_the_data_differently(tmp_path: Path) -> None:
    """Each seed of the script has an order of its own, so that repetitions are repetitions."""
    orders = []
    for seed in range(4):
        run = Run(tmp_path / str(seed))
        torch.manual_seed(seed)
        with run.session as session:
            for _ in session.epochs(1):
                for (a,) in session.batches(loader(True)):
                    run.seen.append(a.tolist())
                    session.step()
        orders.append(run.seen)
    assert all(orders.index(order) == number for number, order in enumerate(orders))


def test_tensors_of_inference_mode_are_saved(tmp_path: Path) -> None:
    """An average that was made in inference mode can be registered and saved."""

    class Average:
        def __init__(self) -> None:
            with torch.inference_mode():
                self.weight = torch.ones(2)

        def state_dict(self) -> dict[str, torch.Tensor]:
            return {"weight": self.weight}

        def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
            self.weight = state["weight"]

    with Session(run_dir=tmp_path, average=Average()) as session:
        for _ in session.epochs(1):
            for _ in session.batches(loader()):
                session.step()
    assert (tmp_path / "done.json").exists()


def test_metric_does_not_keep_the_graph_alive(tmp_path: Path) -> None:
    """The activations behind a loss that was handed over are freed with the script's own names."""
    kept: list[weakref.ref[Any]] = []

    class Recorded(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            kept.append(weakref.ref(ctx))
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
            return grads[0]

    model = torch.nn.Linear(2, 1)
    with Session(run_dir=tmp_path, model=model) as session:
        loss = Recorded.apply(model(torch.ones(1, 2))).mean()
        session.step(loss=loss)
        del loss
        gc.collect()
        assert [reference() for reference in kept] == [None]
