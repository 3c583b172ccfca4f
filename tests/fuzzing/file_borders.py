"""The readers of files from outside: each takes any bytes, as the content of such a file.

As in borders.py, a reader returns where the product has a value or its own kind of error.
"""

import atexit
import contextlib
import functools
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from orchestrator.adopt.file_check import IncompleteError, dcp_sizes
from orchestrator.adopt.files import SavedFiles
from orchestrator.adopt.save_check import examine
from orchestrator.adopt.write_ledger import WriteLedger
from orchestrator.checkpoint.position import Position
from orchestrator.checkpoint.store import Store
from orchestrator.cli.checkpoint_list import list_checkpoints, list_quarantined
from orchestrator.config import Config
from orchestrator.config_file import CONFIG_FILE
from orchestrator.errors import ConfigError
from orchestrator.first_look.settings_file import write_settings
from orchestrator.rundir.completion import refuse_other_arguments
from orchestrator.rundir.history_index import read_history
from orchestrator.rundir.identity import RunIdentity
from orchestrator.rundir.lock import lock_owner
from orchestrator.rundir.paths import RunDir
from orchestrator.rundir.start import Start
from orchestrator.rundir.trust import trusted_users
from orchestrator.spare.spare_handle import Modules
from orchestrator.supervisor.recovery.diagnosis import ExitFacts, diagnose
from orchestrator.supervisor.recovery.output_tail import end_of
from orchestrator.telemetry.goodput_text import goodput_text
from orchestrator.telemetry.status import exit_status_after
from orchestrator.telemetry.trackers import mlflow_variables

START = Start(["python", "train.py"], [], "/")
CHECKPOINT = "checkpoints/step-000000000007"
QUARANTINED = "checkpoints/quarantine/step-000000000006"
ATTEMPT = "attempts/0001"


def _cut_metrics(run: RunDir) -> None:
    # Importing torch takes seconds, and every other border does without.
    from orchestrator.training.runtime.metrics import cut_off, thin_out

    cut_off(run.metrics_file, Position(1000, 10))
    thin_out(run.metrics_file, 2)


def _diagnose(run: RunDir) -> None:
    attempt = run.attempt(1)
    output, command = end_of(attempt.output_file), ["env", "X=1", "python", "-m", "tarin"]
    for error in (None, attempt.read_error()):
        for connected in (True, False):
            facts = ExitFacts(1, connected, None, False, 0, error, output=output, command=command)
            assert diagnose(facts).cause


def _history(run: RunDir) -> None:
    history = read_history(run)
    exit_status_after(history)
    assert goodput_text(history.goodput.to_json()) is not None


def _list(run: RunDir) -> None:
    store = Store.open(run, [])
    list_checkpoints(store)
    list_quarantined(store)


# What the product does with each file of a run directory.
RUN_FILES: dict[str, Callable[[RunDir], object]] = {
    "lock": lock_owner,
    "run.json": lambda run: RunIdentity.open(run, []),
    "trust.json": trusted_users,
    "done.json": lambda run: refuse_other_arguments(run, START),
    "tracking.json": lambda run: mlflow_variables(run, {}),
    "written.json": lambda run: WriteLedger(run.write_ledger_file),
    "metrics.jsonl": _cut_metrics,
    "journal.jsonl": _history,
    "journal.index.json": _history,
    f"{ATTEMPT}/error.json": _diagnose,
    f"{ATTEMPT}/output.log": _diagnose,
    f"{ATTEMPT}/modules.json": lambda run: Modules.read(run.attempt(1).modules_file),
    f"{CHECKPOINT}/manifest.json": _list,
    f"{QUARANTINED}/quarantine.json": _list,
}


def run_file(name: str, content: bytes) -> None:
    """A file of a run directory is read, or refused with a message for its user."""
    run = RunDir(_scratch() / "run")
    shutil.rmtree(run.root, ignore_errors=True)
    for folder in (CHECKPOINT, QUARANTINED, ATTEMPT):
        (run.root / folder).mkdir(parents=True)
    (run.root / name).write_bytes(content)
    try:
        RUN_FILES[name](run)
    except ConfigError as error:
        assert str(error).startswith("cannot ")


def settings_file(content: bytes) -> None:
    """Settings of the working directory are taken as they are, or refused with a message."""
    path = _scratch() / CONFIG_FILE
    path.write_bytes(content)
    with contextlib.suppress(ConfigError):
        Config.resolve({}, {}, path.parent)
    with contextlib.suppress(ConfigError):
        write_settings({"adopt": "a-*", "resume_arg": ""}, path.parent)
        assert Config.resolve({}, {}, path.parent).adopt is not None


def adopted_file(name: str, content: bytes) -> None:
    """A file that a script has saved is complete, not proven to be, or incomplete."""
    path = _scratch() / name
    path.write_bytes(content)
    saved = SavedFiles.at(path)
    assert saved is not None
    try:
        dcp_sizes(path) if name == ".metadata" else examine(saved)
    except IncompleteError as error:
        assert str(error)


def imported_file(content: bytes) -> None:
    """A file to import has weights and counts, or is refused with a message for its user."""
    from orchestrator.training.formats.classic import read_foreign
    from orchestrator.training.formats.import_ import state_of

    path = _scratch() / "weights.pt"
    path.write_bytes(content)
    try:
        state = state_of(read_foreign(path, "model", {}), path)
    except ConfigError as error:
        assert str(error).startswith("cannot ")
        return
    assert 0 <= state["step"] < 10**12


@functools.cache
def _scratch() -> Path:
    """Return a directory of this process, which is removed at its end."""
    memory = Path("/dev/shm")
    directory = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory
