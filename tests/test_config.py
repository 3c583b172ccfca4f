"""The settings: their sources, and the values that are refused."""

import itertools
import os
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from orchestrator.checkpoint.retention import BestPolicy, RetentionPolicy
from orchestrator.cli.parser import parse
from orchestrator.config import Config, Every, option_words
from orchestrator.config_file import MAXIMUM_FILE_BYTES, others_who_may_set
from orchestrator.errors import ConfigError
from orchestrator.system.units import parse_duration
from tests.support import NOBODY
from tests.system.opens import not_opened

# From the strongest to the weakest.
SOURCES = ("command line", "environment", "orchestrator.toml", "pyproject.toml")


def resolve(directory: Path, name: str, values: dict[str, str]) -> Config:
    """Resolve the settings with ``name`` set in each of the given sources."""
    if (text := values.get("orchestrator.toml")) is not None:
        (directory / "orchestrator.toml").write_text(f"{name} = '{text}'\n")
    if (text := values.get("pyproject.toml")) is not None:
        content = f"[project]\nname = 'mine'\n[tool.orchestrator]\n{name} = '{text}'\n"
        (directory / "pyproject.toml").write_text(content)
    environment = {"PATH": "/bin"}
    if (text := values.get("environment")) is not None:
        environment[f"ORCHESTRATOR_{name.upper()}"] = text
    return Config.resolve({name: values.get("command line")}, environment, directory)


def test_defaults(tmp_path: Path) -> None:
    """By default a run keeps three checkpoints and saves every ten minutes."""
    config = Config.resolve({}, {}, tmp_path)
    assert config == Config(
        run_dir=None,
        keep=None,
        keep_best=None,
        every=Every(600.0, "seconds"),
        grace=30.0,
        max_restarts=5,
    )
    assert config.retention == RetentionPolicy(keep=3, best=None)


@pytest.mark.parametrize(
    "present",
    [c for size in range(1, 5) for c in itertools.combinations(SOURCES, size)],
    ids=lambda sources: "+".join(sources),
)
def test_strongest_source_wins(tmp_path: Path, present: tuple[str, ...]) -> None:
    """The order is command line, environment, orchestrator.toml, pyproject.toml."""
    values = {source: str(2 + SOURCES.index(source)) for source in present}
    assert resolve(tmp_path, "keep", values).keep == int(values[present[0]])


def test_setting_that_repeats_takes_a_list_or_braces(tmp_path: Path) -> None:
    """Each source can give several patterns, and they reach another command line as they were."""
    words = ["run", "--adopt", "a_*", "--adopt", "b_*", "--", "true"]
    given = parse(words).adopt
    assert option_words({"adopt": given}) == words[1:-2]
    of_command = Config.resolve({"adopt": given}, {}, tmp_path).adopt
    of_variable = Config.resolve({}, {"ORCHESTRATOR_ADOPT": "{a,b}_*"}, tmp_path).adopt
    (tmp_path / "orchestrator.toml").write_text("adopt = ['a_*', 'b_*']\n")
    of_file = Config.resolve({}, {}, tmp_path).adopt
    assert of_command == of_variable == of_file
    assert of_file is not None
    assert [pattern.text for pattern in of_file.patterns] == ["a_*", "b_*"]
    for text in ("adopt = []", "adopt = [['a']]", "keep = ['3', '4']"):
        (tmp_path / "orchestrator.toml").write_text(text + "\n")
        with pytest.raises(ConfigError, match="write a text or a number"):
            Config.resolve({}, {}, tmp_path)


@pytest.mark.parametrize("name", ["run-dir", "adopt", "resume-arg", "on-event", "notice-file"])
def test_text_with_a_nul_is_refused(tmp_path: Path, name: str) -> None:
    """A NUL, which a file can hold, fits into no path and no command."""
    (tmp_path / "orchestrator.toml").write_text(f'{name} = "a\\u0000b"\n')
    with pytest.raises(ConfigError, match=r"in orchestrator\.toml: it has a NUL"):
        Config.resolve({}, {}, tmp_path)


