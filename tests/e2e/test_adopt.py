"""Unmodified scripts under `orchestrator run --adopt`, killed and stopped, also during saves."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from orchestrator.checkpoint.newest_valid import newest_valid
from tests.e2e.support import (
    Supervised,
    WarmTrainers,
    clean_environment,
    events,
    forked_by,
    forking_server,
    open_store,
    orchestrator,
    wait_for,
)

SCRIPTS = Path(__file__).parent.parent / "adopt" / "scripts"
PLAIN = SCRIPTS / "plain.py"
RESTARTED = SCRIPTS / "restarted.py"
PAIRS = SCRIPTS / "pairs.py"
SHARDED = SCRIPTS / "sharded.py"
NUMBERED = ("--adopt", "out/model_*.pt", "--resume-arg", "--resume {path}")
ONE_FILE = ("--adopt", "out/last.pt", "--resume-arg", "--resume {path}")
TRAINER = ("--adopt", "out/checkpoint-*", "--resume-arg", "--resume_from_checkpoint {path}")

Start = Callable[..., Supervised]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Yield the address of a process that has imported the frameworks and forks trainers."""
    address = tmp_path_factory.mktemp("frameworks") / "server"
    modules = ("transformers.trainer", "accelerate", "lightning.pytorch")
    modules += ("torch.distributed.checkpoint",)
    with forking_server(address, *modules, PYTHONPATH=str(SCRIPTS)):
        yield address


@pytest.fixture
def adopt(supervise: Start, server: Path) -> Start:
    """Return a function that starts a script in adopt mode, with trainers forked by the server."""

    def start(script: Path, *arguments: str, options: tuple[str, ...]) -> Supervised:
        command = [*forked_by(server), str(script), *arguments]
        return supervise(command=command, options=options)

    return start


def first_line_of(run: Supervised, attempt: int) -> str:
    """Return the line in which an attempt prints where it begins."""
    output = run.run.attempt(attempt).output_file.read_text()
    return next(line for line in output.splitlines() if line.startswith("begins"))


def quarantined(run: Supervised) -> set[str]:
    """Return the names in quarantine, each with its reason."""
    notes = run.run.quarantine.glob("*/quarantine.json")
    return {f"{note.parent.name}: {json.loads(note.read_text())['reason']}" for note in notes}


@pytest.mark.parametrize(
    ("script", "arguments", "pause", "options"),
    [
        pytest.param(PLAIN, ("--steps", "80"), "0.05", ONE_FILE, id="one-file"),
        pytest.param(PLAIN, ("--steps", "80", "--numbered"), "0.05", NUMBERED, id="numbered"),
        # A save counts when it has been at rest as long as the next one takes to come, or with
        # that: each attempt may take two of them.
        pytest.param(SCRIPTS / "trainer.py", ("--steps", "60"), "0.2", TRAINER, id="trainer"),
    ],
)
def test_kills_and_stops_do_not_change_the_result(
    adopt: Start,
    server: Path,
    tmp_path: Path,
    script: Path,
    arguments: tuple[str, ...],
    pause: str,
    options: tuple[str, ...],
) -> None:
    """After three SIGKILLs and a SIGTERM the final weights are those of an undisturbed run."""
    undisturbed = tmp_path / "undisturbed"
    undisturbed.mkdir()
    command = [*forked_by(server), str(script), *arguments]
    subprocess.run(command, cwd=undisturbed, env=clean_environment(), check=True, timeout=90)

    trainers = WarmTrainers(server)
    run = adopt(script, *arguments, "--pause", pause, options=options)
    for kills in range(3):
        trainer = trainers.newest()
        run.wait_for_event("checkpoint_published", len(events(run.run, "checkpoint_published")) + 1)
        assert trainer is not None
        trainer.kill()
        run.wait_for_event("attempt_started", kills + 2)
    run.wait_for_event("checkpoint_published", len(events(run.run, "checkpoint_published")) + 1)
    run.signal(signal.SIGTERM)
    # It ends at once, as any program does; 75 if it was in the middle of a save.
    assert run.end()[0] in (74, 75)
    run = adopt(script, *arguments, options=options)
    assert run.end()[0] == 0

    starts = events(run.run, "attempt_started")
    assert len(starts) == 5
    assert all(start["resume_step"] for start in starts[1:])
    assert orchestrator("checkpoints", "verify", "run", cwd=tmp_path).returncode == 0
    mine, other = (torch.load(d / "final.pt") for d in (tmp_path, undisturbed))
    assert all(torch.equal(mine[name], other[name]) for name in other)


