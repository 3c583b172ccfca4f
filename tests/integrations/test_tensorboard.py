"""TensorBoard's own package, used as docs/how-to/trackers.md describes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter
from transformers import Trainer, TrainerCallback, TrainingArguments

from orchestrator.integrations.transformers import OrchestratorCallback
from orchestrator.training import Session
from tests.test_docs import ROOT, blocks

STEPS = 9


def train(root: Path, first_value: float, fail_at: int | None = None) -> None:
    """Run one attempt with a checkpoint at step 4; a failing one loses the steps after it."""
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


def test_events_after_the_resumed_step_are_purged(tmp_path: Path) -> None:
    """With purge_step each step is shown once, with the value of the attempt that counts."""
    with pytest.raises(RuntimeError, match="a node is gone"):
        train(tmp_path, first_value=700.0, fail_at=7)
    train(tmp_path, first_value=0.0)
    events = EventAccumulator(str(tmp_path / "tb")).Reload().Scalars("loss")
    assert [event.step for event in events] == list(range(STEPS))
    kept, done_again = [700.0, 701.0, 702.0, 703.0], [4.0, 5.0, 6.0, 7.0, 8.0]
    assert [event.value for event in events] == kept + done_again


class Failing(TrainerCallback):
    """A machine that disappears at the seventh step, after it has written its events."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 7:
            raise RuntimeError("a node is gone")


class Line(torch.nn.Linear):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:  # type: ignore[override]
        return {"loss": super().forward(x).square().mean()}


def train_by_trainer(tensorboard: Any, *more: TrainerCallback) -> None:
    arguments = TrainingArguments(
        max_steps=STEPS,
        save_steps=4,
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    data = [{"x": torch.rand(1)} for _ in range(4)]
    callbacks = [tensorboard, OrchestratorCallback(Path("run")), *more]
    Trainer(Line(1, 1), arguments, train_dataset=data, callbacks=callbacks).train()


def test_trainers_events_after_the_resumed_step_are_purged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the documented callback, each step of a resumed Trainer is shown once."""
    monkeypatch.chdir(tmp_path)
    page: dict[str, Any] = {}
    code = blocks((ROOT / "docs" / "how-to" / "trackers.md").read_text(), "python")
    exec(next(block for block in code if "TensorBoardCallback" in block), page)
    cut = page["ContinuedTensorBoard"]()
    with pytest.raises(RuntimeError, match="a node is gone"):
        train_by_trainer(cut, Failing())
    cut.tb_writer.close()
    train_by_trainer(page["ContinuedTensorBoard"]())
    events = EventAccumulator("tb/my-run").Reload().Scalars("train/loss")
    assert [event.step for event in events] == list(range(1, STEPS + 1))
