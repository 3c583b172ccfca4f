"""How a training was started: its script, its arguments, what differs from another start."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import ConfigError
from orchestrator.rundir.completion import has_other_arguments, refuse_other_arguments
from orchestrator.rundir.identity import RunIdentity
from orchestrator.rundir.name_pattern import expand
from orchestrator.rundir.paths import RunDir
from orchestrator.rundir.program import script_of
from orchestrator.rundir.start import Start


@pytest.mark.parametrize(
    ("command", "script"),
    [
        ("python train.py data.csv", "train.py"),
        ("python -W ignore train.py", "train.py"),
        ("bash exp1.sh", "exp1.sh"),
        ("bash exp2.sh -m train.py", "exp2.sh"),
        ("torchrun --nproc-per-node 1 train.py", "train.py"),
        ("uv run train.py", "train.py"),
        ("env A=b bin/python3.11 train.py", "train.py"),
        ("python -m package.train", "train"),
        ("python -m package.train data.csv", "train"),
        ("python -m torch.distributed.run train.py", "train.py"),
        ("python -m", None),
        ("python -c pass", None),
        ("sleep 5", None),
        ("train.py", None),
    ],
)
def test_script_of_a_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, script: str | None
) -> None:
    """The first word that is a file, not counting the program, names the run; else the module."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bin").mkdir()
    for name in ("train.py", "exp1.sh", "exp2.sh", "data.csv", "bin/python3.11"):
        (tmp_path / name).touch()
    assert script_of(command.split()) == script


