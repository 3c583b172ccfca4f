"""The check of the checkpoints that a trial has left."""

from pathlib import Path

from orchestrator.chaos.result import check_checkpoints
from orchestrator.checkpoint.digesting_writer import DigestingWriter
from orchestrator.checkpoint.publication import publish_state
from tests.checkpoint.support import manifest_of, new_store, state_of


def write(file: DigestingWriter) -> None:
    file.write(state_of(100))


def test_ranks_that_differ_are_a_problem(tmp_path: Path) -> None:
    """A run whose ranks hold different values is not survived, and the tensors are named."""
    store = new_store(tmp_path / "run")
    manifest = manifest_of(100, world_size=2, healthy=False, differing=["model.weight"])
    name = publish_state(store, manifest, write, parts={"rank-00001.pt": write}).name
    problem, content = check_checkpoints(store, ())
    assert problem == f"the ranks hold different values of model.weight in {name}"
    assert content == {}