@pytest.mark.parametrize(
    ("script", "arguments", "pattern", "resume", "left"),
    [
        pytest.param(
            PLAIN,
            ("--numbered", "--kill-save-at", "10"),
            "out/model_*.pt",
            "--resume {path}",
            "partial-model_0010.pt: model_0010.pt is cut off",
            id="torch.save",
        ),
        pytest.param(
            SCRIPTS / "trainer.py",
            ("--kill-save", "write"),
            "out/checkpoint-*",
            "--resume_from_checkpoint {path}",
            "partial-checkpoint-10: optimizer.pt is cut off",
            id="trainer",
        ),
        pytest.param(
            SCRIPTS / "trainer.py",
            ("--kill-save", "between"),
            "out/checkpoint-*",
            "--resume_from_checkpoint {path}",
            "partial-checkpoint-10: it lacks trainer_state.json, which the Trainer writes last",
            id="trainer-between-files",
        ),
        pytest.param(
            SCRIPTS / "accelerated.py",
            ("--kill-save",),
            "out/step_*",
            "{path}",
            "partial-step_10: optimizer.bin is cut off",
            id="accelerate",
        ),
        pytest.param(
            SCRIPTS / "distributed.py",
            (),
            "out/step-*",
            "{path}",
            "partial-step-10: it lacks .metadata, which is written last",
            id="dcp",
        ),
        pytest.param(
            SCRIPTS / "lit.py",
            ("--kill-save",),
            "out/*.ckpt",
            "{path}",
            "partial-epoch=9-step=10.ckpt: epoch=9-step=10.ckpt is cut off",
            id="lightning",
        ),
    ],
)
def test_killed_save_is_never_resumed_from(
    adopt: Start,
    tmp_path: Path,
    script: Path,
    arguments: tuple[str, ...],
    pattern: str,
    resume: str,
    left: str,
) -> None:
    """An incomplete save is quarantined with the reason, and an older one is used."""
    run = adopt(script, *arguments, options=("--adopt", pattern, "--resume-arg", resume))
    assert run.end()[0] == 0
    assert [e["resume_step"] for e in events(run.run, "attempt_started")] == [None, 5]
    assert "5" in first_line_of(run, 2)
    assert quarantined(run) == {left}
    assert events(run.run, "checkpoint_quarantined")[0]["path"].startswith(str(tmp_path / "out"))
    # Done again, it is a checkpoint like any other.
    steps = [checkpoint.manifest.step for checkpoint in open_store(run.run).all()]
    assert 10 in steps
    assert orchestrator("checkpoints", "verify", "run", cwd=tmp_path).returncode == 0


def test_torn_file_is_restored_for_a_script_that_finds_it_itself(adopt: Start) -> None:
    """A file that the script overwrites and loads by itself is restored from its last version."""
    arguments = ("--by-itself", "--pause", "0.3", "--steps", "15", "--kill-save-at", "10")
    run = adopt(PLAIN, *arguments, options=("--adopt", "out/last.pt"))
    assert run.end()[0] == 0
    assert first_line_of(run, 2) == "begins at 5"
    assert quarantined(run) == {"partial-last.pt: last.pt is cut off"}


