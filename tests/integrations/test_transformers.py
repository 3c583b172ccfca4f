"""The Trainer of transformers: killed, stopped and resumed, it ends with the exact result."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash
from safetensors.torch import load_file

from orchestrator.breakpoints.trial_files import VARIABLE
from orchestrator.rundir.paths import RunDir
from tests.e2e.support import (
    Supervised,
    assert_all_valid,
    assert_nothing_left,
    clean_environment,
    events,
    forked_by,
    forking_server,
    open_store,
    wait_for,
)
from tests.support import NOBODY

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "hf_trainer.py"
VARIANT = Path(__file__).with_name("hf_variant.py")
PHASES = Path(__file__).with_name("hf_phases.py")
# Eight steps in an epoch, two batches in a step: saves, kills and stops come in mid-epoch.
SMALL = ("--epochs", "3", "--samples", "128", "--context", "16", "--save-steps", "5")

Start = Callable[..., Supervised]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return the address of a process that has imported transformers and forks trainers."""
    address = tmp_path_factory.mktemp("warm") / "server"
    # So small a model only loses by threads.
    variables = {"OMP_NUM_THREADS": "1", VARIABLE: ""}
    with forking_server(address, "orchestrator.integrations.transformers", **variables):
        yield address


@pytest.fixture(scope="module")
def uninterrupted(server: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """Return an uninterrupted run without a supervisor."""
    root = tmp_path_factory.mktemp("uninterrupted")
    result = run_alone(server, root)
    assert result.returncode == 0, result.stderr
    assert "final loss" in result.stdout
    return RunDir(root / "runs" / "hf_trainer")


def run_alone(
    server: Path, root: Path, script: tuple[str, ...] = (str(EXAMPLE),), *more: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*forked_by(server), *script, *SMALL, *more],
        cwd=root,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )


def kill_trainer(server: Path) -> None:
    os.kill(int(server.with_name(f"{server.name}.pid").read_text()), signal.SIGKILL)


def final_state(run: RunDir) -> tuple[dict[str, torch.Tensor], str, str]:
    """Return the weights, optimizer state and random streams of the last checkpoint."""
    newest = open_store(run).all()[-1]
    assert newest.manifest.reason == "final"
    weights = load_file(newest.resume_path / "model.safetensors")
    optimizer = torch.load(newest.resume_path / "optimizer.pt")
    streams = torch.load(newest.resume_path / "rng_state.pth", weights_only=False)
    return weights, str(optimizer), str(streams)


def assert_same_end(run: RunDir, expected: RunDir) -> None:
    mine, other = final_state(run), final_state(expected)
    assert mine[0].keys() == other[0].keys()
    assert all(torch.equal(value, other[0][name]) for name, value in mine[0].items())
    assert mine[1:] == other[1:]


def test_killed_and_stopped_training_equals_the_uninterrupted_one(
    server: Path, supervise: Start, uninterrupted: RunDir
) -> None:
    """Three SIGKILLs and a SIGTERM inside epochs change no bit of the final state."""
    command = [*forked_by(server), str(EXAMPLE), *SMALL]
    run = supervise(command=command)
    for number in (1, 2, 3):
        run.wait_for_event("checkpoint_published", count=number)
        kill_trainer(server)
        run.wait_for_event("attempt_exited", count=number)
    run.wait_for_event("resumed", count=3)
    run.signal(signal.SIGTERM)
    status, output, _ = run.end()
    assert status == 75
    assert "final loss" not in output
    stopped = open_store(run.run).all()[-1].manifest
    assert (stopped.reason, stopped.framework) == ("emergency", "transformers")
    again = supervise(command=command)
    assert again.end()[0] == 0
    assert events(run.run, "resumed")[-1]["step"] == stopped.step
    for end in ("run_stopped", "run_completed"):
        totals = events(run.run, end)[-1]
        assert (totals["total_steps"], totals["total_epochs"]) == (24, 3)
    assert_same_end(run.run, uninterrupted)
    assert_nothing_left(run.run)
    # Nor has the Trainer, which saved the last step twice, written into what the store links to.
    assert_all_valid(run.run, at_least=3)
    assert "eval_loss" in open_store(run.run).all()[-1].manifest.metrics


