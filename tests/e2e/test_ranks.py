"""Several ranks: kills, stops, hangs and damage, with real gloo ranks."""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.checkpoint.manifest import Manifest
from tests.e2e.support import (
    Supervised,
    assert_all_valid,
    assert_nothing_left,
    events,
    forked_by,
    live_status,
    open_store,
    orchestrator,
    wait_for,
)

Start = Callable[..., Supervised]
TRAIN_DDP = Path(__file__).with_name("train_ddp.py")
RANKS = ("--nproc-per-node", "2")
OFTEN = ("--snapshot-budget", "30%", "--every", "1epoch")
LONG = ("--epochs", "8", "--step-seconds", "0.02")
# All ranks stand still at this step while there is the file, so that no signal races the end.
HELD = ("--run-at", "40", "--code", "while Path('wait').exists(): time.sleep(0.02)")


@pytest.fixture
def ddp(supervise: Start, warm_server: Path) -> Start:
    """Start a run of two ranks, forked from the warm server."""

    def start(*arguments: str, options: tuple[str, ...] = (), **others: Any) -> Supervised:
        command = [*forked_by(warm_server), str(TRAIN_DDP), *arguments]
        return supervise(command=command, options=(*RANKS, *options), **others)

    return start


@pytest.fixture
def held(tmp_path: Path) -> Path:
    """Return the file that holds a run with the arguments ``HELD``."""
    path = tmp_path / "wait"
    path.touch()
    return path


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, warm_server: Path) -> Path:
    """Return the result of a run of two ranks that nothing disturbs."""
    root = tmp_path_factory.mktemp("undisturbed")
    command = [*forked_by(warm_server), str(TRAIN_DDP), *LONG[:2], "--result", str(root / "r")]
    run = Supervised(root, options=RANKS, command=command)
    assert run.end()[0] == 0
    return root / "r"


def assert_same_ranks(result: Path, expected: Path, ranks: int = 2) -> None:
    """Check each rank's weights, buffers, optimizer and next random numbers, bit for bit."""
    for rank in range(ranks):
        ours, theirs = (torch.load(f"{path}.{rank}") for path in (result, expected))
        assert str(ours["optimizer"]) == str(theirs["optimizer"])
        assert all(torch.equal(ours["model"][key], theirs["model"][key]) for key in ours["model"])
        assert torch.equal(ours["random"], theirs["random"])


def wait_for_snapshot(run: Supervised, beyond: int) -> list[int]:
    """Wait for a snapshot of a later step, and return the processes of the ranks."""

    def pids() -> list[int] | None:
        status = live_status(run)
        has_snapshot = (status.get("newest_snapshot") or {}).get("step", 0) > beyond
        return [rank["pid"] for rank in status["ranks"]] if has_snapshot else None

    run.wait_for_event("attempt_started")
    return wait_for(pids, f"a snapshot after step {beyond}")


@pytest.mark.parametrize("victims", [[0], [1], [0, 1]], ids=["rank 0", "rank 1", "all"])
def test_killed_ranks_go_on_from_memory_with_the_same_bits(
    ddp: Start, held: Path, undisturbed: Path, tmp_path: Path, victims: list[int]
) -> None:
    """Whichever rank is killed, all start again from one snapshot, and end as undisturbed ones."""
    run = ddp(*LONG, *HELD, "--result", str(tmp_path / "r"), options=OFTEN)
    pids = wait_for_snapshot(run, beyond=10)
    for victim in victims:
        os.kill(pids[victim], signal.SIGKILL)
    held.unlink()
    status, _, stderr = run.end()
    assert status == 0, stderr
    resumed = events(run.run, "resumed")
    assert sorted(event["rank"] for event in resumed) == [0, 1]
    assert {(event["from_memory"], event["exactness"]) for event in resumed} == {(True, "EXACT")}
    assert len({event["step"] for event in resumed}) == 1
    assert events(run.run, "attempt_exited")[0]["rank"] in victims
    assert_same_ranks(tmp_path / "r", undisturbed)
    assert_all_valid(run.run)
    assert_nothing_left(run.run)


