"""Import of another program's file: publishes its content as a checkpoint of a run."""

from pathlib import Path
from typing import IO, Any, cast

import torch

from orchestrator.checkpoint.checkpoint import Checkpoint
from orchestrator.checkpoint.manifest import Manifest, Reason
from orchestrator.checkpoint.publication import publish_state
from orchestrator.checkpoint.store import Store
from orchestrator.errors import ConfigError
from orchestrator.rundir.journal import utc_now
from orchestrator.training.formats.classic import is_state_dict
from orchestrator.training.state.digests import digest_parts
from orchestrator.training.state.progress import SUFFIX
from orchestrator.training.state.versions import VERSIONS


def state_of(content: dict[str, Any], source: Path) -> dict[str, Any]:
    """Return the entries of a classic file's ``content`` that go into a checkpoint.

    Raises ConfigError for weights that contain NaN.
    """
    kept = ("epoch", "step", "loss")
    state = {k: v for k, v in content.items() if k in kept or str(k).endswith(SUFFIX)}
    _refuse_nan(state, source)
    try:
        # One number, possibly in a tensor; a list of losses, for example, is left out.
        state["loss"] = float(state["loss"])
    except (KeyError, TypeError, ValueError, RuntimeError):
        state.pop("loss", None)
    return state


def publish(store: Store, state: dict[str, Any], source: Path) -> Checkpoint:
    """Publish ``state`` as a checkpoint of the run. Raises CheckpointWriteError."""
    manifest = Manifest(
        run_id=store.run_id,
        step=state["step"],
        epoch=state["epoch"],
        reason=Reason.IMPORTED,
        metrics={"loss": state["loss"]} if "loss" in state else {},
        healthy=True,
        time=utc_now(),
        files={},
        versions=VERSIONS,
        digests=digest_parts(state),
        doubts=[
            f"it continues from {source.name}, which has no random streams and no position in the "
            "data"
        ],
    )
    return publish_state(store, manifest, lambda file: torch.save(state, cast(IO[bytes], file)))


def _refuse_nan(state: dict[str, Any], source: Path) -> None:
    for key, part in state.items():
        # Infinities are allowed: a buffer may hold an attention mask.
        for layer, tensor in part.items() if is_state_dict(part) else ():
            if not isinstance(tensor, torch.Tensor) or tensor.is_quantized:
                continue  # torch.isnan() accepts neither
            if bool(torch.isnan(tensor).any()):
                raise ConfigError(
                    f"cannot start from {source}: {layer} of {key.removesuffix(SUFFIX)} contains "
                    "NaN, and a run must not resume from such weights; give another file"
                )
