"""Makes a checkpoint of what another program's file holds."""

from pathlib import Path
from typing import IO, Any, cast

import torch

from orchestrator.checkpoint.checkpoint import Checkpoint
from orchestrator.checkpoint.manifest import Manifest, Reason
from orchestrator.checkpoint.store import Store
from orchestrator.errors import ConfigError
from orchestrator.rundir.journal import utc_now
from orchestrator.training.formats.classic import is_state_dict
from orchestrator.training.state.digests import digest_parts
from orchestrator.training.state.progress import SUFFIX
from orchestrator.training.state.versions import VERSIONS


def state_of(content: dict[str, Any], source: Path) -> dict[str, Any]:
    """What a checkpoint is made of in the ``content`` of a file in the classic form.

    Raises ConfigError for weights that are not numbers.
    """
    kept = ("epoch", "step", "loss")
    state = {k: v for k, v in content.items() if k in kept or str(k).endswith(SUFFIX)}
    _refuse_nan(state, source)
    try:
        # Of one element, be it a tensor; a list of losses, say, has no place here.
        state["loss"] = float(state["loss"])
    except (KeyError, TypeError, ValueError, RuntimeError):
        state.pop("loss", None)
    return state


def publish(store: Store, state: dict[str, Any], source: Path) -> Checkpoint:
    """Publish it as a checkpoint of the run. Raises CheckpointWriteError."""
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
        doubts=[f"it goes on from {source.name}, which has no random streams and no place in data"],
    )
    return store.publish(manifest, lambda file: torch.save(state, cast(IO[bytes], file)))


def _refuse_nan(state: dict[str, Any], source: Path) -> None:
    for key, part in state.items():
        # Infinities may be meant: buffers hold masks.
        for layer, tensor in part.items() if is_state_dict(part) else ():
            if not isinstance(tensor, torch.Tensor) or tensor.is_quantized:
                continue  # neither can be asked
            if bool(torch.isnan(tensor).any()):
                raise ConfigError(
                    f"cannot start from {source}: {layer} of {key.removesuffix(SUFFIX)} is not a "
                    "number everywhere (NaN), and nothing may resume from such weights"
                )