@pytest.mark.usefixtures("as_root")
def test_trainer_saves_in_nothing_that_another_user_has_made(server: Path, tmp_path: Path) -> None:
    """A directory and a link of another user cost the saves at their steps, and nothing else."""
    output, home = tmp_path / "output", tmp_path / "home"
    for directory in (output, home):
        directory.mkdir()
    for number in (1, 2):
        (home / f"package{number}.py").write_text("private")
        os.link(home / f"package{number}.py", tmp_path / f"cache{number}")
    (output / "checkpoint-5").mkdir()
    (output / "checkpoint-5" / "notes.txt").symlink_to(home / "package1.py")
    (output / "checkpoint-10").symlink_to(home)
    for name in ("checkpoint-5", "checkpoint-10"):
        os.chown(output / name, NOBODY, NOBODY, follow_symlinks=False)
    result = run_alone(server, tmp_path, (str(EXAMPLE),), "--output", str(output))
    assert result.returncode == 0, result.stderr
    assert sorted(path.name for path in home.iterdir()) == ["package1.py", "package2.py"]
    assert result.stderr.count("belongs to nobody") == 2
    run = RunDir(tmp_path / "runs" / "hf_trainer")
    steps = [checkpoint.manifest.step for checkpoint in open_store(run).all()]
    assert steps
    assert not {5, 10} & set(steps)
    assert_all_valid(run, at_least=1)


@pytest.mark.parametrize(
    ("field", "value", "status", "message"),
    [
        ("best_global_step", "../../home", 78, "cannot resume: .* for 'best_global_step'"),
        ("best_model_checkpoint", "/", 0, "names '/' as the best one, .* is not used"),
    ],
)
def test_state_that_another_user_has_changed(
    server: Path,
    uninterrupted: RunDir,
    tmp_path: Path,
    field: str,
    value: str,
    status: int,
    message: str,
) -> None:
    """The Trainer gets no field that it has not written, nor a directory elsewhere to load."""
    shutil.copytree(uninterrupted.root, tmp_path / "runs" / "hf_trainer")
    newest = open_store(RunDir(tmp_path / "runs" / "hf_trainer")).all()[-1]
    file, manifest = newest.resume_path / "trainer_state.json", newest.path / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_bytes()) | {field: value}))
    content = json.loads(manifest.read_bytes())
    content["files"][file.name] = {
        "bytes": file.stat().st_size,
        "xxh3_128": xxhash.xxh3_128(file.read_bytes()).hexdigest(),
    }
    manifest.write_text(json.dumps(content))
    result = run_alone(server, tmp_path)
    assert result.returncode == status, result.stderr
    assert re.search(message, result.stderr)
    assert "Traceback" not in result.stderr


def test_evaluation_does_not_hold_up_a_stop(
    server: Path, supervise: Start, uninterrupted: RunDir
) -> None:
    """A SIGTERM ends an evaluation early, and the checkpoint says what was left out."""
    command = [*forked_by(server), str(VARIANT), "slow", *SMALL]
    run = supervise(command=command)
    run.wait_for_output("evaluating")
    run.signal(signal.SIGTERM)
    assert run.end()[0] == 75
    newest = open_store(run.run).all()[-1].manifest
    assert (newest.step, newest.reason) == (8, "emergency")
    assert newest.doubts == ["the evaluation at step 8 was cut off by a stop"]
    again = supervise(command=[*forked_by(server), str(VARIANT), "jit", *SMALL])
    assert again.end()[0] == 0
    assert_same_end(run.run, uninterrupted)