def test_damaged_newest_checkpoint_is_moved_out_of_sight(adopt: Start, tmp_path: Path) -> None:
    """Digests are verified before each start; a damaged file is moved out of the script's sight."""
    run = adopt(PLAIN, "--numbered", "--steps", "10", options=NUMBERED)
    assert run.end()[0] == 0
    with open(tmp_path / "out" / "model_0010.pt", "r+b") as file:
        file.seek(3000)
        byte = file.read(1)[0]
        file.seek(3000)
        file.write(bytes([byte ^ 1]))
    times = open_store(run.run).all()[-1].manifest.adopted
    assert times is not None
    # Damage on a disk does not change the modification time.
    modified = times.modified_ns["model_0010.pt"]
    shutil.os.utime(tmp_path / "out" / "model_0010.pt", ns=(modified, modified))  # type: ignore[attr-defined]
    run = adopt(PLAIN, "--numbered", "--steps", "12", options=NUMBERED)
    assert run.end()[0] == 0
    assert first_line_of(run, 2) == "begins at 5"
    assert quarantined(run) == {"step-000000000010: model_0010.pt has changed: wrong digest"}
    kept = run.run.quarantine / "step-000000000010" / "content" / "model_0010.pt"
    assert kept.exists()


def test_stop_is_saved_by_a_script_that_saves_on_its_signal(
    supervise: Start, tmp_path: Path
) -> None:
    """The status is 75 if a checkpoint follows the request; a save on demand is refused."""
    script = [sys.executable, str(PLAIN), "--on-sigterm", "save"]
    run = supervise(command=[*script, "--pause", "0.05", "--steps", "1000000"], options=ONE_FILE)
    run.wait_for_event("checkpoint_published")
    refused = orchestrator("checkpoint", "run", cwd=tmp_path)
    assert refused.returncode == 74
    assert "cannot be asked to save now" in refused.stderr
    status = run.status()
    assert status["newest_checkpoint"]["step"] == status["step"] >= 1
    assert orchestrator("stop", "run", cwd=tmp_path).returncode == 0
    assert run.end()[0] == 75
    assert events(run.run, "checkpoint_published")[-1]["reason"] == "emergency"
    listed = orchestrator("checkpoints", "list", "run", "--json", cwd=tmp_path)
    assert all(row["valid"] for row in json.loads(listed.stdout))


def test_stop_without_a_save_says_so(adopt: Start) -> None:
    """The status is 74 if no checkpoint follows the request."""
    run = adopt(PLAIN, "--pause", "0.6", options=ONE_FILE)
    run.wait_for_event("checkpoint_published")
    run.signal(signal.SIGTERM)
    status, _, stderr = run.end()
    assert status == 74
    assert "stopped, but the last steps are not saved; run the same command again" in stderr
    assert "checkpoint=" not in stderr


@pytest.mark.parametrize(
    ("way", "pattern", "under_way"),
    [
        ("file", "out/m_*.json", "half of"),
        # The first save of a directory shows nothing to compare the next one with.
        ("directory", "out/m_*", "half of out/m_1"),
        ("renamed", "out/last.json", "half of"),
    ],
)
def test_stop_in_the_middle_of_a_save_lets_it_end(
    supervise: Start, way: str, pattern: str, under_way: str
) -> None:
    """The stop signal is sent when the save is complete, and the status is 75."""
    command = [sys.executable, str(RESTARTED), way, "1"]
    run = supervise(command=command, options=("--adopt", pattern))
    run.wait_for_output(under_way)
    run.signal(signal.SIGTERM)
    status, _, stderr = run.end()
    assert "a save is under way" in stderr
    assert status == 75, stderr
    assert events(run.run, "checkpoint_published")[-1]["reason"] == "emergency"
    assert not list(run.run.quarantine.glob("*"))


ALWAYS_SAVING = """
import json
from pathlib import Path
for number in range(3000):
    directory = Path(f"out/c-{number}")
    directory.mkdir(parents=True, exist_ok=True)
    for name in ("a.json", "b.json"):
        (directory / name).write_text(json.dumps({"text": "x" * 1_000_000}))
    print(number, flush=True)
"""