def test_sources_are_combined(tmp_path: Path) -> None:
    """Each setting comes from the strongest source that has it."""
    (tmp_path / "orchestrator.toml").write_text("keep = 5\ngrace = '5s'\nmax-restarts = 7\n")
    environment = {"ORCHESTRATOR_GRACE": "50s", "ORCHESTRATOR_EVERY": "2epochs"}
    config = Config.resolve({"every": "9steps", "keep": None}, environment, tmp_path)
    assert (config.keep, config.grace, config.max_restarts) == (5, 50.0, 7)
    assert config.every == Every(9, "steps")


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("run_dir", "runs/other", Path("runs/other")),
        ("keep", "2", 2),
        ("keep", "100", 100),
        ("keep_best", "loss:min", BestPolicy("loss", "min", 1)),
        ("keep_best", "val_accuracy:max:3", BestPolicy("val_accuracy", "max", 3)),
        ("every", "10m", Every(600.0, "seconds")),
        ("every", "500ms", Every(0.5, "seconds")),
        ("every", "500steps", Every(500, "steps")),
        ("every", "1step", Every(1, "steps")),
        ("every", "1epoch", Every(1, "epochs")),
        ("every", "2epochs", Every(2, "epochs")),
        ("grace", "90s", 90.0),
        ("grace", "1.5h", 5400.0),
        ("grace", "2d", 172800.0),
        ("max_restarts", "0", 0),
        ("spare", "on", True),
        ("spare", "off", False),
        ("slurm_requeue", "on", True),
        ("notice_file", "/run/notice", Path("/run/notice")),
        ("notice_command", "curl -sf localhost", "curl -sf localhost"),
        ("metrics_file", "/run/train.prom", Path("/run/train.prom")),
        ("nproc_per_node", "4", 4),
        ("nproc_per_node", "gpu", "gpu"),
        ("log_format", "auto", "auto"),
        ("log_format", "json", "json"),
    ],
)
@pytest.mark.parametrize("source", SOURCES)
def test_good_values(tmp_path: Path, source: str, name: str, text: str, expected: Any) -> None:
    """Each form of a value is accepted from every source."""
    assert getattr(resolve(tmp_path, name, {source: text}), name) == expected


@pytest.mark.parametrize(
    ("name", "text", "advice"),
    [
        ("run_dir", "", "directory"),
        ("keep", "1", "at least 2: with a single checkpoint, damage to it loses the run"),
        ("keep", "0", "at least 2"),
        ("keep", "-3", "whole number"),
        ("keep", "2.5", "whole number"),
        ("keep", "three", "whole number"),
        ("keep", "", "whole number"),
        ("keep", "True", "whole number"),
        ("keep_best", "loss", "METRIC:min"),
        ("keep_best", "loss:lowest", "METRIC:min"),
        ("keep_best", "loss:min:0", "METRIC:min"),
        ("keep_best", ":min", "METRIC:min"),
        ("every", "10", "10m, 500steps or 1epoch"),
        ("every", "0steps", "at least 1"),
        ("every", "0s", "longer than 0"),
        ("every", "-5m", "10m, 500steps or 1epoch"),
        ("every", "1.5epochs", "10m, 500steps or 1epoch"),
        ("every", "steps", "10m, 500steps or 1epoch"),
        ("every", "10m 5s", "10m, 500steps or 1epoch"),
        ("grace", "30", "90s, 10m or 2h"),
        ("grace", "0s", "longer than 0"),
        ("grace", "0.0m", "longer than 0"),
        ("grace", "1e3s", "90s, 10m or 2h"),
        ("grace", "soon", "90s, 10m or 2h"),
        ("max_restarts", "-1", "whole number"),
        ("max_restarts", "1.0", "whole number"),
        ("max_restarts", "off", "whole number"),
        ("spare", "no", "on or off"),
        ("spare", "1", "on or off"),
        ("slurm_requeue", "yes", "on or off"),
        ("notice_file", "", "name a file"),
        ("notice_command", " ", "write a command"),
        ("nproc_per_node", "0", "from 1 to 32"),
        ("nproc_per_node", "33", "from 1 to 32"),
        ("nproc_per_node", "all", "a number of processes, gpu or cpu"),
        ("log_format", "xml", "auto, text or json"),
    ],
)
@pytest.mark.parametrize("source", SOURCES)
def test_bad_values(tmp_path: Path, source: str, name: str, text: str, advice: str) -> None:
    """A bad value is refused with its source, the value, and what to write instead."""
    with pytest.raises(ConfigError) as caught:
        resolve(tmp_path, name, {source: text})
    message = str(caught.value)
    place = {
        "command line": "--" + name.replace("_", "-"),
        "environment": f"ORCHESTRATOR_{name.upper()}",
    }.get(source, f"{name} in {source}")
    assert message.startswith(f"cannot use {place} = {text}: ")
    assert advice in message


