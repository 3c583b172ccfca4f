"""The Trainer's state of a checkpoint, as another user may have written it."""

import json
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import EarlyStoppingCallback, TrainerControl, TrainerState
from transformers.trainer_callback import ExportableState, TrainerCallback

from orchestrator.errors import ConfigError
from orchestrator.integrations.transformers import _restore
from orchestrator.integrations.transformers_state import check_fields, check_state

CALLBACK = "EarlyStoppingCallback"


def state_with(**fields: Any) -> TrainerState:
    return TrainerState(**fields)


def written(tmp_path: Path, **fields: Any) -> Path:
    file = tmp_path / "trainer_state.json"
    file.write_text(json.dumps(asdict(TrainerState()) | fields))
    return file


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("best_global_step", "../../home"),
        ("best_model_checkpoint", 3),
        ("best_model_checkpoint", ["/home"]),
        ("epoch", "one"),
        ("global_step", True),
        ("log_history", {}),
        ("stateful_callbacks", [1]),
        ("is_world_process_zero", "yes"),
        ("__class__", "x"),
        ("unknown\x1b[2J", 1),
    ],
)
def test_field_of_another_type_or_name_is_refused(tmp_path: Path, name: str, value: Any) -> None:
    """The error says which; a traceback of the Trainer's would not."""
    with pytest.raises(ConfigError, match=r"cannot resume: .*trainer_state\.json has"):
        check_fields(written(tmp_path, **{name: value}))


@pytest.mark.parametrize("text", ["[]", "{", "", "[" * 100_000, "\0"])
def test_what_is_no_object_is_refused(tmp_path: Path, text: str) -> None:
    """It is a file that the Trainer has not written."""
    (tmp_path / "trainer_state.json").write_text(text)
    with pytest.raises(ConfigError, match="cannot be read"):
        check_fields(tmp_path / "trainer_state.json")


def test_what_the_trainer_writes_is_accepted(tmp_path: Path) -> None:
    """Also fields that are empty, and numbers without a fraction; and no file at all."""
    check_fields(tmp_path / "trainer_state.json")
    check_fields(written(tmp_path, best_metric=3, best_global_step=4, log_history=[{"loss": 1.0}]))
    state = state_with(stateful_callbacks=[EarlyStoppingCallback(2), TrainerControl()])
    state.save_to_json(str(tmp_path / "trainer_state.json"))
    check_fields(tmp_path / "trainer_state.json")


@pytest.mark.parametrize(
    ("best", "is_kept"),
    [
        ("out/checkpoint-4", True),
        ("{here}/out/checkpoint-4", True),
        ("/home/thesis", False),
        ("out", False),
        ("out/../checkpoint-4", False),
        ("out/checkpoint-4/..", False),
        ("out/checkpoint-x", False),
        ("http://host/checkpoint-4", False),
        ("", False),
    ],
)
def test_best_checkpoint_is_one_of_the_output_directory(
    capsys: pytest.CaptureFixture[str], best: str, is_kept: bool
) -> None:
    """Another one is forgotten, which is printed."""
    best = best.format(here=Path.cwd())
    state = state_with(best_model_checkpoint=best)
    check_state(state, [], "out")
    assert state.best_model_checkpoint == (best if is_kept else None)
    assert ("this is not used" in capsys.readouterr().err) is not is_kept


def stored(args: Any = None, attributes: Any = None) -> dict[str, Any]:
    return {"args": args or {}, "attributes": attributes or {}}


@pytest.mark.parametrize(
    "harm",
    [
        {"on_step_end": 3},
        {"__class__": "x"},
        {"early_stopping_patience_counter": "/home"},
        {"early_stopping_patience_counter": None},
        {"early_stopping_patience_counter": True},
    ],
)
@pytest.mark.parametrize("part", ["args", "attributes"])
def test_callback_gets_only_what_it_exports(
    capsys: pytest.CaptureFixture[str], harm: dict[str, Any], part: str
) -> None:
    """No method is replaced, and no attribute gets a value of another type."""
    callback = EarlyStoppingCallback(2)
    before = dict(vars(callback))
    states = {CALLBACK: stored() | {part: harm}}
    state = state_with(stateful_callbacks=states)
    check_state(state, [callback], "out")
    _restore([callback], states)
    assert vars(callback) == before
    assert EarlyStoppingCallback(**states[CALLBACK]["args"]).state() == callback.state()
    assert capsys.readouterr().err.count("no state of it") == 1


@pytest.mark.parametrize("data", [None, 3, "x", [3], [None], {"args": 3, "attributes": []}])
def test_state_of_another_shape_restores_nothing(data: Any) -> None:
    """It is as if the callback had exported nothing."""
    callback, states = EarlyStoppingCallback(2), {CALLBACK: data}
    before = dict(vars(callback))
    check_state(state_with(stateful_callbacks=states), [callback], "out")
    _restore([callback], states)
    assert vars(callback) == before


class Best(TrainerCallback, ExportableState):
    """A callback of a script, with attributes of several types."""

    def __init__(self) -> None:
        self.best: float | None = None
        self.seen, self.name, self.pair = 0.5, "a", (1, 2)

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": dict(vars(self))}


def test_state_of_a_script_is_restored(capsys: pytest.CaptureFixture[str]) -> None:
    """Numbers may lose or gain a fraction, and what was None may have become something."""
    callbacks: list[Any] = [Best(), Best(), EarlyStoppingCallback(2), SimpleNamespace()]
    first = {"best": 3.5, "seen": 1, "name": "b", "pair": [3, 4]}
    states: dict[str, Any] = {
        "Best": [stored(attributes=first), stored(attributes=first | {"best": None})],
        CALLBACK: stored({"early_stopping_patience": 3}, {"early_stopping_patience_counter": 1}),
        "Other": "as it is",
    }
    check_state(state_with(stateful_callbacks=states), callbacks, "out")
    _restore(callbacks[:2], states)
    _restore(callbacks[2:3], states)
    assert vars(callbacks[0]) == first
    assert vars(callbacks[1]) == first | {"best": None}
    assert callbacks[2].early_stopping_patience_counter == 1
    assert states["Other"] == "as it is"
    assert capsys.readouterr().err == ""