def test_stop_waits_for_no_save_that_begins_later(supervise: Start) -> None:
    """A script that is always in a save is stopped long before the end of the grace period."""
    command = [sys.executable, "-S", "-c", ALWAYS_SAVING]
    run = supervise(command=command, options=("--adopt", "out/c-*", "--grace", "10m"))
    run.wait_for_event("checkpoint_published")
    run.signal(signal.SIGTERM)
    status, output, stderr = run.end()
    assert "a save is under way" in stderr
    assert status in (74, 75)
    assert int(output.splitlines()[-1]) < 2999


def test_numbers_that_begin_anew_do_not_run_in_circles(supervise: Start) -> None:
    """Each attempt resumes from what the one before it saved last, and this is said once."""
    command = [sys.executable, str(RESTARTED), "renumber", "4"]
    run = supervise(command=command, options=("--adopt", "out/m_*.json"))
    status, _, stderr = run.end()
    assert status == 0
    begun = [first_line_of(run, attempt) for attempt in (1, 2, 3, 4)]
    assert begun == [f"begins with work {work}" for work in (0, 2, 4, 6)]
    assert stderr.count("begins to number its saves again") == 1


@pytest.mark.parametrize(
    ("way", "patterns"),
    [
        ("numbered", ["out/netG_epoch_*.json", "out/netD_epoch_*.json"]),
        ("fixed", ["out/{netG,netD}.json"]),
        ("variable", ["out/net{G,D}_epoch_*.json"]),
    ],
)
def test_files_of_a_unit_are_resumed_from_together(
    supervise: Start, way: str, patterns: list[str]
) -> None:
    """A kill between the two files of a save costs that save, and never mixes two of them."""
    options = [word for pattern in patterns for word in ("--adopt", pattern)]
    if way != "variable":
        options += ["--resume-arg", "--netG {netG} --netD {netD}"]
    command = [sys.executable, str(PAIRS), way, "3"]
    run = supervise(command=command, options=tuple(options))
    status, _, stderr = run.end()
    assert status == 0, stderr
    begun = [first_line_of(run, attempt) for attempt in (1, 2, 3)]
    assert begun == [
        "begins with work []",
        "begins with work [('netD', 2), ('netG', 2)]",
        "begins with work [('netD', 4), ('netG', 4)]",
    ]
    assert stderr.count("an unfinished save was moved to quarantine") == 2
    store = open_store(run.run)
    newest = newest_valid(store)
    assert newest is not None
    saved = [json.loads(path.read_text()) for path in newest.script_paths.values()]
    assert saved == [{"work": 7, "of": "netG"}, {"work": 7, "of": "netD"}]


def test_file_that_names_a_torn_checkpoint_names_the_one_before_again(adopt: Start) -> None:
    """A script that resumes by DeepSpeed's `latest` goes on from the last save of both ranks."""
    run = adopt(SHARDED, "3", options=("--adopt", "out/global_step*"))
    status, _, stderr = run.end()
    assert status == 0, stderr
    begun = [first_line_of(run, attempt) for attempt in (1, 2, 3)]
    assert begun == [f"begins at step {step}" for step in (0, 2, 4)]
    said = " ".join(stderr.split())
    assert said.count("latest named global_step") == 2
    assert "latest named global_step3, which is no whole checkpoint: it names global_step2" in said


def test_part_of_a_unit_that_never_comes_is_told_of(supervise: Start) -> None:
    """A wrong pattern is named within one attempt, once, and nothing is moved."""
    command = [sys.executable, str(PAIRS), "numbered", "1"]
    options = ("--adopt", "out/netG_epoch_*.json", "--adopt", "out/netE_epoch_*.json")
    status, _, stderr = supervise(command=command, options=options).end()
    assert status == 0
    told = "it lacks netE_epoch_1.json, which belongs to it"
    assert " ".join(stderr.split()).count(told) == 1