def test_number_of_ranks_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is one for each CPU or visible GPU; no GPU at all is an error with advice."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    numbers = {"3": 3, "gpu": 3, "cpu": min(32, len(os.sched_getaffinity(0)))}
    for text, number in numbers.items():
        assert resolve(tmp_path, "nproc_per_node", {"command line": text}).world_size() == number
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ConfigError, match="write a number of processes"):
        resolve(tmp_path, "nproc_per_node", {"command line": "gpu"}).world_size()


def test_overridden_bad_value_is_ignored(tmp_path: Path) -> None:
    """A bad value does not prevent a start if a stronger source replaces it."""
    assert resolve(tmp_path, "keep", {"command line": "4", "environment": "bad"}).keep == 4


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("keep = 4", {"keep": 4}),
        ("max-restarts = 0", {"max_restarts": 0}),
        ("keep = 1", None),
        ("keep = 2.0", None),
        ("keep = true", None),
        ("keep = [3]", None),
        ("every = 500", None),
        ("grace = 30", None),
        ("run_dir = ['a']", None),
        ("[keep]\nnewest = 3", None),
    ],
)
def test_toml_numbers_are_accepted_and_other_types_refused(
    tmp_path: Path, line: str, expected: dict[str, Any] | None
) -> None:
    """A TOML file may hold numbers and texts; values of other types are refused."""
    (tmp_path / "orchestrator.toml").write_text(line)
    if expected is None:
        with pytest.raises(ConfigError, match=r"^cannot use .* in orchestrator.toml"):
            Config.resolve({}, {}, tmp_path)
    else:
        config = Config.resolve({}, {}, tmp_path)
        assert {name: getattr(config, name) for name in expected} == expected


def test_unknown_setting_is_refused(tmp_path: Path) -> None:
    """A misspelt key is named, with the file and the existing keys."""
    (tmp_path / "orchestrator.toml").write_text("kep = 3\ngrace = '5s'\n")
    with pytest.raises(ConfigError, match=r"^cannot use .*orchestrator\.toml.*kep,") as caught:
        Config.resolve({}, {}, tmp_path)
    assert all(setting.name in str(caught.value) for setting in fields(Config))


