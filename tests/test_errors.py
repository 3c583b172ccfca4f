"""The errors' texts, and the exit statuses that they end the process with."""

import ast
from pathlib import Path

import pytest

from orchestrator import errors
from orchestrator.errors import (
    CheckpointInvalidError,
    CheckpointWriteError,
    ConfigError,
    FreedStorageError,
    LeftoverError,
    LimitReachedError,
    MismatchError,
    NoThreadError,
    NotSavedError,
    NoValidCheckpointError,
    OrchestratorError,
    RunInUseError,
    UnreadableError,
    UnstorableError,
)
from orchestrator.exitcodes import FINAL_FOR_TRAINER, ExitStatus

PACKAGE = Path(errors.__file__).parent
TREE = {
    name
    for name, value in vars(errors).items()
    if isinstance(value, type) and issubclass(value, OrchestratorError)
}
# Their first argument is a place in the state; the class makes the text.
NAMED_BY_PLACE = {"UnstorableError", "FreedStorageError"}

STATUSES = {
    ConfigError("cannot"): 78,
    MismatchError("cannot"): 78,
    UnstorableError("state['x']", "it is a socket"): 78,
    FreedStorageError("model.weight"): 78,
    UnreadableError(Path("step-1"), OSError(13, "Permission denied")): 78,
    RunInUseError("cannot"): 69,
    NoValidCheckpointError("cannot"): 65,
    LeftoverError("process 7 (python) is in uninterruptible sleep"): 70,
    LimitReachedError("it has had 3 attempts"): 70,
    NoThreadError(): 70,
    CheckpointInvalidError(Path("step-1"), "state.pt is missing"): 65,
    CheckpointWriteError(7, OSError(28, "No space left on device")): 74,
    NotSavedError("cannot"): 74,
}


@pytest.mark.parametrize(
    ("error", "status"), STATUSES.items(), ids=lambda value: type(value).__name__
)
def test_error_has_its_status(error: OrchestratorError, status: int) -> None:
    """Each class of error has the status of the process contract, and a text with "cannot"."""
    assert error.status == status
    assert str(error).startswith("cannot")


def test_every_error_has_a_status_in_the_contract() -> None:
    """Every class is in the table above and in the drawing of the tree."""
    assert {type(error).__name__ for error in STATUSES} | {"OrchestratorError"} == TREE
    assert all(name in str(errors.__doc__) for name in TREE)


def test_texts_name_what_they_are_about() -> None:
    """The step, path, entry and reason are in the text, and in attributes of the error."""
    write = CheckpointWriteError(7, OSError(28, "No space left on device"))
    assert "step 7" in str(write)
    assert "No space left on device" in str(write)
    assert (write.step, write.cause.errno) == (7, 28)
    assert "older checkpoints" not in str(write)
    full = CheckpointWriteError(7, write.cause, has_older=True, place=Path("runs/a"))
    assert str(full) == (
        "cannot save the checkpoint of step 7: No space left on device; older checkpoints are "
        "intact; free some space or raise the quota on the disk of runs/a"
    )
    told = CheckpointWriteError(7, OSError(5, str(full)))
    assert str(told) == str(full), "a text that another process has reported is not repeated"
    broken = CheckpointWriteError(7, OSError(5, "Input/output error"), has_older=True)
    assert str(broken).endswith("Input/output error; older checkpoints are intact")
    invalid = CheckpointInvalidError(Path("runs/a/step-1"), "state.pt is missing")
    assert "runs/a/step-1: state.pt is missing" in str(invalid)
    assert (invalid.path, invalid.reason) == (Path("runs/a/step-1"), "state.pt is missing")
    assert "state['x']" in str(UnstorableError("state['x']", "it is a socket"))


def test_system_error_without_a_reason_is_described() -> None:
    """An OSError without strerror is described by its own text, not by None."""
    assert "quota" in str(CheckpointWriteError(7, OSError("quota")))


def literal_texts() -> list[tuple[str, str]]:
    """Find where the source makes an error with a literal text, and how the text begins."""
    texts = []
    for module in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(module.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args:
                first = node.args[0]
                if isinstance(first, ast.JoinedStr):
                    first = first.values[0]
                if node.func.id in TREE - NAMED_BY_PLACE and isinstance(first, ast.Constant):
                    texts.append((f"{module.stem}:{node.lineno}", str(first.value)))
    return texts


def test_texts_in_the_source_start_with_cannot() -> None:
    """Every literal text of an error in the source starts with "cannot"."""
    texts = literal_texts()
    assert len(texts) > 20
    assert not [text for text in texts if not text[1].startswith("cannot ")]


def test_statuses_are_those_of_the_contract() -> None:
    """The numbers never change, because schedulers are configured with them."""
    assert {status.name: status.value for status in ExitStatus} == {
        "COMPLETE": 0,
        "MISUSE": 2,
        "NO_VALID_CHECKPOINT": 65,
        "IN_USE": 69,
        "GAVE_UP": 70,
        "STOPPED_UNSAVED": 74,
        "STOPPED_SAVED": 75,
        "CONFIGURATION": 78,
    }
    assert {65, 69, 78} == FINAL_FOR_TRAINER
