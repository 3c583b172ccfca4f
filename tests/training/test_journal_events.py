"""The journals of a session and of a framework's run have the same events, field by field."""

import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.rundir.journal import Journal
from orchestrator.training import Session, TrainingStopped
from orchestrator.training.framework_run import FrameworkRun
from tests.training.support import as_new_process

STOP_AT, TOTAL = 3, 5


def train_by_session(root: Path) -> None:
    with Session(run_dir=root, model=torch.nn.Linear(2, 1)) as session:
        for step in session.steps(TOTAL):
            if step + 1 == STOP_AT and session.resumed_from is None:
                signal.raise_signal(signal.SIGTERM)
            session.step(loss=1.0)


def train_by_framework(root: Path) -> None:
    file, model = root.parent / "state", torch.nn.Linear(2, 1)
    with FrameworkRun.open("toy", "1.0", root) as run:
        begun = STOP_AT if run.resume_from else 0
        run.begin(begun, 0)
        for step in range(begun + 1, TOTAL + 1):
            if step == STOP_AT:
                signal.raise_signal(signal.SIGTERM)
            run.step(step, 0)
            run.record({"loss": 1.0})
            if run.save_wanted or step == TOTAL:
                file.write_text(str(step))
                run.publish(file, model, final=step == TOTAL)
            if run.stop_wanted:
                run.stop()


def fields_by_event(train: Any, root: Path) -> dict[str, set[str]]:
    """Stop a run, resume it, and complete it; return the fields of each event in its journal."""
    with pytest.raises(TrainingStopped) as stopped:
        train(root)
    assert stopped.value.status == 75
    as_new_process()
    train(root)
    fields: dict[str, set[str]] = {}
    for event in Journal(root / "journal.jsonl").read()[0]:
        fields.setdefault(event["event"], set(event)).intersection_update(event)
    return fields


def test_session_and_framework_journal_alike(tmp_path: Path) -> None:
    """Stopped, resumed and completed, both have the same events, equal field by field."""
    session = fields_by_event(train_by_session, tmp_path / "session" / "run")
    framework = fields_by_event(train_by_framework, tmp_path / "framework" / "run")
    # A framework takes no snapshots in memory.
    session.pop("snapshot_taken", None)
    assert session == framework
    assert {"resumed", "stop_noticed", "run_stopped", "checkpoint_published"} <= session.keys()
