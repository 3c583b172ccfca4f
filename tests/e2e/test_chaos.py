"""`orchestrator chaos` on real scripts: it finds real defects and no others."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.breakpoints.trial_files import VARIABLE
from orchestrator.chaos.comparison import MIN_HANG_SECONDS
from tests.e2e.support import TRAIN, clean_environment, forked_by, forking_server, wait_for

TRAIN_DDP = TRAIN.with_name("train_ddp.py")
SESSION = """
import os, random, torch
from orchestrator.training import Session
torch.manual_seed(0)
torch.set_num_threads(1)
model = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), 0.1)
momentum = 0.0
with Session(model=model, optimizer=optimizer) as session:
    {after_resuming}
    for step in session.steps(24):
        loss = model(torch.randn(8, 4)).square().mean() * (1.0 + {noise})
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        session.step(loss=loss, speed=random.SystemRandom().random())
"""
# A run that is over in an instant leaves no time for the faults that come a moment after another.
SLOW = ("--step-seconds", "0.02")

Chaos = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Yield the address of a process with torch and the breakpoints that forks trainers."""
    address = tmp_path_factory.mktemp("warm") / "server"
    with forking_server(address, **{VARIABLE: ""}):
        yield address


@pytest.fixture
def start(server: Path, tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Return a function that starts chaos on a script, with temporary directories below ``tmp``."""
    (tmp_path / "tmp").mkdir()

    def popen(script: Path, *options: str, arguments: tuple[str, ...] = ()) -> Any:
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "orchestrator", "chaos", *options),
                *("--", *forked_by(server), str(script), *arguments),
            ],
            cwd=tmp_path,
            env=clean_environment() | {"TMPDIR": str(tmp_path / "tmp")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return popen


@pytest.fixture
def chaos(start: Callable[..., subprocess.Popen[str]]) -> Chaos:
    """Return a function that runs chaos on a script to its end."""

    def run(*arguments: Any, **options: Any) -> subprocess.CompletedProcess[str]:
        with start(*arguments, **options) as process:
            stdout, stderr = process.communicate(timeout=300)
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    return run


def script(directory: Path, after_resuming: str = "pass", noise: str = "0.0") -> Path:
    file = directory / "script.py"
    file.write_text(SESSION.format(after_resuming=after_resuming, noise=noise))
    return file


@pytest.mark.long
def test_faults_of_every_kind_do_not_change_the_result(chaos: Chaos, tmp_path: Path) -> None:
    """Faults of every kind at every moment change no bit; a seed injects the same faults again."""
    faults = (
        "sigkill,sigterm@any,sigterm@edge,sigterm-all@step,kill-supervisor@save,kill-both@rotation,"
        "bit-flip,torn-page,truncation,missing-file,disk-full,io-error"
    )
    options = ("--faults", faults, "--seed", "1", "--json")
    done = chaos(TRAIN, *options, arguments=(*SLOW, "--epochs", "4", "--samples", "48"))
    assert done.returncode == 0, done.stderr + done.stdout
    report = json.loads(done.stdout)
    assert report["injected"] == report["survived"] == report["exact"] == 24, str(report)
    assert {row["fault"].split("@")[0] for row in report["faults"]} >= {
        *("sigkill", "sigterm", "sigterm-all", "kill-supervisor", "kill-both"),
        *("bit-flip", "torn-page", "truncation", "missing-file", "disk-full", "io-error"),
    }
    assert report["not_reached"] == ["sigkill@evaluation"]
    assert [*(tmp_path / "tmp").iterdir()] == []


@pytest.mark.long
def test_faults_of_ranks_do_not_change_the_result(chaos: Chaos, tmp_path: Path) -> None:
    """Two ranks survive what is done to one of them, to its file or before it acts, bit for bit."""
    faults = (
        "sigkill@announced,sigkill-all-but-one@snapshot,sigterm-rank@step,exception-rank,"
        "sigstop-rank@step,disk-full@parts,missing-part"
    )
    options = ("--nproc_per_node", "2", "--faults", faults, "--seed", "1", "--json")
    done = chaos(TRAIN_DDP, *options, arguments=(*SLOW, "--epochs", "4"))
    assert done.returncode == 0, done.stderr + done.stdout
    report = json.loads(done.stdout)
    assert report["injected"] == report["survived"] == report["exact"] == 7, str(report)
    assert (report["ranks"], report["not_reached"]) == (2, [])
    seconds = {row["fault"]: row["seconds_lost"] for row in report["faults"]}
    assert seconds["sigstop-rank@step"] >= MIN_HANG_SECONDS  # it was noticed as a hang
    assert [*(tmp_path / "tmp").iterdir()] == []


def test_fault_of_ranks_is_refused_for_one_process(chaos: Chaos) -> None:
    """Without several ranks such a fault is refused with the option that makes them."""
    done = chaos(TRAIN, "--faults", "sigstop-rank@step")
    assert done.returncode == 78
    assert "is a fault of several ranks; leave it out, or give --nproc-per-node" in done.stderr


def test_script_with_unsaved_state_is_reported(chaos: Chaos, tmp_path: Path) -> None:
    """A script whose result depends on unsaved state is reported, and the runs are kept."""
    file = script(tmp_path, noise="(momentum := momentum * 0.9 + 0.1)")
    done = chaos(file, "--faults", "sigkill@step:2", "--seed", "3")
    assert done.returncode == 1
    assert "loss of step" in done.stdout
    assert "differs from the undisturbed run" in done.stdout
    assert "speed differs from run to run: it is not compared" in done.stderr
    assert [*(tmp_path / "tmp").glob("*/*/run/journal.jsonl")]


def test_script_that_cannot_resume_is_reported(chaos: Chaos, tmp_path: Path) -> None:
    """A script that cannot resume is reported with the end of `orchestrator run`."""
    # The script saves before the kill, however early that comes.
    code = "assert session.resumed_from is None, 'cannot'; session.checkpoint()"
    done = chaos(script(tmp_path, code), "--faults", "sigkill@step", "--json")
    assert done.returncode == 1
    report = json.loads(done.stdout)
    assert (report["injected"], report["survived"]) == (1, 0)
    problem = report["problems"][0]["problem"]
    assert "`orchestrator run` ended with 70: " in problem
    assert "the trainer failed with AssertionError: cannot" in problem


def test_nondeterministic_script_is_not_judged(chaos: Chaos, tmp_path: Path) -> None:
    """If two undisturbed runs differ, chaos says so and injects nothing."""
    done = chaos(script(tmp_path, noise="random.SystemRandom().random()"))
    assert done.returncode == 78
    assert "cannot judge this script: two runs of it without any fault" in done.stderr
    assert "model_state_dict" in done.stderr
    assert "Traceback" not in done.stderr


def test_command_without_a_session_is_not_judged(chaos: Chaos, tmp_path: Path) -> None:
    """A command that makes no step of a session cannot be compared."""
    file = tmp_path / "script.py"
    file.write_text("print('hello')")
    done = chaos(file)
    assert done.returncode == 78
    assert "it never called session.step()" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_chaos_leaves_nothing(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path, number: int
) -> None:
    """After a Ctrl-C or a SIGTERM, no process and no file of chaos is left."""
    arguments = ("--epochs", "100", "--step-seconds", "0.05")
    with start(TRAIN, arguments=arguments) as process:
        histories = tmp_path / "tmp"
        wait_for(lambda: [*histories.glob("*/1/history.jsonl")], "a trial")
        (run,) = histories.glob("*/1")
        os.kill(process.pid, number)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode in (-signal.SIGINT, 128 + signal.SIGTERM)
    assert "its runs are ended and removed" in stderr
    assert [*histories.iterdir()] == []
    assert str(run).encode() not in subprocess.run(["ps", "axeww"], capture_output=True).stdout