def test_killed_in_an_evaluation_the_run_evaluates_again(
    server: Path, supervise: Start, uninterrupted: RunDir
) -> None:
    """An epoch's last save waits for its evaluation, so a kill in the evaluation repeats it."""
    command = [*forked_by(server), str(VARIANT), "slow", *SMALL, "--save-steps", "4"]
    run = supervise(command=command)
    run.wait_for_output("evaluating")
    kill_trainer(server)
    assert run.end()[0] == 0
    assert [event["step"] for event in events(run.run, "resumed")] == [4]
    assert_same_end(run.run, uninterrupted)


def test_partial_checkpoint_is_not_resumed(
    server: Path, supervise: Start, uninterrupted: RunDir, tmp_path: Path
) -> None:
    """A run killed in the Trainer's own save resumes from the checkpoint before."""
    run = supervise(command=[*forked_by(server), str(VARIANT), "cut", *SMALL])
    run.wait_for_output("half-written")
    kill_trainer(server)
    assert run.end()[0] == 0
    assert [event["step"] for event in events(run.run, "resumed")] == [5]
    assert_same_end(run.run, uninterrupted)


def test_new_run_does_not_start_from_a_partial_checkpoint(
    server: Path, supervise: Start, tmp_path: Path
) -> None:
    """A run without checkpoints starts from the newest complete one in the Trainer's output."""
    first = supervise(command=[*forked_by(server), str(VARIANT), "cut", *SMALL])
    first.wait_for_output("half-written")
    first.signal(signal.SIGKILL)
    kill_trainer(server)
    first.end()
    assert_nothing_left(first.run)
    first.run.root.rename(tmp_path / "lost")
    second = supervise(command=[*forked_by(server), str(VARIANT), "last", *SMALL])
    status, told, _ = second.end()
    assert status == 0
    assert "checkpoint-10 in" in told
    # Training began at the fifth step, not at the first.
    assert events(second.run, "checkpoint_published")[0]["step"] == 10


def test_missing_start_checkpoint_is_refused_by_the_trainer(server: Path, tmp_path: Path) -> None:
    """A wrong name in the Trainer's output is refused, and training does not start from zero."""
    result = subprocess.run(
        [*forked_by(server), str(VARIANT), "missing", *SMALL],
        cwd=tmp_path,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert result.returncode == 1
    assert "pretrained" in result.stderr


def test_script_without_supervisor_stops_and_resumes(
    server: Path, uninterrupted: RunDir, tmp_path: Path
) -> None:
    """Without a supervisor, a SIGTERM saves and ends with 75, and the next start resumes."""
    command = [*forked_by(server), str(EXAMPLE), *SMALL]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=clean_environment(), stdout=subprocess.PIPE, text=True
    )
    run = RunDir(tmp_path / "runs" / "hf_trainer")
    wait_for(lambda: events(run, "checkpoint_published"), "a checkpoint")
    os.kill(int(server.with_name(f"{server.name}.pid").read_text()), signal.SIGTERM)
    output, _ = process.communicate(timeout=90)
    assert process.returncode == 75
    assert "final loss" not in output
    assert run_alone(server, tmp_path).returncode == 0
    assert_same_end(run, uninterrupted)
    assert json.loads(run.done_file.read_text())["step"] == 24


@pytest.mark.parametrize(("variant", "status", "end"), [("short", 0, 20), ("early", 75, 24)])
def test_resumed_training_ends_at_the_same_step(
    server: Path, tmp_path: Path, variant: str, status: int, end: int
) -> None:
    """Early stopping keeps its count over a resume, and a finished training stays finished."""
    run = RunDir(tmp_path / "runs" / "hf_trainer")
    for expected in (status, 0, 0):
        result = run_alone(server, tmp_path, (str(VARIANT), variant), "--epochs", "9")
        assert result.returncode == expected, result.stderr
    assert json.loads(run.done_file.read_text())["step"] == end
    assert "training is complete already" in result.stderr
    assert open_store(run).all()[-1].manifest.step == end