@pytest.mark.parametrize("to", ["supervisor", "rank", "all"])
def test_stop_signal_saves_one_step_of_all_ranks(
    ddp: Start, held: Path, undisturbed: Path, tmp_path: Path, to: str
) -> None:
    """Whoever is signalled, both ranks save the same step, and the same command goes on exactly."""
    run = ddp(*LONG, *HELD, "--result", str(tmp_path / "r"))
    wait_for_snapshot(run, beyond=0)
    if to == "rank":
        os.kill(wait_for_snapshot(run, beyond=0)[1], signal.SIGTERM)
    elif to == "all":
        run.signal_all(signal.SIGTERM)
    else:
        run.signal(signal.SIGTERM)
    run.wait_for_event("stop_requested")
    held.unlink()
    status, _, stderr = run.end()
    assert status == 75, stderr
    assert_nothing_left(run.run)
    newest = open_store(run.run).all()[-1]
    assert newest.manifest.reason == "emergency"
    parts = [torch.load(newest.path / name) for name in ("state.pt", "rank-00001.pt")]
    assert {part["step"] for part in parts} == {newest.manifest.step}
    again = ddp(*LONG, "--result", str(tmp_path / "r"))
    assert again.end()[0] == 0
    assert [event["exactness"] for event in events(run.run, "resumed")] == ["EXACT", "EXACT"]
    assert_same_ranks(tmp_path / "r", undisturbed)


def test_status_and_files_of_each_rank(ddp: Start) -> None:
    """Status has a line for each rank, each has its own output, and rank 0's is printed."""
    run = ddp("--epochs", "1000", "--step-seconds", "0.02")
    wait_for_snapshot(run, beyond=0)
    shown = orchestrator("status", str(run.run.root), cwd=run.run.root.parent)
    assert "rank 1" in shown.stdout

    def states() -> list[str]:
        return [rank["state"] for rank in run.status()["ranks"]]

    # The script evaluates after each epoch.
    wait_for(lambda: states() == ["train", "train"], "ranks that train")
    # Each rank has half of 64 samples, in batches of 4.
    wait_for(lambda: run.status()["progress"]["total_steps"] == 8000, "the total of all ranks")
    asked = orchestrator("checkpoint", str(run.run.root), cwd=run.run.root.parent)
    assert asked.returncode == 0, asked.stderr
    assert orchestrator("stop", str(run.run.root), cwd=run.run.root.parent).returncode == 0
    status, stdout, _ = run.end()
    assert status == 75
    assert "rank 0 of 2" in stdout
    assert "rank 1 of 2" not in stdout
    own = run.run.attempt(1).rank(1)
    assert "rank 1 of 2 at step 0" in own.output_file.read_text()
    lines = run.run.metrics_file.read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == sorted(set(steps))


RAISE = "if rank == 1: raise ValueError('bad sample')"
HANG = "if rank == 1: optimizer.register_step_post_hook(lambda *_: time.sleep(300))"
DIVERGE = "if rank == 1:\n with torch.no_grad(): net[0].weight[3, 3] += 1"


@pytest.mark.parametrize("options", [(), ("--show-ranks", "all")], ids=["main", "all"])
def test_output_of_other_ranks_is_printed_if_wanted(
    supervise: Start, options: tuple[str, ...]
) -> None:
    """Rank 0's lines are printed as they are, those of others after their number, or not at all."""
    code = "import os; print('hello from', os.environ['RANK'])"
    run = supervise(command=[sys.executable, "-c", code], options=(*RANKS, *options, "--no-spare"))
    _, output, _ = run.end()
    lines = output.splitlines()
    assert "hello from 0" in lines
    assert ("[rank 1] hello from 1" in lines) is bool(options)


def test_first_failure_is_the_cause_and_others_follow_it(ddp: Start) -> None:
    """The exception of one rank is named, however the collectives of the others fail after it."""
    run = ddp("--run-at", "5", "--code", RAISE, options=("--max-restarts", "1"))
    status, _, stderr = run.end()
    assert status == 70
    ended = events(run.run, "attempt_exited")[0]
    assert ended["rank"] == 1
    assert ended["cause"].startswith("rank 1 failed with ValueError: bad sample")
    assert "attempts/0001/rank-00001/output.log" in stderr
    assert_nothing_left(run.run)


def test_rank_that_hangs_is_named_and_all_start_again(supervise: Start) -> None:
    """A rank that does not come to the next place is told from those that wait for it."""
    command = [sys.executable, str(TRAIN_DDP), "--run-at", "5", "--code", HANG]
    run = supervise(command=command, options=(*RANKS, "--hang-timeout", "3s", *OFTEN))
    hung = run.wait_for_event("hang_detected")
    ended = run.wait_for_event("attempt_exited")
    assert (ended["kind"], ended["rank"]) == ("hang", 1)
    assert "rank 1 is behind the others" in ended["cause"]
    assert hung["step"] == 5
    assert run.run.attempt(1).stacks_file.read_text().count("Thread") >= 2
    run.signal(signal.SIGTERM)
    run.end()
    assert_nothing_left(run.run)