@pytest.mark.parametrize(
    ("way", "pattern", "advice"),
    [
        ("unread", "out/last.json", "offered, not read"),
        ("elsewhere", "out/last.json", "--adopt 'out*/last.json'"),
    ],
)
def test_script_that_begins_from_zero_is_told_of_once_and_makes_no_progress(
    supervise: Start, way: str, pattern: str, advice: str
) -> None:
    """Three attempts come as far as each other: the budget of restarts is not refilled."""
    command = [sys.executable, str(RESTARTED), way, "9"]
    options = ("--adopt", pattern, "--max-restarts", "2")
    run = supervise(command=command, options=options)
    status, _, stderr = run.end()
    assert status == 70
    assert stderr.count(advice) == 1
    if way == "unread":
        assert events(run.run, "gave_up")[-1]["reason"].startswith("the script begins from zero")


SAVES_ONCE = """
import os, signal
from pathlib import Path
Path("out").mkdir(exist_ok=True)
Path("out/last.json").write_text('{"work": 1}')
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_script_that_saves_once_and_reads_nothing_is_told_of(supervise: Start) -> None:
    """It ends before the supervisor watches what it writes, and is told of all the same."""
    command = [sys.executable, "-S", "-c", SAVES_ONCE]
    options = ("--adopt", "out/last.json", "--max-restarts", "1")
    status, _, stderr = supervise(command=command, options=options).end()
    assert status == 70
    assert stderr.count("offered, not read") == 1


READS_NOTHING = """
import os, signal, time
from pathlib import Path
was_here = Path("out").exists()
Path("out").mkdir(exist_ok=True)
for number in range(1000 if was_here else 4):
    Path("out/last.json").write_text(f'{{"number": {number}}}')
    time.sleep(0.3)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_stop_of_a_script_that_reads_nothing_promises_no_resume(supervise: Start) -> None:
    """The next start begins from zero, whatever there is, and the message says so."""
    command = [sys.executable, "-S", "-c", READS_NOTHING]
    run = supervise(command=command, options=("--adopt", "out/last.json"))
    run.wait_for_event("attempt_started", 2)
    log = run.run.log_file
    wait_for(lambda: "offered, not read" in log.read_text(), "what the supervisor says of that")
    run.signal(signal.SIGTERM)
    status, _, stderr = run.end()
    assert status == 74
    assert "run the same command again; it begins from the start" in stderr


def test_status_of_a_script_has_no_parts_of_a_session(supervise: Start) -> None:
    """It trains from its start, without a phase and without a spare."""
    command = [sys.executable, str(RESTARTED), "file", "1"]
    run = supervise(command=command, options=("--adopt", "out/m_*.json"))
    run.wait_for_event("checkpoint_published")
    status = run.status()
    assert status["state"] == "training"
    assert status["phase"] is None
    assert status["spare"] is None
    run.end()
    again = supervise(command=command, options=("--adopt", "out/m_*.json"))
    assert "the run was complete: the script is started again" in again.end()[2]


def test_repeated_failure_tries_an_older_checkpoint_once(adopt: Start) -> None:
    """After a repeated failure one older checkpoint is tried, then the run gives up."""
    run = adopt(PLAIN, "--numbered", "--fail-at", "12", options=NUMBERED)
    assert run.end()[0] == 70
    assert [e["resume_step"] for e in events(run.run, "attempt_started")] == [None, 10, 5]
    assert [e["demoted"] for e in events(run.run, "checkpoint_quarantined")] == [True]


def test_session_in_adopt_mode_is_refused(supervise: Start, tmp_path: Path) -> None:
    """A script with a session cannot run with --adopt, and the message says what to do."""
    run = supervise("--epochs", "1", options=("--adopt", "out/*.pt"))
    status, _, stderr = run.end()
    assert status == 78
    assert "leave one of the two out" in stderr + run.run.attempt(1).output_file.read_text()