@pytest.mark.parametrize(
    "content",
    [
        b"keep = ",
        b"\xff\xfe",
        b"keep = 3\nkeep = 4\n",
    ],
)
@pytest.mark.parametrize("name", ["orchestrator.toml", "pyproject.toml"])
def test_file_that_is_not_toml_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    """A configuration file that cannot be read is refused by name and not ignored."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=f"^cannot read .*{name}"):
        Config.resolve({}, {}, tmp_path)


@pytest.mark.parametrize("content", ["[tool]\norchestrator = 3", "[tool]\norchestrator = ['keep']"])
def test_tool_entry_that_is_not_a_table_is_refused(tmp_path: Path, content: str) -> None:
    """A [tool.orchestrator] that is not a table is refused by name."""
    (tmp_path / "pyproject.toml").write_text(content)
    with pytest.raises(ConfigError, match=r"^cannot .*pyproject\.toml"):
        Config.resolve({}, {}, tmp_path)


@pytest.mark.parametrize(
    "content", ["", "[tool.ruff]\nkeep = 9", "tool = 3", "[project]\nkeep = 9"]
)
def test_project_file_without_the_table_sets_nothing(tmp_path: Path, content: str) -> None:
    """Settings of other tools are ignored."""
    (tmp_path / "pyproject.toml").write_text(content)
    assert Config.resolve({}, {}, tmp_path) == Config()


def test_unreadable_file_is_refused(tmp_path: Path) -> None:
    """A directory with the name of the configuration file is refused with the system's reason."""
    (tmp_path / "orchestrator.toml").mkdir()
    with pytest.raises(ConfigError, match=r"^cannot read .*Is a directory"):
        Config.resolve({}, {}, tmp_path)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("200ms", 0.2), ("90s", 90.0), ("10m", 600.0), ("1.5h", 5400.0), ("1d", 86400.0), ("0s", 0.0)],
)
def test_duration_is_a_number_and_a_unit(text: str, seconds: float) -> None:
    """A duration is a number with a unit, in seconds when parsed."""
    assert parse_duration(text) == parse_duration(f" {text} ") == seconds


def test_every_setting_has_a_help_sentence() -> None:
    """The help of each setting is a whole sentence."""
    for setting in fields(Config):
        assert setting.metadata["help"].endswith(".")


@pytest.mark.parametrize("value", [True, False])
def test_switch_accepts_true_and_false_in_toml(tmp_path: Path, value: bool) -> None:
    """In a TOML file, true and false mean on and off."""
    (tmp_path / "orchestrator.toml").write_text(f"spare = {str(value).lower()}\n")
    assert Config.resolve({}, {}, tmp_path).spare is value


@pytest.mark.parametrize(("word", "expected"), [("--spare", "on"), ("--no-spare", "off")])
def test_switch_has_two_options_on_the_command_line(word: str, expected: str) -> None:
    """--spare and --no-spare mean on and off."""
    assert parse(["run", word, "--", "true"]).spare == expected
    assert parse(["run", "--", "true"]).spare is None


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize("name", ["orchestrator.toml", "pyproject.toml"])
@pytest.mark.parametrize("case", ["owner", "mode", "link"])
def test_file_of_a_stranger_is_refused(tmp_path: Path, name: str, case: str) -> None:
    """What another user has put, or may have written, into the directory sets nothing."""
    table = "[tool.orchestrator]\n" if name == "pyproject.toml" else ""
    path = tmp_path / name
    path.write_text(f"{table}on_event = 'echo'\n")
    assert Config.resolve({}, {}, tmp_path).on_event == "echo"
    if case == "owner":
        os.chown(path, NOBODY, NOBODY)
    elif case == "mode":
        path.chmod(0o666)
    else:
        path.rename(tmp_path / "own.toml")
        path.symlink_to("own.toml")
        assert Config.resolve({}, {}, tmp_path).on_event == "echo"
        os.lchown(path, NOBODY, NOBODY)
    with pytest.raises(ConfigError, match="may be written by"):
        Config.resolve({}, {}, tmp_path)


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize("target", ["a FIFO", "a file"])
def test_link_of_a_stranger_is_not_followed(tmp_path: Path, target: str) -> None:
    """What another user's link leads to is not opened, since that has effects of its own."""
    path, other = tmp_path / "orchestrator.toml", tmp_path / "other"
    other.touch() if target == "a file" else os.mkfifo(other)
    path.symlink_to(other)
    os.lchown(path, NOBODY, NOBODY)
    with not_opened(other), pytest.raises(ConfigError, match="by the user nobody"):
        Config.resolve({}, {}, tmp_path)


