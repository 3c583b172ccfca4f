"""TensorBoard's own package, as docs/tracking.md tells to use it."""

from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from orchestrator.training import Session

STEPS = 9


def train(root: Path, first_value: float, fail_at: int | None = None) -> None:
    """One life, with a checkpoint at step 4; one that fails loses the steps after it."""
    with (
        Session(run_dir=root / "run", model=torch.nn.Linear(1, 1)) as session,
        SummaryWriter(root / "tb", purge_step=session.global_step) as writer,
    ):
        for step in session.steps(STEPS):
            writer.add_scalar("loss", first_value + step, session.global_step)
            session.step()
            if session.global_step == 4:
                session.checkpoint()
            if session.global_step == fail_at:
                raise RuntimeError("a node is gone")


def test_events_behind_the_resumed_step_vanish(tmp_path: Path) -> None:
    """With purge_step each step is shown once, with the value of the life that counts."""
    with pytest.raises(RuntimeError, match="a node is gone"):
        train(tmp_path, first_value=700.0, fail_at=7)
    train(tmp_path, first_value=0.0)
    events = EventAccumulator(str(tmp_path / "tb")).Reload().Scalars("loss")
    assert [event.step for event in events] == list(range(STEPS))
    kept, done_again = [700.0, 701.0, 702.0, 703.0], [4.0, 5.0, 6.0, 7.0, 8.0]
    assert [event.value for event in events] == kept + done_again