def test_pattern_without_a_match_is_reported_once(adopt: Start) -> None:
    """A run whose pattern matches no file warns once."""
    run = adopt(PLAIN, "--numbered", "--steps", "5", options=("--adopt", "elsewhere/*.pt"))
    status, _, stderr = run.end()
    assert status == 0
    assert stderr.count("nothing matches --adopt elsewhere/*.pt") == 1


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--resume-arg", "--resume {path}"), "cannot use --resume-arg without --adopt"),
        (("--adopt", "a.pt", "--resume-arg", "--r {step}"), "cannot fill in {step}"),
        (("--adopt", "a*", "--resume-arg", "--r={foo}"), "there are {path} and {step}, not {foo}"),
        (("--adopt", "e*/a.pt", "--resume-arg", "--r {step}"), "has no wildcard"),
        (("--adopt", "**/a"), "name each level"),
        (("--adopt", "*"), "also matches the run directory"),
        (("--adopt", "runs/true/*.json"), "or a file in it"),
        (("--adopt", "out/*/step-*", "--run-dir", "a/../out"), "or a file in it"),
        (("--adopt", "g_*", "--adopt", "d.pt"), "different numbers of wildcards"),
        (("--adopt", "{g,d}_*", "--resume-arg", "{g} {e}"), "{path1} and {path2}, not {e}"),
        (("--adopt", "a*", "--adopt", "runs/*"), "also matches the run directory"),
        (("--stop-signal", "KILL"), "no program can handle this signal"),
    ],
)
def test_invalid_adopt_options_are_refused_at_the_start(
    tmp_path: Path, options: tuple[str, ...], problem: str
) -> None:
    """Options that cannot work are refused before the training starts."""
    result = orchestrator("run", *options, "--", "true", cwd=tmp_path)
    assert result.returncode == 78
    assert problem in result.stderr
    assert "Traceback" not in result.stderr


def test_run_of_a_session_and_run_of_a_script_do_not_mix(tmp_path: Path) -> None:
    """Neither kind of run continues the other kind, nor does an import mix them."""
    (tmp_path / "out").mkdir()
    torch.save({}, tmp_path / "out" / "last.pt")
    adopted = ("--adopt", "out/last.pt", "--", "true")
    assert orchestrator("run", "--run-dir", "run", *adopted, cwd=tmp_path).returncode == 0
    without = orchestrator("run", "--run-dir", "run", "--", "true", cwd=tmp_path)
    assert without.returncode == 78
    assert "give --adopt again" in without.stderr
    torch.save({"epoch": 1, "model_state_dict": {}}, tmp_path / "classic.pt")
    mixed = orchestrator("checkpoints", "import", "classic.pt", "run", cwd=tmp_path)
    assert mixed.returncode == 78
    assert "a script that saves for itself" in mixed.stderr
    imported = orchestrator("checkpoints", "import", "classic.pt", "other", cwd=tmp_path)
    assert imported.returncode == 0, imported.stderr
    refused = orchestrator("run", "--run-dir", "other", *adopted, cwd=tmp_path)
    assert refused.returncode == 78
    assert "leave --adopt out" in refused.stderr


def test_rotation_deletes_only_files_that_the_run_wrote(adopt: Start, tmp_path: Path) -> None:
    """With --keep only files that this run was seen writing are deleted."""
    (tmp_path / "out").mkdir()
    torch.save({}, tmp_path / "out" / "model_0001.pt")
    run = adopt(
        PLAIN,
        "--numbered",
        "--steps",
        "25",
        options=("--adopt", "out/model_*.pt", "--keep", "2"),
    )
    assert run.end()[0] == 0
    wait_for(lambda: len(events(run.run, "checkpoint_deleted")) == 3, "deletions")
    left = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert left == ["model_0001.pt", "model_0020.pt", "model_0025.pt"]