def test_fifo_in_the_place_of_settings_is_not_opened(tmp_path: Path) -> None:
    """A process that writes to it is not ended by the look, nor does anything wait."""
    fifo = tmp_path / "other"
    os.mkfifo(fifo)
    (tmp_path / "orchestrator.toml").symlink_to(fifo)
    with not_opened(fifo), pytest.raises(ConfigError, match="not a regular file"):
        Config.resolve({}, {}, tmp_path)


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize("name", ["orchestrator.toml", "pyproject.toml"])
def test_group_that_may_change_the_settings_is_named(tmp_path: Path, name: str) -> None:
    """A shared group's file is used, as its run directories are, and each start names the group."""
    table = "[tool.orchestrator]\n" if name == "pyproject.toml" else ""
    path = tmp_path / name
    path.write_text(f"{table}on_event = 'echo'\n")
    os.chown(path, 0, 54320)
    assert others_who_may_set(tmp_path) is None
    path.chmod(0o664)
    assert Config.resolve({}, {}, tmp_path).on_event == "echo"
    sentence = f"every member of the group 54320 can change the settings in {path}"
    assert (others_who_may_set(tmp_path) or "").startswith(sentence)
    os.chown(path, 0, 0)
    assert others_who_may_set(tmp_path) is None
    os.chown(path, 0, 54320)
    if name == "pyproject.toml":
        (tmp_path / "orchestrator.toml").write_text("on_event = 'true'\n")
        assert others_who_may_set(tmp_path) is None
    path.write_text("")
    assert others_who_may_set(tmp_path) is None


@pytest.mark.parametrize("levels", [5, 100, 200, 300])
def test_nested_value_is_refused_with_a_short_message(tmp_path: Path, levels: int) -> None:
    """However deep a value is, the message names the key and the file."""
    value = "{a=" * levels + "1" + "}" * levels
    (tmp_path / "orchestrator.toml").write_text(f"{'.'.join(['keep', *'a' * 40])} = {value}\n")
    with pytest.raises(ConfigError, match=r"orchestrator\.toml") as refused:
        Config.resolve({}, {}, tmp_path)
    assert len(str(refused.value)) < 300


@pytest.mark.usefixtures("as_root")
def test_project_of_a_stranger_without_settings_is_no_matter(tmp_path: Path) -> None:
    """A pyproject.toml of another user that has no settings for this program is passed over."""
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'theirs'\n")
    os.chown(tmp_path / "pyproject.toml", NOBODY, NOBODY)
    assert Config.resolve({}, {}, tmp_path) == Config()


HOSTILE: dict[str, Callable[[Path], object]] = {
    "a FIFO": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a directory": lambda path: path.mkdir(),
    "too long": lambda path: path.write_bytes(b"#" * (MAXIMUM_FILE_BYTES + 1)),
    "nested": lambda path: path.write_text("keep = " + "[" * 5000),
    "not UTF-8": lambda path: path.write_bytes(b"keep = '\xff'"),
    "a long key": lambda path: path.write_text("a" + ".a" * 500_000 + " = 1\n"),
    "a long table": lambda path: path.write_text('["\\""' + '."\\""' * 100_000 + "]\n"),
    "a long key between texts": lambda path: path.write_text(
        'x = ["""\n""", {a' + ".a" * 100_000 + ' = 1}, ""]\n'
    ),
    "a long key of lines": lambda path: path.write_text("a" + '."\u2028"' * 100_000 + " = 1\n"),
    "a long heading": lambda path: path.write_text(
        "[a" + ".a" * 2000 + "]\n" + "".join(f"{n} = 1\n" for n in range(100_000))
    ),
    "a long key inside": lambda path: path.write_text("x = {a" + " . 'a'" * 100_000 + " = 1}\n"),
}


@pytest.mark.parametrize("make", HOSTILE.values(), ids=HOSTILE)
def test_what_is_no_settings_file_is_refused_at_once(
    tmp_path: Path, make: Callable[[Path], object]
) -> None:
    """A FIFO, a device and other content that no person writes end in a message."""
    make(tmp_path / "orchestrator.toml")
    with pytest.raises(ConfigError, match="cannot read"):
        Config.resolve({}, {}, tmp_path)
