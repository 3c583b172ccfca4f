"""A script that changes its objects in mid-training hears that it could not load them back."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from orchestrator.training import Session, TrainingRefused
from tests.training.support import as_new_process

CHANGED_AT = 3


class Script:
    """Trains the last layer, and changes its objects after some steps."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
        self.optimizer = torch.optim.SGD(self.model[2].parameters(), lr=0.1)

    def add_group(self) -> None:
        self.optimizer.add_param_group({"params": list(self.model[0].parameters())})

    def prune(self) -> None:
        prune.l1_unstructured(self.model[0], "weight", amount=1)

    def parametrize(self) -> None:
        parametrizations.weight_norm(self.model[0])

    def add_buffer(self) -> None:
        self.model[0].register_buffer("mask", torch.ones(2))

    def widen(self) -> None:
        self.model[0] = nn.Linear(2, 3)
        self.model[2] = nn.Linear(3, 1)

    def train(
        self,
        run_dir: Path,
        change: Callable[["Script"], None],
        steps: int,
        *,
        rebuilds: bool = False,
    ) -> Session:
        as_new_process()

        def rebuild(state: dict[str, Any]) -> None:
            if state.get("changed"):
                change(self)

        session = Session(
            run_dir=run_dir,
            before_restore=rebuild if rebuilds else None,
            model=self.model,
            optimizer=self.optimizer,
        )
        with session:
            for step in session.steps(steps):
                if step == CHANGED_AT:
                    change(self)
                    session.state["changed"] = True
                self.optimizer.zero_grad()
                self.model(torch.ones(1, 2)).sum().backward()
                self.optimizer.step()
                session.step()
                session.checkpoint()
        return session


CHANGES = [Script.add_group, Script.prune, Script.parametrize, Script.add_buffer, Script.widen]


@pytest.mark.parametrize("change", CHANGES)
def test_change_that_no_resume_could_load_is_said_when_it_is_saved(
    change: Callable[[Script], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first save after the change names it and the steps, once, and the resume is refused."""
    Script().train(tmp_path, change, CHANGED_AT)
    assert "will not be able" not in capsys.readouterr().err
    Script().train(tmp_path, change, 8)
    said = capsys.readouterr().err
    assert said.count("will not be able to resume from what is saved from step 4 on") == 1
    assert "after step 3" in said
    with pytest.raises(TrainingRefused):
        Script().train(tmp_path, change, 9)


@pytest.mark.parametrize("change", CHANGES)
def test_function_that_repeats_the_change_makes_it_resumable(
    change: Callable[[Script], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With before_restore the objects fit, nothing is said, and the run continues exactly."""
    Script().train(tmp_path, change, 5, rebuilds=True)
    assert Script().train(tmp_path, change, 7, rebuilds=True).exactness == "EXACT"
    assert "will not be able" not in capsys.readouterr().err


def test_kept_option_leaves_a_repeated_group_as_it_was_saved(tmp_path: Path) -> None:
    """keep_options sets the groups that the script had at the start, and no group added later."""
    Script().train(tmp_path, Script.add_group, 5, rebuilds=True)
    as_new_process()
    script = Script()
    script.optimizer.param_groups[0]["lr"] = 0.05
    session = Session(
        run_dir=tmp_path,
        keep_options=("lr",),
        before_restore=lambda state: script.add_group(),
        model=script.model,
        optimizer=script.optimizer,
    )
    with session:
        assert [group["lr"] for group in script.optimizer.param_groups] == [0.05, 0.1]
        assert "lr of optimizer is 0.05" in str(session.exactness)