def test_replicas_that_differ_are_reported_and_not_resumed_from(ddp: Start) -> None:
    """One element of one weight of one rank is found, named, and what holds it is unhealthy."""
    slowly = ("--step-seconds", "0.05")
    run = ddp(*slowly, "--run-at", "12", "--code", DIVERGE, options=OFTEN)
    status, _, stderr = run.end()
    assert status == 0, stderr
    event = events(run.run, "replicas_differ")[0]
    assert "model.0.weight" in event["tensors"]
    assert "the ranks hold different values" in stderr
    manifests = [checkpoint.manifest for checkpoint in open_store(run.run).all()]
    assert all(manifest.healthy == (manifest.step <= 12) for manifest in manifests)
    assert manifests[0].healthy
    assert "model.0.weight" in manifests[-1].differing


def test_damaged_part_of_one_rank_damages_the_checkpoint(ddp: Start) -> None:
    """The set with the damaged part is set aside, and the next older one is used by all ranks."""
    run = ddp("--epochs", "2", options=("--every", "8steps", "--snapshot-budget", "off"))
    assert run.end()[0] == 0
    older, newest = open_store(run.run).all()[-2:]
    part = newest.path / "rank-00001.pt"
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    again = ddp("--epochs", "3", options=("--continue",))
    status, _, stderr = again.end()
    assert status == 0, stderr
    assert {event["step"] for event in events(run.run, "resumed")} == {older.manifest.step}
    assert [path.name for path in run.run.quarantine.iterdir()] == [newest.name]


def test_another_number_of_ranks_is_refused(
    ddp: Start, supervise: Start, warm_server: Path
) -> None:
    """What two ranks have saved is not resumed by one or three, with the reason."""
    run = ddp("--epochs", "1")
    assert run.end()[0] == 0
    manifest = open_store(run.run).all()[-1].manifest
    assert Manifest.from_json(manifest.to_json()).world_size == 2
    command = [*forked_by(warm_server), str(TRAIN_DDP), "--epochs", "2"]
    options = ("--nproc-per-node", "3", "--continue")
    status, _, stderr = supervise(command=command, options=options).end()
    assert status == 78
    assert "2 ranks have saved it, and there are 3 now" in stderr
    assert "Traceback" not in stderr


WITH_SESSION = """
import torch
from orchestrator.training import Session
with Session(model=torch.nn.Linear(1, 1)) as session:
    session.step()
"""
WITH_CHECKPOINT = f"{WITH_SESSION}    session.checkpoint()"
WITH_FRAMEWORK = """
from orchestrator.training.framework_run import FrameworkRun
with FrameworkRun.open("some framework", "1.0"):
    pass
"""


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (WITH_CHECKPOINT, "cannot save at a place of the script's choice"),
        (WITH_FRAMEWORK, "cannot train some framework with several ranks yet"),
        (WITH_SESSION, None),
    ],
    ids=["checkpoint", "framework", "plain"],
)
def test_what_does_not_work_with_ranks_is_refused(
    supervise: Start, tmp_path: Path, warm_server: Path, script: str, reason: str | None
) -> None:
    """A script that needs what several ranks do not have yet ends with 78 and a sentence."""
    (tmp_path / "script.py").write_text(script)
    command = [*forked_by(warm_server), str(tmp_path / "script.py")]
    status, _, stderr = supervise(command=command, options=RANKS).end()
    assert status == (78 if reason else 0), stderr
    assert (reason or "") in stderr


LEAVES_EARLY = """
import time, torch
from orchestrator.training import Session
with Session(model=torch.nn.Linear(1, 1)) as session:
    for epoch in session.epochs(3):
        time.sleep(0.5)  # a save is decided meanwhile, for the place of this step
        session.step()
        if epoch == 1:
            break  # what is saved after the only step of an epoch waits for its end
"""


def test_save_that_waits_for_a_place_does_not_keep_ranks_from_ending(
    supervise: Start, tmp_path: Path, warm_server: Path
) -> None:
    """A loop that is left where its state cannot be saved costs that save, and not the last one."""
    (tmp_path / "script.py").write_text(LEAVES_EARLY)
    command = [*forked_by(warm_server), str(tmp_path / "script.py")]
    options = (*RANKS, "--every", "1steps", "--snapshot-budget", "off")
    run = supervise(command=command, options=options)
    assert run.end()[0] == 0
    assert events(run.run, "checkpoint_failed")[-1]["problem"].count("has left its loop") == 1
    assert open_store(run.run).all()[-1].manifest.reason == "final"


