"""Sharded ranks: kills, resumes and refusals, with real gloo ranks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.checkpoint.boxes import Box
from orchestrator.checkpoint.checkpoint import Checkpoint
from orchestrator.training.state.shard_reader import ShardReader
from orchestrator.training.state.stored_files import StoredFiles
from tests.e2e.support import (
    Supervised,
    assert_all_valid,
    assert_nothing_left,
    events,
    forked_by,
    open_store,
)

Start = Callable[..., Supervised]
TRAIN_FSDP = Path(__file__).with_name("train_fsdp.py")
KILL_ONCE = "if rank == 1 and not session.resumed_from: import os; os.kill(os.getpid(), 9)"
DIVERGE = "if rank == 1: model[0].weight.data.to_local()[0, 0] += 1"

BREAK = """
def hook(*_):
    with torch.no_grad():
        model[2].weight.to_local().fill_(float("nan"))
if rank == 1:
    optimizer.register_step_post_hook(hook)
"""


@pytest.fixture
def train(supervise: Start, warm_server: Path) -> Start:
    """Start a run of the sharded training, forked from the warm server."""

    def start(*arguments: str, ranks: int = 2, options: tuple[str, ...] = ()) -> Supervised:
        command = [*forked_by(warm_server), str(TRAIN_FSDP), *arguments]
        return supervise(command=command, options=("--nproc-per-node", str(ranks), *options))

    return start


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, warm_server: Path) -> Path:
    """Return the result of two ranks under FSDP that nothing disturbs."""
    root = tmp_path_factory.mktemp("undisturbed")
    command = [*forked_by(warm_server), str(TRAIN_FSDP), "--result", str(root / "r")]
    run = Supervised(root, options=("--nproc-per-node", "2"), command=command)
    status, _, stderr = run.end()
    assert status == 0, stderr
    return root / "r"


def assert_same(one: Any, other: Any) -> None:
    """Check two states, which hold tensors, bit for bit."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list):
        for mine, others in zip(one, other, strict=True):
            assert_same(mine, others)
    else:
        assert one == other


def assert_same_ranks(result: Path, expected: Path, ranks: int = 2) -> None:
    for rank in range(ranks):
        assert_same(*(torch.load(f"{path}.{rank}") for path in (result, expected)))


def reader_of_checkpoint(checkpoint: Checkpoint) -> ShardReader:
    """A reader of the sharded tensors of a checkpoint, in this process without a group."""
    files = StoredFiles.of_checkpoint(checkpoint)
    index = files.read_index()
    assert index is not None
    return ShardReader(index, files.load)


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_killed_rank_goes_on_with_the_same_bits(
    train: Start, undisturbed: Path, tmp_path: Path, where: str
) -> None:
    """After a SIGKILL of one rank all have their pieces again, and end as undisturbed ranks."""
    pace = "30%" if where == "memory" else "off"
    options = ("--snapshot-budget", pace, "--every", "2steps")
    words = ("--step-seconds", "0.02", "--run-at", "6", "--code", KILL_ONCE)
    run = train(*words, "--result", str(tmp_path / "r"), options=options)
    status, _, stderr = run.end()
    assert status == 0, stderr
    resumed = events(run.run, "resumed")
    assert [event["exactness"] for event in resumed] == ["EXACT", "EXACT"]
    assert len({event["step"] for event in resumed}) == 1
    assert_same_ranks(tmp_path / "r", undisturbed)
    assert_all_valid(run.run)
    assert_nothing_left(run.run)


def test_two_by_two_ranks_of_tensor_parallel_and_fsdp_resume_exactly(
    train: Start, tmp_path: Path
) -> None:
    """Four ranks cut one tensor twice, and each has its piece of it again after a kill.

    What the files hold together is then what the ranks gather at their end.
    """
    words = ("--plan", "both", "--epochs", "1", "--run-at", "5", "--code", KILL_ONCE)
    options = ("--snapshot-budget", "off", "--every", "2steps")
    run = train(*words, "--result", str(tmp_path / "r"), ranks=4, options=options)
    status, _, stderr = run.end()
    assert status == 0, stderr
    assert [event["exactness"] for event in events(run.run, "resumed")] == ["EXACT"] * 4
    newest = open_store(run.run).all()[-1]
    reader = reader_of_checkpoint(newest)
    gathered = torch.load(tmp_path / "r.3")
    assert any(t.layout.mesh == (2, 2) for t in reader.tensors.values())
    for (key, *path), tensor in reader.tensors.items():
        expected = gathered[str(key).removesuffix("_state_dict")]
        for part in path:
            expected = expected[part]
        whole = Box.whole(tensor.layout.size)
        assert torch.equal(reader.read((key, *path), whole), expected)


def test_replicas_of_a_piece_that_differ_are_named(train: Start) -> None:
    """With HSDP each rank of this run holds everything, and one changed element of one is found."""
    words = ("--plan", "hsdp", "--epochs", "1", "--run-at", "2", "--code", DIVERGE)
    run = train(*words, "--step-seconds", "0.02", options=("--every", "1steps"))
    status, _, stderr = run.end()
    assert status == 0, stderr
    assert "model.0.weight" in str(events(run.run, "replicas_differ")[0]["tensors"])


def test_piece_that_is_not_finite_makes_the_checkpoint_unhealthy(train: Start) -> None:
    """Each rank looks at its own piece, since nobody else has it."""
    words = ("--epochs", "1", "--run-at", "3", "--code", BREAK)
    run = train(*words)
    status, _, stderr = run.end()
    assert status == 0, stderr
    newest = open_store(run.run).all()[-1]
    assert (newest.manifest.step, newest.manifest.healthy) == (4, False)


@pytest.mark.parametrize(
    ("plan", "reason"),
    [
        ("partial", "cannot save model_state_dict.sum with several ranks: each rank holds a part"),
        ("fsdp1", "cannot train with several ranks yet where model is sharded by F"),
    ],
)
def test_what_cannot_be_cut_is_refused(train: Start, plan: str, reason: str) -> None:
    """A part of a sum and the first FSDP end with 78 and one sentence."""
    status, _, stderr = train("--plan", plan).end()
    assert status == 78, stderr
    assert reason in stderr
    assert "Traceback" not in stderr


GATHER = "torch.save({k: v.full_tensor() for k, v in model.state_dict().items()}, 'weights')"


def test_other_number_of_ranks_goes_on_at_the_end_of_an_epoch(train: Start, tmp_path: Path) -> None:
    """Three ranks begin with the weights that two have ended with, and say what differs."""
    run = train("--epochs", "1", "--result", str(tmp_path / "r"))
    assert run.end()[0] == 0
    words = ("--epochs", "2", "--run-at", "4", "--code", GATHER)
    status, _, stderr = train(*words, ranks=3, options=("--continue",)).end()
    assert status == 0, stderr
    resumed = events(run.run, "resumed")
    assert len(resumed) == 3
    assert all("2 ranks saved it and 3 ranks continue" in e["exactness"] for e in resumed)
    assert sum("rank 2 is new" in event["exactness"] for event in resumed) == 1
    assert_same(torch.load(tmp_path / "weights"), torch.load(tmp_path / "r.0")["model"])
    assert open_store(run.run).all()[-1].manifest.world_size == 3