def test_run_starts_from_the_checkpoint_that_the_script_names(server: Path, tmp_path: Path) -> None:
    """A complete checkpoint of the Trainer's own that the script names is used."""
    assert run_alone(server, tmp_path).returncode == 0
    (tmp_path / "runs").rename(tmp_path / "lost")
    result = run_alone(server, tmp_path, (str(VARIANT), "older"))
    assert result.returncode == 0, result.stderr
    # It began at the twentieth step, and not after the last one.
    published = events(RunDir(tmp_path / "runs" / "hf_trainer"), "checkpoint_published")
    assert {event["step"] for event in published} == {24}


def run_phases(server: Path, root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    root.mkdir(exist_ok=True)
    return subprocess.run(
        [*forked_by(server), str(PHASES), *words],
        cwd=root,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=90,
    )


def test_two_phases_with_a_run_each_survive_a_kill_in_either(server: Path, tmp_path: Path) -> None:
    """A complete phase is skipped, and hands its final model to the next phase."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert run_phases(server, whole, "runs").returncode == 0
    for phase in ("0", "1"):
        assert run_phases(server, cut, "runs", phase, "5").returncode != 0
    last = run_phases(server, cut, "runs")
    assert last.returncode == 0, last.stderr
    assert "training is complete already (step 8)" in last.stderr
    assert "resumed at step 3" in last.stderr
    mine, other = torch.load(cut / "result.pt"), torch.load(whole / "result.pt")
    assert all(torch.equal(value, other[name]) for name, value in mine.items())


@pytest.mark.parametrize("how", ["one", "again"])
def test_second_training_in_the_same_run_is_refused(
    server: Path, supervise: Start, tmp_path: Path, how: str
) -> None:
    """A second training of another Trainer, or of the same one, is refused and not completed."""
    alone = run_phases(server, tmp_path / "alone", how)
    assert alone.returncode == 78
    assert "a run is one training" in alone.stderr
    status, output, _ = supervise(command=[*forked_by(server), str(PHASES), how]).end()
    assert status == 78
    assert "a run is one training" in output
    assert "trained 0" in output
    assert "trained 1" not in output + alone.stdout


def chaos(server: Path, root: Path, variant: str, faults: str) -> tuple[int, dict[str, Any], str]:
    """Run chaos on a variant of the example, and return its status, report and messages."""
    (root / "tmp").mkdir()
    done = subprocess.run(
        [
            *(sys.executable, "-m", "orchestrator", "chaos", "--faults", faults),
            *(
                "--seed",
                "1",
                "--json",
                "--",
                *forked_by(server),
                str(VARIANT),
                variant,
                *SMALL,
                "--epochs",
                "2",
            ),
        ],
        cwd=root,
        env=clean_environment() | {"TMPDIR": str(root / "tmp")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout), done.stderr


def test_chaos_judges_a_trainer(server: Path, tmp_path: Path) -> None:
    """Faults at a Trainer's own moments change no bit, and no run finds the files of another."""
    faults = "sigkill@save,sigkill@first-batch,sigterm@evaluation,kill-both@edge,bit-flip"
    status, report, messages = chaos(server, tmp_path, "last", f"{faults},sigkill@snapshot")
    assert status == 0, report
    assert report["injected"] == report["survived"] == report["exact"] == 5, report
    assert report["not_reached"] == ["sigkill@snapshot"]
    assert "a framework's run: compared are its steps, the losses of its batches" in messages
    assert not list(tmp_path.glob("hf-trainer/*"))


def test_chaos_finds_what_a_trainer_does_not_save(server: Path, tmp_path: Path) -> None:
    """A Trainer whose result depends on unsaved state is reported by the loss of a batch."""
    status, report, _ = chaos(server, tmp_path, "unsaved", "sigkill@step")
    assert status == 1
    assert (report["injected"], report["survived"], report["exact"]) == (1, 1, 0)
    assert "loss of step" in report["problems"][0]["problem"]