def write(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("python train.py --lr 1e-3", ["--lr", "1e-3"]),
        ("python3.11 -u -W ignore train.py --lr 1e-3", ["--lr", "1e-3"]),
        ("env LR=1e-3 python train.py 7", ["LR=1e-3", "7"]),
        ("torchrun --nproc-per-node 1 train.py --lr 1", ["--lr", "1"]),
        ("python -m package.train --lr 1", ["--lr", "1"]),
        ("python -c pass 1 2", ["1", "2"]),
        ("./run.sh fast", ["fast"]),
        ("sleep 5", ["5"]),
    ],
)
def test_arguments_are_the_words_behind_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, arguments: list[str]
) -> None:
    """The interpreter and its options are no arguments, so both modes see the same ones."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "train.py")
    write(tmp_path / "run.sh", "#!/bin/sh\n")
    assert Start.of_command(command.split()).arguments == arguments


@pytest.mark.parametrize(
    "command",
    [
        "python {}/train.py",
        "python -m {}.train",
        "./{}/run.sh 1",
        "bash {}/run.sh",
        "python -m torch.distributed.run -m {}.train",
        "python -c {}",
    ],
)
def test_programs_of_one_name_are_refused_in_one_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """Scripts, modules and code of two experiments do not share a run, whatever starts them."""
    monkeypatch.chdir(tmp_path)
    for experiment in ("exp_a", "exp_b"):
        write(tmp_path / experiment / "train.py")
        write(tmp_path / experiment / "run.sh", "#!/bin/sh\n")
    run = RunDir(Path("run"))
    run.create()
    first, second = (command.format(name).split() for name in ("exp_a", "exp_b"))
    known = open_identity(run, first)
    with pytest.raises(ConfigError, match=r"run of .*--run-dir.*--continue"):
        open_identity(run, second)
    assert open_identity(run, first) == known
    assert open_identity(run, second, accept_other=True).run_id == known.run_id


def open_identity(run: RunDir, command: list[str], *, accept_other: bool = False) -> RunIdentity:
    start = Start.of_command(command)
    return RunIdentity.open(
        run, command, script=script_of(command), start=start, accept_other=accept_other
    )


@pytest.mark.parametrize("leave", ["moved", "copied", "script moved"])
def test_moved_project_keeps_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leave: str
) -> None:
    """A project that is moved or copied with its run, or a script that is moved, continues it."""
    write(tmp_path / "old" / "train.py")
    monkeypatch.chdir(tmp_path / "old")
    run = RunDir(Path("runs/train"))
    run.create()
    known, script = open_identity(run, ["python", "train.py"]), "train.py"
    if leave == "script moved":
        write(tmp_path / "old" / "src" / "train.py")
        Path("train.py").unlink()
        script = "src/train.py"
    elif leave == "moved":
        (tmp_path / "old").rename(tmp_path / "new")
    else:
        shutil.copytree(tmp_path / "old", tmp_path / "new")
    if leave != "script moved":
        monkeypatch.chdir(tmp_path / "new")
    moved = open_identity(run, ["python", script])
    assert moved.run_id == known.run_id
    assert moved.program is not None
    assert moved.program["path"] == str(Path(script).resolve())
    assert open_identity(run, ["python", script]) == moved


@pytest.mark.parametrize("command", ["python", "python -", "python3 -u /dev/stdin"])
def test_program_from_standard_input_is_refused_under_a_supervisor(command: str) -> None:
    """A restart would find the end of the input, and would pass for a training without steps."""
    with pytest.raises(ConfigError, match="standard input"):
        Start.of_command(command.split())


def test_differences_show_old_and_new_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arguments, configuration files and the git revision are compared."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    write(tmp_path / "train.py")
    config = write(tmp_path / "config.yaml", "lr: 1")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "train.py", "config.yaml"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "first"], check=True)
    words = ["python", "train.py", "--config=config.yaml", "--lr"]
    first = Start.of_command([*words, "1e-3"])
    assert first.git is not None
    assert not first.git["dirty"]
    assert first.differences_from(Start.of_command([*words, "1e-3"])) == []
    config.write_text("lr: 2")
    subprocess.run([*git, "commit", "-q", "-a", "-m", "second"], check=True)
    second = Start.from_json(json.loads(json.dumps(Start.of_command([*words, "1e-4"]).to_json())))
    assert second is not None
    lines = second.differences_from(first)
    assert lines[0] == "arguments then: --config=config.yaml --lr 1e-3"
    assert lines[1] == "arguments now:  --config=config.yaml --lr 1e-4"
    assert lines[2] == "config.yaml has other content than then"
    assert lines[3].startswith("git revision then: ")
    assert len(lines) == 4


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ("--lr 1e-3 --epochs 3", "train-lr=1e-3,epochs=3"),
        ("--lr=1e-3", "train-lr=1e-3"),
        ("--x -1", "train-x=-1"),
        ("", "train-no-args"),
        ("optimizer.lr=0.1 seed=3", "train-optimizer.lr=0.1,seed=3"),
    ],
)
def test_pattern_names_a_directory_after_the_arguments(arguments: str, name: str) -> None:
    """In runs/{name}-{args} each set of arguments has a directory that people can read."""
    assert expand(Path("runs/{name}-{args}"), "train", arguments.split()) == Path("runs") / name


def test_pattern_tells_unusual_arguments_apart() -> None:
    """Slashes, spaces and long lists are shortened, and still get names of their own."""
    unusual = [["--data", "a/b"], ["--data", "a b"], ["--data", "a_b"], ["x" * 200], ["x" * 201]]
    unusual += [["--flag", "--x", "1"], ["--flag-x", "1"]]
    names = {expand(Path("{args}"), "train", arguments) for arguments in unusual}
    assert len(names) == len(unusual)
    assert all(len(name.parts) == 1 and len(str(name)) < 120 for name in names)


@pytest.mark.parametrize("arguments", [[".."], ["."], ["..."], ["-.."], ["/.."], ["../.."]])
def test_no_argument_leads_to_another_directory(arguments: list[str]) -> None:
    """Whatever the arguments are, the directory is one in runs/."""
    path = expand(Path("runs/{args}"), "train", arguments)
    assert os.path.dirname(os.path.normpath(path)) == "runs"


def test_unknown_name_in_a_pattern_is_refused() -> None:
    """A misspelt name in braces is named, with the ones that exist."""
    with pytest.raises(ConfigError, match=r"\{arg\} is not known; write \{name\}.*\{args\}"):
        expand(Path("runs/{arg}"), "train", [])


OPENS_RUN = """
import sys
from pathlib import Path
from orchestrator.errors import ConfigError
from orchestrator.rundir.identity import RunIdentity
from orchestrator.rundir.paths import RunDir
from orchestrator.rundir.start import Start
def train():
    start, run = Start.of_process(), RunDir(Path("run"))
    run.create()
    try:
        RunIdentity.open(run, sys.argv, script=start.script, start=start)
    except ConfigError as error:
        sys.exit(str(error))
