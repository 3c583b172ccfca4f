"""What breakpoints tell of the calls that reach them, and which calls count.

No module of the package is imported here: a breakpoint sees the objects that it is given.
"""

import contextlib
from pathlib import Path
from typing import Any

# --- the owner of a method -----------------------------------------------------------------------


def progress(session: Any) -> dict[str, Any]:
    """Return how far a session is."""
    return {"step": session.global_step, "epoch": session.epoch}


def progress_of_framework(run: Any) -> dict[str, Any]:
    """Return how far a framework's run is."""
    return {"step": run._progress.step, "epoch": run._progress.epoch}


def progress_of_transformers(trainer: Any) -> dict[str, Any]:
    """Return how far a Trainer of transformers is."""
    return {"step": trainer.state.global_step, "epoch": int(trainer.state.epoch or 0)}


def number_of(rank: Any) -> dict[str, Any]:
    """Return which rank it is."""
    return {"rank": rank.number}


# --- which calls count ---------------------------------------------------------------------------


def path_in_checkpoint(disk: Any, path: Path) -> bool:
    """Return whether a path is in a checkpoint that is being written."""
    return any(folder.name.startswith(".writing-") for folder in path.parents)


def file_in_checkpoint(disk: Any, file: Any) -> bool:
    """Return whether a file is in a checkpoint that is being written."""
    return path_in_checkpoint(disk, Path(str(file.name)))


def path_of_part(disk: Any, path: Path) -> bool:
    """Return whether a path is the part of a rank other than 0, in a checkpoint being written."""
    return path_in_checkpoint(disk, path) and path.name.startswith("rank-")


def file_of_part(disk: Any, file: Any) -> bool:
    """Return whether a file is such a part."""
    return path_of_part(disk, Path(str(file.name)))


def publishes(disk: Any, source: Path, target: Path) -> bool:
    """Return whether a rename publishes a checkpoint."""
    return target.name.startswith("step-") and source.name.startswith(".writing-")


def evaluates(run: Any, phase: Any) -> bool:
    """Return whether a framework's run shows that it evaluates."""
    return bool(phase.name == "EVALUATE")


# --- records for the history ---------------------------------------------------------------------


def launched(result: Any, rank: Any, *arguments: Any) -> dict[str, Any]:
    """Return the process of a rank that has just started."""
    return {"rank": rank.number, "trainer": rank.process.pid}


def step(session: Any, **metrics: Any) -> dict[str, Any]:
    """Return a step's metrics, which come before it is counted."""
    return _measured("step", session.global_step + 1, session.epoch, metrics)


def poll(session: Any, **metrics: Any) -> dict[str, Any] | None:
    """Return the metrics of a poll; without any, it tells nothing."""
    return _measured("poll", session.global_step, session.epoch, metrics) if metrics else None


def begin_of_framework(
    run: Any, step: int, epoch: int, *doubts: Any, **totals: Any
) -> dict[str, Any]:
    """Return where an attempt of a framework's run begins."""
    return _measured("begin", step, epoch, {})


def step_of_framework(run: Any, step: int, epoch: int) -> dict[str, Any]:
    """Return a step of a framework's run."""
    return _measured("step", step, epoch, {})


def log_of_framework(run: Any, metrics: dict[str, Any]) -> dict[str, Any]:
    """Return what a framework has logged."""
    return _measured("log", run._progress.step, run._progress.epoch, metrics)


def loss_of_transformers(loss: Any, trainer: Any, *arguments: Any) -> dict[str, Any]:
    """Return the loss of a batch of a Trainer of transformers."""
    progress = progress_of_transformers(trainer)
    return _measured("batch", progress["step"] + 1, progress["epoch"], {"loss": loss})


def _measured(kind: str, step: int, epoch: int, metrics: dict[str, Any]) -> dict[str, Any]:
    values = {}
    for name, value in metrics.items():
        # The session itself judges a value that is not a number.
        with contextlib.suppress(Exception):
            values[name] = float(value.detach() if hasattr(value, "detach") else value).hex()
    return {"kind": kind, "step": step, "epoch": epoch, "metrics": values}
