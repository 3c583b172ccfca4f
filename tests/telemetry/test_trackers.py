"""Experiment trackers in a session's process."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from orchestrator.training import Session
from tests.training.support import as_new_process

NAMES = ("WANDB_RUN_ID", "WANDB_RESUME", "MLFLOW_RUN_ID")


class Mlflow(SimpleNamespace):
    """A replacement for MLflow's stack of active runs."""

    def __init__(self) -> None:
        super().__init__(stack=[], active_run=lambda: self.stack[-1] if self.stack else None)

    def start(self, run_id: str, **tags: str) -> None:
        data = SimpleNamespace(tags={name.replace("_", "."): value for name, value in tags.items()})
        self.stack.append(SimpleNamespace(info=SimpleNamespace(run_id=run_id), data=data))


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> Mlflow:
    module = Mlflow()
    monkeypatch.setitem(sys.modules, "mlflow", module)
    return module


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def session_in(root: Path) -> Session:
    return Session(run_dir=root, model=torch.nn.Linear(1, 1))


def test_standalone_session_sets_and_removes_the_variables(tmp_path: Path) -> None:
    """The variables name the run inside the `with` block, and are removed after it."""
    with session_in(tmp_path / "a") as session:
        assert os.environ["WANDB_RUN_ID"] == session.run_id
        assert os.environ["WANDB_RESUME"] == "allow"
    with session_in(tmp_path / "b") as other:
        assert os.environ["WANDB_RUN_ID"] == other.run_id != session.run_id
    assert not os.environ.keys() & set(NAMES)


def test_first_mlflow_run_is_recorded_and_resumed(tmp_path: Path, mlflow: Mlflow) -> None:
    """The next attempt gets the first run's id, even if a nested run was active."""
    with session_in(tmp_path) as session:
        assert "MLFLOW_RUN_ID" not in os.environ
        mlflow.start("child", mlflow_parentRunId="parent")
        session.step()
        mlflow.stack.clear()
        mlflow.start("later")
        session.checkpoint()
    mlflow.stack.clear()
    as_new_process()
    with session_in(tmp_path):
        assert os.environ["MLFLOW_RUN_ID"] == "parent"


def test_variable_is_not_set_while_an_mlflow_run_is_active(tmp_path: Path, mlflow: Mlflow) -> None:
    """The variable is not set during an active run, since it would apply to the next one."""
    mlflow.start("first")
    with session_in(tmp_path) as session:
        session.step()
    as_new_process()
    with session_in(tmp_path):
        assert "MLFLOW_RUN_ID" not in os.environ