train()
"""


@pytest.mark.parametrize("way", ["path", "module", "-c", "pipe", "redirected"])
def test_programs_of_one_name_are_refused_without_a_supervisor(tmp_path: Path, way: str) -> None:
    """A script, a module, code, and a program on standard input each keep a run of their own."""
    for name in ("exp_a", "exp_b"):
        write(tmp_path / name / "train.py", OPENS_RUN + f"# {name}\nNAME = {name!r}\n")

    def train(name: str) -> subprocess.CompletedProcess[str]:
        path = tmp_path / name / "train.py"
        words = {"path": [str(path)], "module": ["-m", f"{name}.train"], "-c": ["-c"]}
        command = [sys.executable, *words.get(way, ["-"])]
        if way == "-c":
            command.append(path.read_text())
        with open(path) as file:
            return subprocess.run(
                command,
                capture_output=True,
                check=False,
                cwd=tmp_path,
                input=path.read_text() if way == "pipe" else None,
                stdin=file if way == "redirected" else None,
                text=True,
                timeout=60,
            )

    for name in ("exp_a", "exp_a"):
        assert train(name).returncode == 0
    other = train("exp_b")
    assert other.returncode == 1
    assert "it contains the run of" in other.stderr


def test_both_modes_know_a_program_by_the_same_path(tmp_path: Path) -> None:
    """What was trained under a supervisor goes on without one: as a script and as a module."""
    write(
        tmp_path / "a" / "train.py",
        "from orchestrator.rundir.start import Start\n"
        "start = Start.of_process()\nprint(start.script, start.arguments)\n",
    )
    told = set()
    for words in (["a/train.py"], ["-m", "a.train"]):
        command = [sys.executable, *words, "--lr", "1"]
        told.add(subprocess.check_output(command, cwd=tmp_path, text=True, timeout=60).strip())
        with contextlib.chdir(tmp_path):
            start = Start.of_command(command)
        told.add(f"{start.script} {start.arguments}")
    assert told == {f"{tmp_path}/a/train.py ['--lr', '1']"}


@pytest.mark.parametrize(
    "content",
    [
        None,
        {},
        {"command": 1, "arguments": [], "directory": "/"},
        {"command": [], "arguments": [1], "directory": "/"},
        {"command": [], "arguments": [], "directory": "/", "git": 7},
        {"command": [], "arguments": [], "directory": "/", "of a later version": 7},
    ],
)
def test_record_of_another_form_is_not_compared(content: dict[str, Any] | None) -> None:
    """A manifest is data from the disk: what cannot be read there is treated as not known."""
    assert Start.from_json(content) is None


def _with_key(value: str, *words: str) -> Start:
    return Start.of_command(["python", "train.py", "--api-key", value, *words])


def test_secret_in_arguments_is_not_recorded_and_its_change_is_no_difference() -> None:
    """A key that rotates leaves the arguments the same, in done.json and in a directory's name."""
    first, second = _with_key("first-key"), _with_key("second-key")
    assert "first-key" not in json.dumps(first.to_json())
    stored = Start.from_json(json.loads(json.dumps(first.to_json())))
    assert stored is not None
    assert second.differences_from(stored) == []
    assert not has_other_arguments({"start": first.to_json()}, second)
    assert not has_other_arguments({"command": first.to_json()["command"]}, second)
    names = [expand(Path("{args}"), "train", start.arguments) for start in (first, second)]
    assert names[0] == names[1]
    assert "first-key" not in str(names[0])


def test_refusal_of_other_arguments_shows_no_secret(tmp_path: Path) -> None:
    """The arguments of both starts are shown, and the key of neither."""
    run = RunDir(tmp_path)
    run.done_file.write_text(json.dumps({"step": 4, "start": _with_key("first-key").to_json()}))
    with pytest.raises(ConfigError, match="--lr 1") as refusal:
        refuse_other_arguments(run, _with_key("second-key", "--lr", "1"))
    assert "first-key" not in str(refusal.value)
    assert "second-key" not in str(refusal.value)


@pytest.mark.parametrize("command", [5, None, {"a": 1}, "python"])
def test_damaged_command_in_done_json_counts_as_another(tmp_path: Path, command: object) -> None:
    """It is refused like other arguments, whatever stands there."""
    run = RunDir(tmp_path)
    run.done_file.write_text(json.dumps({"step": 4, "command": command}))
    with pytest.raises(ConfigError, match="other arguments"):
        refuse_other_arguments(run, _with_key("key"))


def test_damaged_program_in_run_json_is_treated_as_not_known(tmp_path: Path) -> None:
    """A path that is no text, or that no system takes, refuses no start with a traceback."""
    run = RunDir(tmp_path)
    content = {"format_version": 1, "run_id": "abc", "command": [], "created": "", "script": None}
    (tmp_path / "train.py").touch()
    start = Start.of_command(["python", str(tmp_path / "train.py")])
    for path in (5, "/" + "a" * 5000, "a\0b"):
        run.run_file.write_text(json.dumps({**content, "program": {"path": path}}))
        assert RunIdentity.open(run, start.command, start=start).run_id == "abc"
    module = Start.of_command(["python", "-m", "mine"])
    run.run_file.write_text(json.dumps({**content, "program": {"entry": "-m other"}}))
    with pytest.raises(ConfigError, match="the run of -m other"):
        RunIdentity.open(run, module.command, start=module)


@pytest.mark.parametrize("run_id", ["", "a" * 129, "../up", "a/b", "a b", "\x1b[2J", "-x", 7, None])
def test_id_that_no_tracker_could_use_is_refused(tmp_path: Path, run_id: object) -> None:
    """The id of a run gets into the environment of its script, and into paths there."""
    run = RunDir(tmp_path)
    content = {"format_version": 1, "run_id": run_id, "command": [], "created": "", "script": None}
    run.run_file.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="it is damaged"):
        RunIdentity.open(run, ["python"])