def test_killed_supervisor_leaves_nothing(ddp: Start) -> None:
    """Ranks that nobody coordinates any more end, and the newest checkpoint on disk counts."""
    run = ddp("--epochs", "1000", "--step-seconds", "0.02", options=("--every", "5steps"))
    run.wait_for_event("checkpoint_published", 2)
    run.process.kill()
    run.process.wait()
    assert_nothing_left(run.run)
    saved = open_store(run.run).all()[-1].manifest.step
    again = ddp("--epochs", "1000", "--step-seconds", "0.02")
    resumed = again.wait_for_event("resumed", 2)
    assert resumed["step"] == saved > 0
    again.signal(signal.SIGTERM)
    assert again.end()[0] == 75


@pytest.mark.parametrize("keeps_groups", [False, True])
def test_three_ranks_are_exact_where_ddp_keeps_its_groups(
    supervise: Start, tmp_path: Path, warm_server: Path, keeps_groups: bool
) -> None:
    """DDP regroups gradients after the first step, so that a resumed sum is rounded differently.

    Where it keeps its groups, the resumed ranks end with the bits of undisturbed ones.
    """
    words = ("--epochs", "2", *(("--unused",) if keeps_groups else ()))
    command = [*forked_by(warm_server), str(TRAIN_DDP), *words]
    options = ("--nproc-per-node", "3", "--every", "4steps", "--snapshot-budget", "off")
    kill = "if rank == 2 and not session.resumed_from: raise SystemExit(1)"
    killed = ("--run-at", "9", "--code", kill, "--result", str(tmp_path / "killed"))
    run = supervise(command=[*command, *killed], options=options)
    status, _, stderr = run.end()
    assert status == 0, stderr
    resumed = [event["exactness"] for event in events(run.run, "resumed")]
    assert len(resumed) == 3
    if not keeps_groups:
        assert all(exactness.startswith("APPROXIMATE") for exactness in resumed)
        return
    assert resumed == ["EXACT"] * 3
    (tmp_path / "whole").mkdir()
    whole = Supervised(
        tmp_path / "whole",
        options=("--nproc-per-node", "3"),
        command=[*command, "--result", str(tmp_path / "undisturbed")],
    )
    assert whole.end()[0] == 0
    assert_same_ranks(tmp_path / "killed", tmp_path / "undisturbed", ranks=3)


@pytest.mark.long
def test_all_ranks_are_forked_from_one_spare(supervise: Start, tmp_path: Path) -> None:
    """A killed rank costs one fork of the spare for each rank, which all go on from memory."""
    (tmp_path / "wait").touch()
    waiting = "while Path('wait').exists(): time.sleep(0.02)"
    # The spare is started about a second after the first step.
    long = ("--epochs", "12", "--step-seconds", "0.02", "--run-at", "70", "--code", waiting)
    command = [sys.executable, str(TRAIN_DDP), *long]
    run = supervise(command=command, options=(*RANKS, *OFTEN, "--spare"))
    run.wait_for_event("attempt_started")
    pids = wait_for_snapshot(run, beyond=0)

    def is_ready() -> bool:
        return (live_status(run).get("spare") or {}).get("state") == "ready"

    wait_for(is_ready, "a spare that is ready")
    os.kill(pids[1], signal.SIGKILL)
    (tmp_path / "wait").unlink()
    status, _, stderr = run.end()
    assert status == 0, stderr
    assert [e["from_spare"] for e in events(run.run, "attempt_started")] == [False, True]
    assert [e["exactness"] for e in events(run.run, "resumed")] == ["EXACT", "EXACT"]
    assert_nothing_left(run.run)


@pytest.mark.skipif(sys.platform != "linux", reason="the number of CPUs is that of Linux")
def test_ranks_get_the_variables_of_torchrun(supervise: Start, tmp_path: Path) -> None:
    """A command without a session sees which rank it is, and where the others are."""
    names = ["RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR"]
    text = " ".join(f"${name}" for name in names)
    command = [
        "sh",
        "-c",
        f'echo "{text}" "$OMP_NUM_THREADS" > {tmp_path}/$RANK; test $MASTER_PORT',
    ]
    status, _, stderr = supervise(command=command, options=RANKS).end()
    assert status == 0, stderr
    for rank in range(2):
        found = (tmp_path / str(rank)).read_text().split()
        threads = os.environ.get("OMP_NUM_THREADS", "1")
        assert found == [str(rank), str(rank), "2", "2", "0", "127.0.0.1", threads]
